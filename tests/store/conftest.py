"""The store on a clock that the test sets, so that no test sleeps."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import delete

from opservice.common import tracing
from opservice.domain.operation import (
    DAY,
    SECOND,
    CancelPolicy,
    Command,
    Failure,
    Outcome,
    Record,
    Start,
    Sweep,
    hash_lease_token,
    new_id,
)
from opservice.store.drivers.postgresql.connections import Connections
from opservice.store.drivers.postgresql.driver import PostgresqlDriver
from opservice.store.engine import Database, open_database
from opservice.store.repository import Repository
from opservice.store.schema import operations
from opservice.store.sql import clock_that_says
from support.postgres import PostgresServer

EPOCH = 1_700_000_000 * SECOND
"""When every test begins."""

CANCELLED = Failure(1, b"cancelled")
ABORTED = Failure(10, b"lease lapsed")
DEADLINE_EXCEEDED = Failure(4, b"timed out")
INTERNAL = Failure(13, b"it broke")

Refusal = TypeVar("Refusal", bound=Exception)


class Clock:
    """Microseconds since the epoch, as the test says."""

    def __init__(self) -> None:
        self.now = EPOCH

    def advance(self, microseconds: int) -> None:
        self.now += microseconds


class Ops:
    """Applies commands, each call in a transaction of its own; what is refused, it raises."""

    def __init__(self, database: Database, repository: Repository) -> None:
        self.database = database
        self.repository = repository

    def batch(self, commands: Sequence[Command]) -> list[Outcome | Exception]:
        """One transaction; refusals are among the outcomes."""
        return [*self.database.write(lambda c: self.repository.apply(c, commands))]

    def apply(self, command: Command) -> Outcome:
        (outcome,) = self.batch([command])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def refusal(self, command: Command, expected: type[Refusal]) -> Refusal:
        with pytest.raises(expected) as caught:
            self.apply(command)
        assert type(caught.value) is expected
        return caught.value

    def find(self, operation_id: str) -> Record | None:
        found = self.database.read(lambda c: self.repository.find(c, [operation_id]))
        assert set(found) <= {operation_id}
        return found.get(operation_id)

    def get(self, operation_id: str) -> Record:
        record = self.find(operation_id)
        assert record is not None, operation_id
        return record

    def sweep(self, sweep: Sweep) -> tuple[str, ...]:
        return self.database.write(
            lambda c: self.repository.sweep(c, sweep, self.repository.read_clock(c)[0])
        ).ids

    def start(
        self,
        *,
        id: str = "",  # noqa: A002 - as the field of Start
        token: str = "",
        policy: CancelPolicy = CancelPolicy.IMMEDIATE,
        lease: int | None = None,
        timeout: int | None = None,
        retention: int = DAY,
        metadata: bytes | None = None,
    ) -> Record:
        """A new running operation."""
        id_ = id or new_id()
        command = Start(
            id=id_,
            retention=retention,
            metadata=metadata,
            cancel_policy=policy,
            lease=lease,
            lease_token_hash=hash_lease_token(id_, token),
            timeout=timeout,
        )
        return self.apply(command).record


def connections_of(database: Database) -> Connections:
    """Those to PostgreSQL."""
    assert isinstance(database.driver, PostgresqlDriver)
    return database.driver.connections


_CLOCK = Clock()


@pytest.fixture
def clock() -> Clock:
    """One for all tests, and so is the repository on it: to make its statements takes as long as a test."""
    _CLOCK.now = EPOCH
    return _CLOCK


@cache
def repository_on(clock: Clock) -> Repository:
    return Repository(clock_that_says(lambda: clock.now))


@contextmanager
def migrated_database(request: pytest.FixtureRequest, directory: Path) -> Iterator[Database]:
    """A new database with the schema, of the kind that is the fixture's parameter."""
    if request.param == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("postgres")
        url = postgres.create_database(request.getfixturevalue("migrated_template"))
    else:
        copy = shutil.copyfile(
            request.getfixturevalue("migrated_file"), directory / "operations.db"
        )
        url = f"sqlite:///{copy}"
    with closing(open_database(url)) as opened:
        yield opened


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def shared_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """A database for one test after another: making one takes longer than most of them."""
    with migrated_database(request, tmp_path_factory.mktemp("store")) as database:
        yield database


@pytest.fixture
def ops(shared_database: Database, clock: Clock) -> Ops:
    """The store, empty, on the test's clock."""
    shared_database.write(lambda connection: connection.execute(delete(operations)))
    return Ops(shared_database, repository_on(clock))


@pytest.fixture
def promote(database: Database, postgres: PostgresServer) -> Callable[[], None]:
    """A database whose new sessions cannot write, until this is called."""
    name = database.url.database
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")

    def promote() -> None:
        postgres.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")

    return promote


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What is traced during the test."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces = tracing.Traces(provider.get_tracer("tests"), provider)
    monkeypatch.setattr(tracing, "_active", [traces])
    return exporter
