"""On a terminal, and where there is none: bars, colours, signals, and text that must do no harm."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from cli.conftest import Run
from cli.processes import on_a_terminal, running
from opservice._proto.opservice.v1.operation_record_pb2 import Progress
from support.client import Client, packed
from support.server import PATIENCE, ServerProcess, clean_environment, command_line

# Retitles, clears, colours (once as C1), writes from right to left, deletes; and markup of rich.
HARM = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\x7f\r[bold red][/no]"


def harmful(client: Client, *, failed: bool) -> str:
    id_ = client.started(description=HARM, metadata=packed(StringValue(value=HARM)))
    client.renew(id_, progress=Progress(done=1, total=2, unit="u", message="working"))
    if failed:
        client.fail(id_, Status(code=Code.INTERNAL, message=HARM))
    return id_


@pytest.mark.parametrize("format_", ["table", "json", "yaml"])
@pytest.mark.parametrize("command", ["get", "wait", "watch"])
def test_no_text_from_the_server_reaches_the_terminal_unescaped(
    run: Run, client: Client, command: str, format_: str
) -> None:
    ids = [harmful(client, failed=True) for _ in range(2)]

    shown = run(command, *ids, "--format", format_).stdout

    assert shown.replace("\n", "").isprintable()
    assert "[bold red][/no]" in shown


def test_nor_does_it_with_everything_about_one_operation(run: Run, client: Client) -> None:
    shown = run("get", harmful(client, failed=True)).stdout

    assert shown.replace("\n", "").isprintable()
    assert shown.count("[bold red][/no]") == 3


@pytest.mark.parametrize("command", ["wait", "watch"])
def test_a_terminal_gets_a_live_bar_and_then_the_result(
    server: ServerProcess, client: Client, command: str
) -> None:
    id_ = harmful(client, failed=False)

    code, shown = on_a_terminal(
        server, command, id_, once_shown=("1/2 u working", lambda: client.complete(id_))
    )

    assert code == 0
    bar, result = shown.split("\x1b[?25h")  # the cursor is shown again
    assert "━" in bar
    assert re.search(r"Status\W.*done", result)
    # What is left after colours and moves of the cursor, all of them rich's own.
    left = re.sub(r"\x1b\[[0-9;?]*[A-Za-ln-z]|\x1b\[[0-9;]*m", "", shown)
    assert "\x1b" not in left
    assert "\x1b[2J" not in shown
    assert "\x9b" not in shown


@pytest.mark.slow
def test_a_terminal_gets_a_live_bar_for_each_of_several(
    server: ServerProcess, client: Client
) -> None:
    one, two = client.started(), client.complete(client.started()).id

    code, shown = on_a_terminal(
        server, "watch", one, two, "nowhere", once_shown=("not found", lambda: client.complete(one))
    )

    assert code == 6
    bars, result = shown.split("\x1b[?25h")
    assert all(id_ in bars for id_ in (one, two, "nowhere"))
    assert re.search(rf"{one}\W.*done[^\n]*\n{two}\W.*done", result)
    assert "NOT_FOUND: Operation nowhere not found" in result


def test_a_terminal_gets_colours_unless_they_are_not_wanted(
    server: ServerProcess, client: Client
) -> None:
    id_ = client.complete(client.started()).id

    assert "\x1b[32mdone" in on_a_terminal(server, "get", id_)[1]
    assert "\x1b[32m" not in on_a_terminal(server, "get", id_, NO_COLOR="1")[1]


def test_a_table_fits_the_terminal(server: ServerProcess, client: Client) -> None:
    ids = [client.started(description="long " * 40, method="m" * 90) for _ in range(2)]

    _, shown = on_a_terminal(server, "get", *ids)

    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 120
    assert re.match(rf"{ids[0]}  running +\d+s +mmm+…  long .*…", lines[1])


def test_ctrl_c_ends_it_quietly(server: ServerProcess, client: Client) -> None:
    with running(server, "watch", client.started()) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline()
        watch.send_signal(signal.SIGINT)
        stdout, stderr = watch.communicate(timeout=PATIENCE)

    assert (stdout, stderr) == ("", "")
    assert watch.returncode == 130


def test_ctrl_c_on_a_terminal_gives_the_cursor_back(server: ServerProcess, client: Client) -> None:
    id_ = client.started()

    code, shown = on_a_terminal(server, "wait", id_, press=("running", "\x03"))

    assert code == 130
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert "Abort" not in shown
    assert not client.get(id_).done


def test_a_reader_that_leaves_is_no_error(server: ServerProcess, client: Client) -> None:
    ids = [client.started(description="x" * 200) for _ in range(3)]
    process = subprocess.Popen(
        command_line(["get", *ids, "--server", server.address], {}),
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()

    assert process.stderr.read() == ""
    assert process.wait(PATIENCE) != 0
    process.stderr.close()


def test_a_terminal_without_unicode_is_no_error(client: Client, server: ServerProcess) -> None:
    id_ = client.started(description="Grüße")

    ended = subprocess.run(
        [sys.executable, "-m", "opservice", "get", id_, "--server", server.address],
        env=clean_environment(PYTHONIOENCODING="ascii"),
        capture_output=True,
        text=True,
    )

    assert ended.stderr == ""
    assert "Gr\\xfc\\xdfe" in ended.stdout
