"""`opservice serve` and `migrate`: where they take values from, what they refuse."""

import os
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from opservice import __version__
from opservice.cli import cli
from opservice.cli.serve import announce, serve_command
from opservice.runtime.settings import GROUPS, SETTINGS, Settings
from opservice.runtime.settings.setting import Setting
from support.server import ServerProcess, run_opservice, serving

TITLES = [f"{group.TITLE}:" for group in GROUPS.values()]

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


def sample(setting: Setting) -> tuple[str, Any]:
    """A value that is not the default: as it is written, and as it is meant."""
    if setting.kind == "choice":
        chosen = setting.choices[-1]
        return chosen, chosen
    return SAMPLES[setting.kind]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Sets every variable; what the settings then should be."""
    expected = {}
    for setting in SETTINGS.values():
        text, expected[setting.name] = sample(setting)
        monkeypatch.setenv(setting.variable, text)
    return expected


def parsed(*arguments: str) -> dict[str, Any]:
    """The settings that `serve` would be called with."""
    given = serve_command.make_context("serve", list(arguments)).params
    return {name: value for name, value in given.items() if name in SETTINGS}


def test_help_lists_every_setting_with_its_environment_variable() -> None:
    shown = CliRunner().invoke(cli, ["serve", "--help"]).output
    words = shown.replace("\n", " ").split()

    for setting in SETTINGS.values():
        assert setting.flag in words
        assert setting.variable in shown.replace("\n", "").replace(" ", "")
    assert [line for line in shown.splitlines() if line in TITLES] == TITLES


def test_every_setting_is_taken_from_the_environment(environment: dict[str, Any]) -> None:
    assert parsed() == environment


def test_a_flag_counts_for_more_than_the_environment(environment: dict[str, Any]) -> None:
    given = parsed(
        "--listen", "h:1", "--drain", "1s", "--endpoint", "c=h:3", "--max-payload-bytes", "5"
    )  # fmt: skip

    changed = {"listen": "h:1", "drain": 1_000_000, "endpoint": ("c=h:3",), "max_payload_bytes": 5}
    assert given == environment | changed


def test_without_anything_the_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)

    assert Settings.of(**parsed()) == Settings()


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

        # Below that level nothing is told but what is done to operations.
        assert {line["logger"] for line in server.log()} == {"opservice.audit"}


def test_a_server_that_asks_nobody_who_he_is_refuses_other_machines(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, f"sqlite:///{tmp_path}/a.db", listen="0.0.0.0:0")

    assert server.expect_refusal() == 1
    assert server.stderr.startswith(
        "opservice: --listen 0.0.0.0:0 can be reached from other machines"
    )
    assert not (tmp_path / "a.db").exists()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_server_that_lets_everybody_in_says_so(tmp_path: Path, workers: int) -> None:
    settings: dict[str, Any] = {"listen": "0.0.0.0:0", "allow_anonymous": True, "workers": workers}
    with serving(tmp_path, f"sqlite:///{tmp_path}/a.db", **settings) as server:
        warned = [line["event"] for line in server.log(level="warning")]

        said = "--allow-anonymous: everybody who can connect may see and change every operation"
        assert warned.count(said) == workers


def test_tokens_without_tls_are_warned_of(tmp_path: Path) -> None:
    (tmp_path / "tokens.yaml").write_text("[]")
    settings: dict[str, Any] = {"listen": "0.0.0.0:0", "tokens": tmp_path / "tokens.yaml"}
    with serving(tmp_path, f"sqlite:///{tmp_path}/a.db", **settings) as server:
        warned = [line["event"] for line in server.log(level="warning")]

        assert "without TLS, others can read tokens on their way to this server" in warned


BROKEN = {
    "tokens": {"tokens": "file"},
    "a policy": {"tokens": "good", "policy": "file"},
    "keys": {"jwks": "file", "jwt_issuer": "i", "jwt_audience": "a"},
}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", BROKEN.values(), ids=BROKEN)
def test_a_file_that_cannot_be_used_is_a_refusal_to_start(
    tmp_path: Path, settings: dict[str, str], workers: int
) -> None:
    (tmp_path / "good").write_text("[]")
    (tmp_path / "file").write_text("{planted-secret: 2027-13-01")
    named = {
        name: tmp_path / value if value in {"file", "good"} else value
        for name, value in settings.items()
    }
    url = f"sqlite:///{tmp_path}/a.db"
    server = ServerProcess(tmp_path, url, workers=workers, **named)

    assert server.expect_refusal() == 1
    assert server.stderr.startswith("opservice: ")
    assert server.stderr.count("\n") == 1
    assert str(tmp_path / "file") in server.stderr
    assert "planted-secret" not in server.stderr
    assert not (tmp_path / "a.db").exists()


PASSWORDS = [
    "postgresql://user:planted-secret@host/name",
    "postgresql://:planted-secret@host/name",
    "postgresql+psycopg://user:planted-secret@host:5432/name?sslmode=require",
    "postgresql://host/name?user=u&password=planted-secret",
    "postgresql://host/name?user=u&p%61ssword=planted-secret",
    "postgresql://host/name?sslpassword=planted-secret",
    "postgresql://user:%2F%3Fplanted-secret@host,other/name",
]


@pytest.mark.parametrize("command", ["serve", "migrate"])
@pytest.mark.parametrize("url", PASSWORDS)
def test_a_password_is_not_taken_from_the_command_line(command: str, url: str) -> None:
    result = CliRunner().invoke(cli, [command, "--database", url])

    assert result.exit_code == 2
    assert "OPSERVICE_DATABASE" in result.output
    assert "planted-secret" not in result.output


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_a_url_on_the_command_line_that_does_not_parse_is_not_quoted(command: str) -> None:
    url = "postgresql://user:1?host=planted-secret@host/name"
    result = CliRunner().invoke(cli, [command, "--database", url])

    assert result.exit_code == 1
    assert "the database URL does not parse" in result.output
    assert "planted-secret" not in result.output


def test_migrate_may_be_repeated(tmp_path: Path) -> None:
    arguments = ["migrate", "--database", f"sqlite:///{tmp_path}/a.db"]

    first = CliRunner().invoke(cli, arguments)
    second = CliRunner().invoke(cli, arguments)

    assert first.exit_code == second.exit_code == 0
    assert first.output.startswith("Migrated the schema from nothing to ")
    assert second.output.startswith("The schema is up to date: ")


def test_migrate_of_a_database_that_is_down_says_so(tmp_path: Path) -> None:
    url = "postgresql://u:hidden@127.0.0.1:1/d"
    ended = run_opservice("migrate", environment={"OPSERVICE_DATABASE": url})

    assert ended.returncode == 1
    assert "The database postgresql://127.0.0.1:1/d is not available" in ended.stderr
    assert "hidden" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_server_whose_output_nobody_reads_any_more_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after `opservice serve --demo | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(
        writing, "w"
    ) as nobody:  # Python ends with its `close`, which must not fail either
        monkeypatch.setattr(sys, "stdout", nobody)
        announce("one line")
        announce("another")
