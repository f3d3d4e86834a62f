"""A connection for reads on the event loop, and queries that are compiled once for it.

To a query that takes SQLite 10 microseconds SQLAlchemy's execution adds 50: a quarter of a Get. To one that
is sent to PostgreSQL it and psycopg's cursor add four times what libpq takes.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import Dialect, LargeBinary, Select
from sqlalchemy.sql.compiler import SQLCompiler

from opservice.common.loggers import get_logger
from opservice.store.drivers.protocol import Found, Lookup

log = get_logger("opservice.store")

RECONNECT_SECONDS = 1
"""Between one attempt to connect and the next."""


class Closable(Protocol):
    """A connection of any driver."""

    def close(self) -> None:
        """Also when it is lost."""


Opened = TypeVar("Opened", bound=Closable)


class FastConnection(ABC, Generic[Opened]):
    """Is made in the background when there is none, and dropped when a read fails."""

    def __init__(self) -> None:
        self._connection: Opened | None = None
        self._made_in: object = None
        self._connecting: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self._told = False
        """Whether it is logged that there is none."""
        self._closed = False

    def close(self) -> None:
        """For good: no other is made."""
        self._closed = True
        self._disconnect()

    @abstractmethod
    async def _open(self) -> Opened:
        """Raises one of `_failures` when no connection can be made."""

    _failures: tuple[type[Exception], ...]
    """What `_open` raises."""

    def _generation(self) -> object:
        """Another one when connections that were made before must not be used again."""
        return None

    def _connected(self) -> Opened | None:
        if self._connection is not None:
            if self._made_in is self._generation():
                return self._connection
            self._disconnect()
        if self._connecting is None and not self._closed:
            now = asyncio.get_running_loop().time()
            if now >= self._not_before:
                self._not_before = now + RECONNECT_SECONDS
                self._connecting = asyncio.create_task(self._connect())
        return None

    async def _connect(self) -> None:
        generation = self._generation()
        try:
            connection = await self._open()
        except self._failures as error:
            self._disconnect(error)
        else:
            self._connection, self._made_in = connection, generation
            self._told = False
            if self._closed:
                self._disconnect()
        finally:
            self._connecting = None

    def _disconnect(self, error: Exception | None = None) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        if error is not None and not self._told:
            self._told = True
            log.warning(
                "reads take a thread, and longer, until a connection for them is made",
                cause=str(error),
            )


class CompiledQuery(Generic[Found]):
    """A query with one parameter that differs each time; of each row something is made."""

    def __init__(
        self, query: Select[Any], parameter: str, lookup: Lookup[Found], dialect: Dialect
    ) -> None:
        """`parameter` is the name of the one that differs."""
        compiled = query.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)
        assert compiled.positiontup is not None
        self.sql = str(compiled)
        self._parameter = parameter
        self._make = lookup.make
        self._parameters = [compiled.binds[name] for name in compiled.positiontup]
        converters = [
            None
            if isinstance(column.type, LargeBinary)  # the drivers make bytes themselves
            else column.type.dialect_impl(dialect).result_processor(dialect, None)
            for column in lookup.columns
        ]
        self._converters = [(at, each) for at, each in enumerate(converters) if each is not None]

    def values(self, given: Any) -> list[Any]:
        """What to send with the query when its parameter is `given`."""
        return [
            given if each.key == self._parameter else each.effective_value
            for each in self._parameters
        ]

    def made(self, row: Sequence[Any]) -> Found:
        """What comes of a row of the driver. Raises ValueError for what this version does not know."""
        values = list(row)
        for at, convert in self._converters:
            values[at] = convert(values[at])
        return self._make(*values)
