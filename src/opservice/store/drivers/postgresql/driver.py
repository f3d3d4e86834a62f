"""The driver of PostgreSQL: its connections, and what they are set to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from opservice.domain.errors import StoreError, StoreUnavailable
from opservice.domain.operation import Origin, Record
from opservice.store.drivers.postgresql import faults, settings
from opservice.store.drivers.postgresql import sql as sql
from opservice.store.drivers.postgresql.connections import BACKEND, Connections, through_pooler
from opservice.store.drivers.postgresql.fast_reads import PostgresqlReads
from opservice.store.drivers.postgresql.notifications import PostgresqlNotifications
from opservice.store.drivers.postgresql.settings import connect_arguments
from opservice.store.drivers.protocol import Lookup, Read, Retry, Run


class PostgresqlDriver:
    """A database of PostgreSQL, reached directly or through a pooler."""

    embedded = False

    def __init__(self, parameters: Mapping[str, Any], readers: int) -> None:
        """`parameters` are those of the URL, under the names of psycopg."""
        self.connections = Connections(connect_arguments(parameters))
        shared: dict[str, Any] = {
            "connect_args": dict(self.connections.arguments),
            "hide_parameters": True,  # payloads do not belong in a log
            "max_overflow": 0,
            "pool_timeout": settings.CONNECT_SECONDS,
        }
        url = URL.create("postgresql+psycopg")
        self.writer: Engine = create_engine(url, pool_size=2, **shared)
        self.reader: Engine = create_engine(
            url,
            pool_size=readers,
            isolation_level="AUTOCOMMIT",
            pool_reset_on_return=None,
            **shared,
        )
        for engine in (self.writer, self.reader):
            self.connections.watch(engine)
            event.listen(engine, "connect", self._on_connect)
            event.listen(engine, "handle_error", faults.hide_rows)

    def _on_connect(self, connection: Any, _record: object) -> None:
        try:
            if not self.connections.may_prepare() or through_pooler(connection):
                connection.prepare_threshold = None
        except BaseException:
            self.connections.forget(connection)
            connection.close()
            raise

    def unfit(self, connection: Connection) -> str | None:
        """An encoding that does not hold every text, or time limits that are not in force."""
        return faults.unfit(connection)

    def lasting_fault(self, error: DBAPIError) -> str | None:
        return faults.lasting_fault(error)

    def warnings(self, connection: Connection) -> list[str]:
        """Settings of the server with which a crash loses what was acknowledged."""
        return [
            f"PostgreSQL has {setting}=off: acknowledged operations may be lost in a crash"
            for setting in ("fsync", "full_page_writes", "synchronous_commit")
            if connection.execute(text(f"SHOW {setting}")).scalar_one() == "off"
        ]

    def through_pooler(self, connection: Connection) -> bool:
        # By SQLAlchemy, so that what is raised is known to concern the connection, which is replaced.
        backend = connection.exec_driver_sql(BACKEND).scalar_one()
        driver_connection: Any = connection.connection.dbapi_connection
        return bool(backend != driver_connection.info.backend_pid)

    def retry(self, error: DBAPIError) -> Retry | None:
        state = faults.sqlstate(error)
        if state == faults.READ_ONLY_STATE:
            # After a failover the pool may still lead to what is now a standby.
            self.connections.replace()
        if state in faults.CONFLICT_STATES:
            return Retry.CONFLICT
        if state in faults.UNPREPARED_STATES:
            # Something between us and PostgreSQL that was not recognized has dropped it.
            self.connections.stop_preparing()
            return Retry.PREPARATION
        return Retry.CONNECTION if error.connection_invalidated else None

    def store_error(self, error: DBAPIError) -> StoreError:
        return faults.store_error(error)

    def refuse_if_lost(self) -> None:
        """Nothing: there is no file."""

    def check_files(self) -> None:
        """Nothing."""

    def when_lost(self, tell: Callable[[], object]) -> None:
        """Nothing."""

    def limit_lock_waits(self, connection: Connection, milliseconds: int) -> None:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {milliseconds}")

    def lift_time_limits(self, connection: Connection) -> None:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL lock_timeout = 0"))

    def prove_write(self, connection: Connection) -> None:
        # The message alone would be taken in a read-only session, too, and beside a lock on the table.
        connection.exec_driver_sql(
            "WITH nothing AS (UPDATE operations SET id = id WHERE false)"
            " SELECT pg_logical_emit_message(true, 'opservice', '')"
        )

    def checkpoint(self, connection: Connection) -> None:
        """Nothing: PostgreSQL does it by itself."""

    def fast_reads(self, records: Lookup[Record], origins: Lookup[Origin]) -> PostgresqlReads:
        return PostgresqlReads(self.connections, records, origins)

    def notifications(self, read: Read, run: Run) -> PostgresqlNotifications:
        return PostgresqlNotifications(self.connections.arguments, read, run)

    async def shut_down_frozen(self, seconds: float) -> int:
        try:
            return await self.connections.shut_down_frozen(seconds)
        except psycopg.Error as error:
            raise StoreUnavailable from error

    def close(self) -> None:
        self.connections.replace()
        self.writer.dispose()
        self.reader.dispose()
