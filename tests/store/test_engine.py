"""Opening a database by its URL, and what of a driver's errors comes out of the store."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import insert, literal_column, text

from opservice.domain.errors import StartupError, StoreBusy, StoreError, StoreFull, StoreUnavailable
from opservice.domain.operation import DAY, CancelPolicy, Start, new_id
from opservice.store.engine import Database, open_database
from opservice.store.repository import Repository
from opservice.store.schema import operations
from support.postgres import WITH_PASSWORD, PostgresServer
from support.replicas import apply_one

SECRET = "swordfish"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("no/such/operations.db", "the directory of the database does not exist: {}/no/such"),
        ("", "the database is a directory, not a file: {}"),
        ("pipe", "the database is no regular file: {}/pipe"),
        ("n" * 300, "the database cannot be used: File name too long: {}/nnn"),
    ],
)
def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path, place: str, said: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StartupError) as refused:
        open_database(f"sqlite:///{tmp_path}/{place}")
    assert said.format(tmp_path) in str(refused.value)


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A directory that its owner may not do everything in: for root, whom nothing is denied, as nobody."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o777)
    if os.geteuid() == 0:
        os.setreuid(65_534, -1)  # what os.access goes by
    yield directory
    if os.geteuid() == 0:
        os.setreuid(0, 0)
    directory.chmod(0o777)
    shutil.rmtree(directory)


def test_a_directory_that_may_not_be_written_to_is_refused(unprivileged: Path) -> None:
    unprivileged.chmod(0o555)
    with pytest.raises(StartupError) as refused:
        open_database(f"sqlite:///{unprivileged}/operations.db")
    expected = f"the directory of the database may not be written to: {unprivileged}"
    assert str(refused.value) == expected


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_file_that_may_not_be_written_to_is_refused(unprivileged: Path, mode: int) -> None:
    file = unprivileged / "operations.db"
    file.touch()
    file.chmod(mode)
    with pytest.raises(StartupError) as refused:
        open_database(f"sqlite:///{file}")
    assert str(refused.value) == f"the database may not be read and written: {file}"


@pytest.mark.parametrize("file", ["notes.db", "damaged.db"])
def test_a_file_that_is_no_sound_database_will_not_be_one_later(tmp_path: Path, file: str) -> None:
    (tmp_path / "notes.db").write_text("these are notes and no database" * 100)
    header = sqlite3.connect(tmp_path / "damaged.db")
    header.execute("CREATE TABLE t (i)")
    header.close()
    content = (tmp_path / "damaged.db").read_bytes()
    (tmp_path / "damaged.db").write_bytes(content[:100] + b"\xff" * (len(content) - 100))
    with closing(open_database(f"sqlite:///{tmp_path}/{file}")) as database:
        with pytest.raises(StartupError) as refused:
            database.check_connections()
        assert f"sqlite:///{tmp_path}/{file} cannot be used: " in str(refused.value)


@pytest.mark.parametrize(
    ("user", "database", "more", "said"),
    [
        ("tests", "nowhere", "", 'database "nowhere" does not exist'),
        ("nobody", "postgres", "", 'role "nobody" does not exist'),
        (WITH_PASSWORD, "postgres", "", "password authentication failed"),
        ("tests", "postgres", "?sslmode=require", "server does not support SSL"),
        ("tests", "postgres", "?sslmode=sometimes", 'invalid sslmode value: "sometimes"'),
        ("tests", "postgres", "?service=none", 'definition of service "none" not found'),
        ("tests", "postgres", "?channel_binding=require", "channel binding required"),
        ("tests", "postgres", "?options=-c%20nonsense=1", "unrecognized configuration parameter"),
    ],
)
def test_a_postgresql_that_refuses_for_good_is_not_called_unavailable(
    postgres: PostgresServer, user: str, database: str, more: str, said: str
) -> None:
    place = f"127.0.0.1:{postgres.port}/{database}"
    with closing(open_database(f"postgresql://{user}:{SECRET}@{place}{more}")) as opened:
        with pytest.raises(StartupError) as refused:
            opened.check_connections()
        assert f"the database postgresql://{place} cannot be used: " in str(refused.value)
        assert said in str(refused.value)
        assert SECRET not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_does_not_hold_every_text_is_refused(
    postgres: PostgresServer, encoding: str
) -> None:
    name = f"encoded_{encoding.lower()}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}'")
    with (
        closing(open_database(postgres.url(name))) as opened,
        pytest.raises(StartupError, match=f"its encoding is {encoding}.*ENCODING 'UTF8'"),
    ):
        opened.check_connections()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgresql_is_reached_by_each_of_its_schemes(
    postgres: PostgresServer, scheme: str
) -> None:
    with closing(
        open_database(postgres.url("postgres").replace("postgresql", scheme, 1))
    ) as database:
        version = database.read(lambda connection: connection.execute(text("SHOW server_version")))
        assert version.scalar_one()


@pytest.mark.parametrize(
    ("more", "threshold"),
    [("", 5), ("?prepare_threshold=0", 0), ("?prepare_threshold=none", None)],
)
def test_how_soon_a_statement_is_prepared_is_for_the_url_to_say(
    postgres: PostgresServer, more: str, threshold: int | None
) -> None:
    with closing(open_database(postgres.url("postgres") + more)) as database:
        for engine in (database.writer, database.reader):
            with engine.connect() as connection:
                assert connection.scalar(text("SELECT 1")) == 1
                assert connection.connection.dbapi_connection.prepare_threshold == threshold  # type: ignore[union-attr]


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+pysqlite"])
def test_sqlite_is_reached_by_each_of_its_schemes(tmp_path: Path, scheme: str) -> None:
    with closing(open_database(f"{scheme}:///{tmp_path}/operations.db")) as database:
        assert database.read(lambda connection: connection.scalar(text("SELECT 1"))) == 1
        assert (tmp_path / "operations.db").exists()


def test_opening_a_database_connects_to_nothing(tmp_path: Path) -> None:
    open_database(f"sqlite:///{tmp_path}/operations.db").close()
    open_database("postgresql://127.0.0.1:1/nothing").close()
    # The file is there, for this user alone, before SQLite would make it for others too.
    assert [(file.name, file.stat().st_size) for file in tmp_path.iterdir()] == [
        ("operations.db", 0)
    ]


@pytest.mark.parametrize(
    "place",
    ["localhost:1", "no-such-host.invalid", "%2Fno%2Fsuch%2Fdirectory", "127.0.0.1:1,127.0.0.1:2"],
)
def test_a_server_that_is_not_there_may_come(place: str) -> None:
    url = f"postgresql://{place}/nothing?user=tests"
    with closing(open_database(url)) as database, pytest.raises(StoreUnavailable) as failed:
        database.check_connections()
    assert f"postgresql://{place}/nothing is not available" in str(failed.value)


def test_a_server_that_cannot_be_reached_is_unavailable_and_its_password_is_not_told() -> None:
    with closing(open_database(f"postgresql://user:{SECRET}@127.0.0.1:1/nothing")) as database:
        with pytest.raises(StoreUnavailable) as failed:
            database.check_connections()
        assert "The database postgresql://127.0.0.1:1/nothing is not available" in str(failed.value)
        assert SECRET not in "".join(traceback.format_exception(failed.value)) + repr(database)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("53100", StoreFull),  # disk full
        ("53200", StoreUnavailable),  # out of memory
        ("53300", StoreUnavailable),  # too many connections
        ("57P03", StoreUnavailable),  # cannot connect now
        ("57014", StoreUnavailable),  # query canceled
        ("55P03", StoreBusy),  # lock not available
        ("25006", StoreUnavailable),  # read-only transaction
        ("08006", StoreUnavailable),  # connection failure
        ("23505", StoreError),  # unique violation
        ("42501", StoreError),  # insufficient privilege
        ("XX000", StoreError),  # internal error
    ],
)
def test_what_postgresql_says_decides_whether_to_try_again(
    postgres: PostgresServer, state: str, expected: type[StoreError]
) -> None:
    with closing(open_database(postgres.url("postgres"))) as database:
        raising = f"DO $$ BEGIN RAISE 'no' USING ERRCODE = '{state}'; END $$"
        with pytest.raises(StoreError) as failed:
            database.write(lambda connection: connection.execute(text(raising)))
        assert type(failed.value) is expected


def fail_at_a_constraint(database: Database) -> object:
    """A row without `method`, which PostgreSQL quotes in its message."""
    row = {
        "id": new_id(),
        "parent": "",
        "description": SECRET,
        "created_by": "",
        "created_at": 0,
        "modified_at": 0,
        "revision": 1,
        "done": False,
        "metadata": SECRET.encode(),
        "cancel_policy": CancelPolicy.IMMEDIATE,
        "retention": DAY,
    }
    return database.write(lambda connection: connection.execute(insert(operations), row))


def fail_at_a_statement(database: Database) -> object:
    broken = Repository(clock=literal_column("no_such_clock()"))
    start = Start(new_id(), DAY, description=SECRET, metadata=SECRET.encode())
    return apply_one(database, start, broken)


@pytest.mark.parametrize("fail", [fail_at_a_constraint, fail_at_a_statement])
def test_an_error_keeps_its_cause_but_never_what_was_to_be_stored(
    database: Database, fail: Callable[[Database], object]
) -> None:
    with pytest.raises(StoreError) as failed:
        fail(database)
    assert type(failed.value) is StoreError
    assert str(failed.value) == "The database failed."
    assert failed.value.__cause__ is not None
    told = "".join(traceback.format_exception(failed.value))
    assert "Error" in told
    assert SECRET not in told
    assert SECRET.encode().hex() not in told


def test_a_database_that_keeps_every_promise_gives_no_warning(database: Database) -> None:
    assert database.warnings() == []


def test_a_server_that_may_lose_what_it_acknowledged_is_warned_of(postgres: PostgresServer) -> None:
    url = postgres.create_database()
    name = url.rsplit("/", 1)[1]
    postgres.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    with closing(open_database(url)) as database:
        (warning,) = database.warnings()
        assert "synchronous_commit=off" in warning


@pytest.mark.parametrize(
    ("version", "warned"), [("3.40.1", True), ("3.51.2", True), ("3.51.3", False), ("3.100", False)]
)
def test_a_sqlite_that_can_corrupt_the_file_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, warned: bool
) -> None:
    monkeypatch.setattr("opservice.store.drivers.sqlite.driver.dbapi.sqlite_version", version)
    with closing(open_database(f"sqlite:///{tmp_path}/operations.db")) as database:
        assert [version in warning for warning in database.warnings()] == [True] * warned
