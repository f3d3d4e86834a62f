"""`--config` and `--print-config`, through the real command line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from opservice.cli import cli
from opservice.runtime.settings import SETTINGS
from support.server import serving

SECRET = "planted-secret"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "opservice.toml"
    path.touch(0o600)
    return path


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments], env=environment)


def effective(*arguments: object, **environment: str) -> dict[str, Any]:
    result = run("serve", "--print-config", *arguments, **environment)
    assert result.exit_code == 0, result.output
    return tomllib.loads(result.output)


def test_flags_win_over_variables_and_variables_over_the_file(file: Path) -> None:
    file.write_text("drain = '1s'\nkeepalive = '2s'\nworkers = 5")

    found = effective(
        "--config", file, "--drain", "3s", OPSERVICE_DRAIN="2s", OPSERVICE_WORKERS="6"
    )

    assert found["drain"] == "3s"
    assert found["workers"] == 6
    assert found["keepalive"] == "2s"
    assert found["max-wait"] == "50s"


def test_a_flag_that_the_file_switches_on_is_switched_off_by_its_variable(file: Path) -> None:
    file.write_text("demo = true\nmigrate = true")

    found = effective("--config", file, OPSERVICE_DEMO="0")

    assert (found["demo"], found["migrate"]) == (False, True)


def test_values_of_one_place_replace_those_of_another(file: Path) -> None:
    file.write_text("endpoint = ['a=h:1', 'b=h:2']")

    assert effective("--config", file)["endpoint"] == ["a=h:1", "b=h:2"]
    assert effective("--config", file, "--endpoint", "c=h:3")["endpoint"] == ["c=h:3"]


def test_the_variable_names_the_file_too(file: Path) -> None:
    file.write_text("drain = '1s'")

    assert effective(OPSERVICE_CONFIG=str(file))["drain"] == "1s"


def test_what_is_printed_says_where_it_comes_from(file: Path) -> None:
    file.write_text("drain = '1s'")
    result = run(
        "serve", "--print-config", "--config", file, "--workers", "2", OPSERVICE_MAX_WAIT="9s"
    )

    lines = result.output.splitlines()
    assert f'drain = "1s"  # from {file}' in lines
    assert "workers = 2  # from --workers" in lines
    assert 'max-wait = "9s"  # from OPSERVICE_MAX_WAIT' in lines
    assert 'keepalive = "1m"  # the default' in lines


def test_what_is_printed_is_taken_as_it_is(file: Path) -> None:
    first = run("serve", "--print-config", "--drain", "7s", "--endpoint", "a=h:1").output
    file.write_text(first)

    assert effective("--config", file) == tomllib.loads(first)


def test_every_setting_is_printed() -> None:
    output = run("serve", "--print-config").output

    assert all(f"{each.key} " in output for each in SETTINGS.values())


def test_a_password_is_never_printed(file: Path) -> None:
    url = f"postgresql://u:{SECRET}@h/d"
    file.write_text(f"database = '{url}'")

    for result in (
        run("serve", "--print-config", OPSERVICE_DATABASE=url),
        run("serve", "--print-config", "--config", file),
    ):
        assert result.exit_code == 0
        assert SECRET not in result.output
        assert "postgresql://h/d" in result.output


def test_settings_that_contradict_each_other_are_not_printed(file: Path) -> None:
    file.write_text("retention = '500d'")
    result = run("serve", "--print-config", "--config", file)

    assert result.exit_code == 1
    assert "--retention is longer than --max-retention" in result.output


@pytest.mark.parametrize("command", [["serve"], ["migrate"], ["backup", "there.db"]], ids=str)
def test_a_file_that_cannot_be_used_is_a_refusal(file: Path, command: list[str]) -> None:
    file.write_text(f"databse = '{SECRET}'")
    result = run(*command, "--config", file)

    assert result.exit_code == 1
    assert result.output.startswith("opservice: ")
    assert "unknown key 'databse'; did you mean 'database'?" in result.output
    assert SECRET not in result.output


def test_migrate_and_backup_take_the_database_from_the_file(file: Path, tmp_path: Path) -> None:
    file.write_text(f"database = 'sqlite:///{tmp_path}/a.db'\nworkers = 2")

    migrated = run("migrate", "--config", file)
    backed_up = run("backup", "--config", file, tmp_path / "copy.db")

    assert migrated.output.startswith("Migrated the schema from nothing to ")
    assert backed_up.output.startswith("Backed up 0 operations")
    assert (tmp_path / "a.db").exists()
    assert (tmp_path / "copy.db").exists()


def test_a_server_takes_its_settings_from_the_file(file: Path, tmp_path: Path) -> None:
    file.write_text('advertise = "there:1"\nlog-level = "error"')
    url = f"sqlite:///{tmp_path}/a.db"
    with serving(tmp_path, url, environment={"OPSERVICE_CONFIG": str(file)}) as server:
        server.client.started()

        # Below that level nothing is told but what is done to operations.
        assert {line["logger"] for line in server.log()} == {"opservice.audit"}
