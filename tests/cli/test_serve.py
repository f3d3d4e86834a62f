"""`opservice serve` and `migrate`: where they take values from, what they refuse."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from opservice import __version__
from opservice.cli import cli
from opservice.cli.serve import serve_command
from opservice.settings import Settings, environment_variable, flag
from support.server import run_opservice, serving

SAMPLES: dict[str, tuple[str, Any]] = {
    "text": ("127.0.0.1:7", "127.0.0.1:7"),
    "texts": ("a=h:1 b=h:2", ("a=h:1", "b=h:2")),
    "flag": ("true", True),
    "file": ("/some/file", Path("/some/file")),
    "files": ("/one:/two", (Path("/one"), Path("/two"))),
    "count": ("77", 77),
    "bytes": ("77777", 77777),
    "duration": ("90m", 5_400_000_000),
    "choice": (),  # type: ignore[dict-item] # each has its own
}


def sample(setting: Any) -> tuple[str, Any]:
    """A value that is not the default: as it is written, and as it is meant."""
    if setting.metadata["kind"] == "choice":
        chosen = setting.metadata["choices"][-1]
        return chosen, chosen
    return SAMPLES[setting.metadata["kind"]]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Sets every variable; what the settings then should be."""
    expected = {}
    for setting in fields(Settings):
        text, expected[setting.name] = sample(setting)
        monkeypatch.setenv(environment_variable(setting), text)
    return expected


def parsed(*arguments: str) -> dict[str, Any]:
    """What `serve` would be called with."""
    return serve_command.make_context("serve", list(arguments)).params


def test_help_lists_every_setting_with_its_environment_variable() -> None:
    shown = CliRunner().invoke(cli, ["serve", "--help"]).output
    words = shown.replace("\n", " ").split()

    for setting in fields(Settings):
        assert flag(setting) in words
        assert environment_variable(setting) in shown.replace("\n", "").replace(" ", "")


def test_every_setting_is_taken_from_the_environment(environment: dict[str, Any]) -> None:
    assert parsed() == environment


def test_a_flag_counts_for_more_than_the_environment(environment: dict[str, Any]) -> None:
    given = parsed(
        "--listen", "h:1", "--drain", "1s", "--endpoint", "c=h:3", "--max-payload-bytes", "5"
    )  # fmt: skip

    changed = {"listen": "h:1", "drain": 1_000_000, "endpoint": ("c=h:3",), "max_payload_bytes": 5}
    assert given == environment | changed


def test_without_anything_the_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in fields(Settings):
        monkeypatch.delenv(environment_variable(setting), raising=False)

    assert Settings(**parsed()) == Settings()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--drain", "5"],
        ["--log-level", "loud"],
        ["--log-format", "xml"],
        ["--max-payload-bytes", "1.5"],
        ["--no-such-flag"],
        ["surplus"],
    ],
    ids=" ".join,
)
def test_what_does_not_parse_is_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(click.UsageError) as caught:
        parsed(*arguments)

    assert caught.value.exit_code == 2


def test_version_is_that_of_the_package() -> None:
    assert CliRunner().invoke(cli, ["--version"]).output == f"opservice, version {__version__}\n"


def test_the_settings_of_the_environment_reach_the_server(tmp_path: Path) -> None:
    environment = {"OPSERVICE_ADVERTISE": "there:1", "OPSERVICE_LOG_LEVEL": "error"}
    url = f"sqlite:///{tmp_path}/a.db"
    with serving(tmp_path, url, environment=environment) as server:
        server.client.started()

        assert server.stderr == ""


def test_migrate_may_be_repeated(tmp_path: Path) -> None:
    arguments = ["migrate", "--database", f"sqlite:///{tmp_path}/a.db"]

    first = CliRunner().invoke(cli, arguments)
    second = CliRunner().invoke(cli, arguments)

    assert first.exit_code == second.exit_code == 0
    assert first.output.startswith("Migrated the schema from nothing to ")
    assert second.output.startswith("The schema is up to date: ")


def test_migrate_of_a_database_that_is_down_says_so(tmp_path: Path) -> None:
    ended = run_opservice("migrate", database="postgresql://u:hidden@127.0.0.1:1/d")

    assert ended.returncode == 1
    assert "The database is not available" in ended.stderr
    assert "hidden" not in ended.stderr
    assert "Traceback" not in ended.stderr
