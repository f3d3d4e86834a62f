"""What holds for every command: help, errors, completion, what is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli.conftest import Run
from opservice.cli import cli, exits
from support.client import Client

COMMANDS = cli.list_commands(click.Context(cli))
NOBODY = "127.0.0.1:1"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(run: Run, command: str) -> None:
    shown = run(command, "--help")

    assert shown.exit_code == 0
    assert f"opservice {command}" in shown.stdout.partition("\n")[2]


def test_the_help_names_every_exit_code() -> None:
    shown = CliRunner().invoke(cli, ["--help"]).stdout

    for code in [*exits.Exit, exits.INTERRUPTED]:
        assert f"\n    {int(code)} " in shown


@pytest.mark.parametrize(
    "arguments",
    [["get", "a"], ["get", "a", "b"], ["list"], ["cancel", "a", "b"], ["delete", "a"], ["start"],
     ["complete", "a"], ["fail", "a", "--code", "INTERNAL"]],
    ids=" ".join,
)  # fmt: skip
def test_a_server_that_is_not_there_is_one_line_and_exit_code_7(
    run: Run, arguments: list[str]
) -> None:
    result = run(*arguments, "--server", NOBODY)

    assert result.exit_code == 7
    assert result.stderr.startswith(f"opservice: {NOBODY}: UNAVAILABLE: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_refusal_names_the_field_and_the_request(run: Run) -> None:
    result = run("start", "--description", "x" * 257, "--id-prefix", "1")

    assert result.exit_code == 8
    assert result.stderr.count("\n") == 1
    for text in (": INVALID_ARGUMENT: ", "description: has 257", "id_prefix: must", "(request id "):
        assert result.stderr.count(text) == 1


def test_what_a_server_that_refuses_says_is_one_line(run: Run) -> None:
    result = run("get", "nowhere\x1b[31m\nagain")

    assert result.exit_code == 8
    assert result.stderr.count("\n") == 1
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize("command", ["get", "wait", "watch", "cancel", "delete", "complete"])
def test_an_id_is_needed(run: Run, command: str) -> None:
    assert run(command).exit_code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(run: Run, shell: str) -> None:
    assert f"_OPSERVICE_COMPLETE={shell}_complete" in run("completion", shell).stdout


def test_the_completion_of_bash_completes_commands(run: Run, tmp_path: Path) -> None:
    """In a real bash, with the command as it is installed."""
    script = tmp_path / "script"
    script.write_text(
        run("completion", "bash").stdout
        + "\nCOMP_WORDS=(opservice wa); COMP_CWORD=1; _opservice_completion opservice wa opservice"
        + '\necho "${COMPREPLY[@]}"\n'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    ended = subprocess.run(
        ["bash", "-eu", script], capture_output=True, text=True, env={"PATH": path}
    )

    assert ended.stdout.split() == ["wait", "watch"], ended


@pytest.mark.parametrize("command", ["get", "wait", "start", "health"])
def test_a_client_command_does_not_import_the_server(client: Client, command: str) -> None:
    program = (
        "import sys\n"
        "from opservice.cli import cli\n"
        f"cli(['{command}', '--help'], standalone_mode=False)\n"
        "print(sorted({'sqlalchemy', 'alembic', 'lark', 'opservice.main.server'} & set(sys.modules)))\n"
    )

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert ended.stdout.endswith("\n[]\n"), ended
