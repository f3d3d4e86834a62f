"""`opservice wait` and `watch`: what they show, and the exit codes that say how it ended."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer

import grpc
import pytest
import yaml
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from cli.conftest import Run
from cli.processes import running
from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy, Progress
from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    WatchOperationRecordRequest,
)
from support.client import TOKEN, Client
from support.server import PATIENCE, ServerProcess, eventually, serving

NOBODY = "127.0.0.1:1"


EITHER_IN_SLOW = pytest.mark.parametrize(
    "command", ["watch", pytest.param("wait", marks=pytest.mark.slow)]
)
"""Both reconnect by the same code."""


def ended(client: Client, how: str) -> str:
    """The id of an operation in this state."""
    if how == "cancelling":
        id_ = client.started(cancel_policy=CancelPolicy.COOPERATIVE)
        client.cancel(id_)
        return id_
    id_ = client.started()
    if how == "done":
        client.complete(id_)
    elif how == "cancelled":
        client.cancel(id_)
    elif how != "running":
        client.fail(id_, Status(code=Code.Value(how), message="because"))
    return id_


@pytest.mark.parametrize(
    ("how", "exit_code"),
    [
        ("done", 0),
        ("NOT_FOUND", 3),
        ("DEADLINE_EXCEEDED", 3),
        ("cancelled", 4),
        ("running", 5),
        ("cancelling", 5),
    ],
)
@pytest.mark.parametrize("command", ["wait", "watch"])
def test_the_exit_code_says_how_it_ended(
    run: Run, client: Client, command: str, how: str, exit_code: int
) -> None:
    assert run(command, ended(client, how), "--timeout", "500ms").exit_code == exit_code


@pytest.mark.parametrize("command", ["wait", "watch"])
def test_what_is_not_there_is_not_found(run: Run, command: str) -> None:
    result = run(command, "nowhere")

    assert result.exit_code == 6
    assert "NOT_FOUND: Operation nowhere not found" in result.stderr


@pytest.mark.parametrize("command", ["wait", "watch"])
@pytest.mark.parametrize("limit", [("--reconnect", "0s"), ("--timeout", "0s")], ids=" ".join)
def test_a_server_that_was_never_there_is_unreachable(
    server: ServerProcess, command: str, limit: tuple[str, str]
) -> None:
    with running(server, command, "any", "--server", NOBODY, *limit) as process:
        _, stderr = process.communicate(timeout=PATIENCE)

    assert process.returncode == 7
    assert stderr.startswith(f"opservice: {NOBODY}: UNAVAILABLE: ")


@pytest.mark.parametrize(
    ("hows", "exit_code"),
    [
        (["done", "done"], 0),
        (["done", "cancelled"], 4),
        (["cancelled", "NOT_FOUND", "done"], 3),
        (["NOT_FOUND", "running", "cancelled"], 5),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("command", ["wait", "watch"])
def test_of_several_the_worst_counts(
    run: Run, client: Client, command: str, hows: list[str], exit_code: int
) -> None:
    ids = [ended(client, how) for how in hows]

    assert run(command, *ids, "--timeout", "0s").exit_code == exit_code


@pytest.mark.parametrize("command", ["wait", "watch"])
def test_an_unknown_id_counts_for_more_than_any_state(
    run: Run, client: Client, command: str
) -> None:
    result = run(command, ended(client, "NOT_FOUND"), "nowhere", ended(client, "running"),
                 "--timeout", "0s")  # fmt: skip

    assert result.exit_code == 6
    assert "NOT_FOUND: Operation nowhere not found\n" in result.stderr
    assert "not done within --timeout" in result.stderr


@pytest.mark.parametrize("command", ["wait", "watch"])
def test_several_of_which_one_is_no_id_are_refused_at_once(
    run: Run, client: Client, command: str
) -> None:
    result = run(command, client.started(), "")

    assert "INVALID_ARGUMENT: operation_ids[1]: must not be empty" in result.stderr
    assert result.exit_code == 8


@pytest.mark.parametrize("command", ["wait", "watch"])
def test_that_the_server_is_away_is_said_once_of_several(run: Run, command: str) -> None:
    result = run(command, "a", "b", "--server", NOBODY, "--timeout", "0s")

    assert result.stderr.count("UNAVAILABLE") == 1
    assert result.exit_code == 7


def test_a_server_that_cannot_follow_several_says_so(run: Run) -> None:
    server = grpc.server(ThreadPoolExecutor(1))  # that serves no method at all
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        result = run("watch", "a", "b", "--server", f"127.0.0.1:{port}")
    finally:
        server.stop(None)

    assert ": UNIMPLEMENTED: " in result.stderr
    assert "the server is older than this program" in result.stderr
    assert result.exit_code == 1


def test_wait_takes_more_ids_than_one_stream(run: Run, crowd: tuple[str, list[str]]) -> None:
    _, ids = crowd

    result = run("wait", *ids, "--timeout", "0s", "--format", "json")

    assert [each["operation"]["id"] for each in json.loads(result.stdout)] == ids
    assert result.stderr.count("not done within --timeout\n") == len(ids)
    assert result.exit_code == 5


def test_wait_shows_several_in_the_order_asked_for(run: Run, client: Client) -> None:
    ids = [client.started() for _ in range(3)]
    client.complete(ids[2])
    later = Timer(0.3, lambda: [client.complete(id_) for id_ in ids[1::-1]])
    later.start()

    result = run("wait", *ids, "--format", "json")

    assert [each["operation"]["id"] for each in json.loads(result.stdout)] == ids
    assert all(each["operation"]["done"] for each in json.loads(result.stdout))
    assert result.exit_code == 0


def test_wait_shows_the_result_of_one(run: Run, client: Client) -> None:
    id_ = ended(client, "NOT_FOUND")

    result = run("wait", id_)

    assert "Error        NOT_FOUND: because\n" in result.stdout
    assert result.stderr == ""


def test_wait_shows_what_is_not_done_in_time_as_it_is(run: Run, client: Client) -> None:
    id_ = client.started()

    result = run("wait", id_, "--timeout", "0s")

    assert "Status       running\n" in result.stdout
    assert result.stderr == f"opservice: {id_}: not done within --timeout\n"


def test_watch_prints_each_state_as_a_line(server: ServerProcess, client: Client) -> None:
    id_ = client.started(description="Build")
    with running(server, "watch", id_) as watch:
        assert watch.stdout is not None
        lines = [watch.stdout.readline()]
        client.renew(id_, progress=Progress(done=1, total=2, unit="steps", message="one"))
        lines.append(watch.stdout.readline())
        client.fail(id_, Status(code=Code.INTERNAL, message="oh"))
        lines += watch.stdout.readlines()
        assert watch.wait(PATIENCE) == 3

    assert [line.split()[1:] for line in lines] == [
        ["running"],
        ["running", "1/2", "steps", "one"],
        ["failed", "INTERNAL:", "oh"],
    ]


def test_watch_prints_the_states_of_several_with_their_ids(
    server: ServerProcess, client: Client
) -> None:
    one, two = client.started(description="One"), client.started()
    with running(server, "watch", one, "nowhere", two, one) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        lines = [watch.stdout.readline() for _ in range(2)]
        missing = watch.stderr.readline()
        client.renew(two, progress=Progress(done=1, total=2, unit="steps"))
        lines.append(watch.stdout.readline())
        client.complete(one)
        lines.append(watch.stdout.readline())
        client.cancel(two)
        lines += watch.stdout.readlines()
        assert watch.wait(PATIENCE) == 6
        assert watch.stderr.read() == ""

    assert [line.split()[1:] for line in sorted(lines[:2])] + [
        line.split()[1:] for line in lines[2:]
    ] == [
        [one, "running", "One"],
        [two, "running"],
        [two, "running", "1/2", "steps"],
        [one, "done", "One"],
        [two, "cancelled", "CANCELLED:", "The", "operation", "was", "cancelled"],
    ]
    assert missing.endswith(": NOT_FOUND: Operation nowhere not found\n")


def test_watch_prints_a_state_once_though_the_server_repeats_it(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/a.db"
    with serving(tmp_path, database, watch_repeat="100ms") as server:
        id_ = server.client.started()
        with running(server, "watch", id_, "--format", "json") as watch:
            assert watch.stdout is not None
            lines = [watch.stdout.readline()]
            repeated = server.client.records.Watch(WatchOperationRecordRequest(operation_id=id_))
            assert [next(repeated).revision for _ in range(5)] == [1] * 5
            server.client.complete(id_)
            lines += watch.stdout.readlines()
            assert watch.wait(PATIENCE) == 0

    assert [json.loads(line)["revision"] for line in lines] == ["1", "2"]


@pytest.mark.parametrize("format_", ["json", "yaml"])
def test_watch_prints_each_state_as_a_document(run: Run, client: Client, format_: str) -> None:
    id_ = client.started()
    Timer(0.3, lambda: client.complete(id_)).start()

    printed = run("watch", id_, "--format", format_).stdout

    if format_ == "json":
        documents = [json.loads(line) for line in printed.splitlines()]
    else:
        documents = list(yaml.safe_load_all(printed))
    assert [document["revision"] for document in documents] == ["1", "2"]
    assert documents[-1]["operation"]["done"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["watch", "wait"])
def test_following_several_outlives_a_restart_of_the_server(tmp_path: Path, command: str) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path}/a.db") as server:
        ids = [server.client.started() for _ in range(3)]
        server.client.complete(ids[0])
        with running(server, command, *ids, "--format", "json") as process:
            documents = []
            if command == "watch":
                assert process.stdout is not None
                documents = [json.loads(process.stdout.readline()) for _ in ids]
            server.terminate()
            server.start()
            server.client.complete(ids[2])
            server.client.complete(ids[1])
            stdout, stderr = process.communicate(timeout=PATIENCE)

    assert (process.returncode, stderr) == (0, "")
    if command == "watch":
        documents += map(json.loads, stdout.splitlines())
        states = [(each["operation"]["id"], each["revision"]) for each in documents]
        assert states[:3] == [(ids[0], "2"), (ids[1], "1"), (ids[2], "1")]
        assert sorted(states[3:]) == sorted([(ids[1], "2"), (ids[2], "2")])
    else:
        assert [each["operation"]["id"] for each in json.loads(stdout)] == ids


@EITHER_IN_SLOW
def test_it_outlives_a_restart_of_the_server(tmp_path: Path, command: str) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path}/a.db") as server:
        id_ = server.client.started(description="Build")
        server.client.renew(id_, progress=Progress(done=1))
        with running(server, command, id_, "--format", "json") as process:
            if command == "watch":
                assert process.stdout is not None
                assert json.loads(process.stdout.readline())["revision"] == "2"
            server.terminate()
            server.start()
            assert process.poll() is None
            server.client.complete(id_)
            stdout, stderr = process.communicate(timeout=PATIENCE)

    assert process.returncode == 0
    assert json.loads(stdout)["operation"]["done"]
    assert stderr == ""


def test_a_server_that_stays_away_is_given_up(tmp_path: Path) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path}/a.db") as server:
        id_ = server.client.started(lease_token=TOKEN)
        with running(server, "watch", id_, "--reconnect", "1s") as watch:
            assert watch.stdout is not None
            assert watch.stdout.readline()
            server.kill()
            _, stderr = watch.communicate(timeout=PATIENCE)

    assert watch.returncode == 7
    assert ": UNAVAILABLE: " in stderr


@EITHER_IN_SLOW
def test_it_tries_again_what_the_server_says_may_be_tried_again(
    tmp_path: Path, command: str
) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path}/a.db", max_waits=1) as server:
        holding, refused = server.client.started(), server.client.started()
        with running(server, "watch", holding) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline()
            with running(server, command, refused) as process:
                eventually(lambda: server.log(error="TooManyWaits") or process.poll())
                assert process.poll() is None
                server.client.complete(holding)
                server.client.complete(refused)
                _, stderr = process.communicate(timeout=PATIENCE)

    assert (process.returncode, stderr) == (0, "")
