"""What makes the server refuse to start, and what it says then: one line for the operator."""

from pathlib import Path
from typing import Any

import pytest

from support.postgres import PostgresServer
from support.proxy import CommitLosingProxy
from support.server import ServerProcess, run_opservice, serving


def refusal(directory: Path, database: str, exit_code: int = 1, **settings: Any) -> str:
    """What the server says when it does not start."""
    server = ServerProcess(directory, database, **settings)
    assert server.expect_refusal() == exit_code
    assert server.stdout == ""
    assert "Traceback" not in server.stderr
    return server.stderr


DATABASES = {
    "a URL that does not parse": ("sqlite//what", "the database URL does not parse"),
    "a directory": ("sqlite:////", "the database is a directory, not a file: /"),
    "a PostgreSQL that is down": (
        "postgresql://tests@127.0.0.1:1/operations",
        "The database postgresql://127.0.0.1:1/operations is not available at the moment. (psycopg.",
    ),
}


@pytest.mark.parametrize(("url", "complaint"), DATABASES.values(), ids=DATABASES)
def test_a_database_that_cannot_be_used_is_refused(
    tmp_path: Path, url: str, complaint: str
) -> None:
    assert complaint in refusal(tmp_path, url)


def test_a_database_that_does_not_exist_is_not_tried_again(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    url = postgres.url("nowhere")

    message = refusal(tmp_path, url)
    migrated = run_opservice("migrate", environment={"OPSERVICE_DATABASE": url})

    shown = f"postgresql://127.0.0.1:{postgres.port}/nowhere"
    complaint = (
        f'opservice: the database {shown} cannot be used: database "nowhere" does not exist\n'
    )
    assert message == complaint
    assert (migrated.returncode, migrated.stderr) == (1, complaint)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("these are notes and no database" * 100)

    message = refusal(tmp_path, f"sqlite:///{file}")

    assert "cannot be used: it is not an SQLite database" in message
    assert file.read_text().startswith("these are notes")


def test_postgresql_is_served_only_with_the_schema_that_is_needed(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    url = postgres.create_database()

    message = refusal(tmp_path, url, migrate=False)
    migrated = run_opservice("migrate", environment={"OPSERVICE_DATABASE": url})

    assert "the database has no opservice schema" in message
    assert "run 'opservice migrate', or serve with --migrate" in message
    assert migrated.returncode == 0
    with serving(tmp_path, url, migrate=False) as server:
        assert server.client.started()


def test_a_connection_that_is_lost_meanwhile_is_made_again(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    url = postgres.create_database()
    run_opservice("migrate", environment={"OPSERVICE_DATABASE": url})

    with CommitLosingProxy(postgres.port) as proxy:
        proxy.lose_next("answer")
        url = url.replace(f":{postgres.port}/", f":{proxy.port}/")
        with serving(tmp_path, url, migrate=False) as server:
            assert proxy.lost == 1
            assert server.log(event="the database is not available: trying once more")
            assert server.client.started()


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path, sqlite_url: str) -> None:
    message = refusal(tmp_path, sqlite_url, retention="400d")

    assert message == "opservice: --retention is longer than --max-retention\n"


def test_an_address_of_another_machine_is_refused(tmp_path: Path, sqlite_url: str) -> None:
    message = refusal(tmp_path, sqlite_url, listen="192.0.2.1:50051", allow_anonymous=True)

    assert "cannot listen on 192.0.2.1:50051" in message
    assert "not this machine's" in message
