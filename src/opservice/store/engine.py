"""A database: running transactions on it, and turning what drivers raise into our errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from opservice.common.jitter import jitter
from opservice.common.metrics import BEGIN_SECONDS, CONFLICTS, CONNECTIONS
from opservice.domain.errors import StartupError, StoreError, StoreUnavailable
from opservice.store.drivers import Driver, open_driver
from opservice.store.drivers.protocol import Retry
from opservice.store.urls import DatabaseUrl, parse_database_url

Result = TypeVar("Result")

_CONFLICT_RETRIES = 8
_FIRST_BACKOFF_SECONDS = 0.005


@dataclass(frozen=True)
class Database:
    """Runs work on a database, whatever its kind, and again where that mends what went wrong.

    Its methods may be called on any thread, and wait for the database there.
    """

    url: DatabaseUrl
    driver: Driver

    @property
    def writer(self) -> Engine:
        """As Driver has it."""
        return self.driver.writer

    @property
    def reader(self) -> Engine:
        """As Driver has it."""
        return self.driver.reader

    def check_connections(self) -> None:
        """Connects as reader and as writer.

        Raises StartupError for what trying again would not mend, for an encoding that does not hold every
        text, and when time limits that the server relies on are not in force; StoreUnavailable for the rest.
        """
        for engine in (self.reader, self.writer):
            try:
                with engine.connect() as connection:
                    fault = self.driver.unfit(connection)
                if fault is not None:
                    raise StartupError(f"the database {self.url.shown} cannot be used: {fault}")
            except DBAPIError as error:
                fault = self.driver.lasting_fault(error)
                if fault is not None:
                    raise StartupError(
                        f"the database {self.url.shown} cannot be used: {fault}"
                    ) from error
                failed = self.driver.store_error(error)
                if type(failed) is StoreUnavailable:
                    failed = StoreUnavailable(
                        f"The database {self.url.shown} is not available at the moment."
                    )
                raise failed from error

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Runs `work` in one transaction, committed when this returns.

        It may run more than once: after a serialization failure or a deadlock, and once more when the
        connection is lost. A commit whose answer was lost may have happened, so `work` must be made of
        conditional statements that find out by reading whether they took effect before (those of
        the repository are).

        Raises StoreUnavailable (StoreFileLost when SQLite's file is not there any more), StoreFull, or
        StoreError for what nobody expected.
        """

        def transaction() -> Result:
            with self.writer.connect() as connection:
                began = time.perf_counter()
                try:
                    beginning = connection.begin()
                finally:  # those that could not begin have waited longest
                    BEGIN_SECONDS.observe(time.perf_counter() - began)
                with beginning:
                    result = work(connection)
            self.driver.check_files()  # before anybody is told that it is durable
            return result

        return self._run(transaction)

    def read(self, work: Callable[[Connection], Result]) -> Result:
        """Runs `work` without a transaction: every statement sees all that was committed before it.

        Raises as `write` does.
        """

        def statement() -> Result:
            self.driver.check_files()
            with self.reader.connect() as connection:
                return work(connection)

        return self._run(statement)

    def prove_write(self) -> None:
        """Returns once a write that changes nothing has become durable. Raises as `write` does."""
        self.write(self.driver.prove_write)

    def checkpoint(self) -> None:
        """Tidies up an embedded database; does nothing on others. Raises as `read` does."""
        if self.driver.embedded:
            self.read(self.driver.checkpoint)

    def warnings(self) -> list[str]:
        """What an operator should know of how far this database keeps its promises. Raises as `read` does."""
        return self.read(self.driver.warnings)

    def through_pooler(self) -> bool:
        """Whether something between the server and the database shares connections out. Raises as `read`."""
        return self.read(self.driver.through_pooler)

    def close(self) -> None:
        """Closes all connections."""
        self.driver.close()

    def _run(self, attempt: Callable[[], Result]) -> Result:
        conflicts, reconnected, unprepared = 0, False, False
        while True:
            self.driver.refuse_if_lost()
            try:
                return attempt()
            except DBAPIError as error:
                match self.driver.retry(error):
                    case Retry.CONFLICT if conflicts < _CONFLICT_RETRIES:
                        time.sleep(_FIRST_BACKOFF_SECONDS * 2**conflicts * jitter.uniform(0.5, 1))
                        conflicts += 1
                        CONFLICTS.inc()
                    case Retry.PREPARATION if not unprepared:
                        unprepared = True
                    case Retry.CONNECTION if not reconnected:
                        reconnected = True
                    case _:
                        raise self.driver.store_error(error) from error
            except PoolTimeout as error:
                raise StoreUnavailable from error
            except SQLAlchemyError as error:
                raise StoreError from error


def open_database(
    url: str, *, readers: int = 4, group: int | None = None, create: bool = True
) -> Database:
    """Makes a database of a URL; connects to nothing yet.

    `readers` is the number of connections for reading. The group with the number `group` may use SQLite's
    files, too. With `create` an SQLite file is made when there is none.
    Raises StartupError when the URL is not one of a durable SQLite file or of PostgreSQL.
    """
    parsed = parse_database_url(url)
    driver = open_driver(parsed, readers=readers, group=group, create=create)
    for engine in {driver.reader, driver.writer}:
        event.listen(engine.pool, "connect", lambda *_: CONNECTIONS.inc())
        event.listen(engine.pool, "close", lambda *_: CONNECTIONS.dec())
    return Database(parsed, driver)
