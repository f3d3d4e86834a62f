"""Queries to PostgreSQL on the event loop, by libpq itself: psycopg's cursors take more than twice the time.

https://www.postgresql.org/docs/current/libpq-async.html says what may be called when.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from psycopg import AsyncConnection, Error, OperationalError
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

Row = TypeVar("Row")


class LoopConnection:
    """Statements on a connection in autocommit, one at a time.

    It belongs to the event loop on which it was made, and takes over psycopg's connection. When that is lost,
    whoever waits is told so by a psycopg.Error, and so is whoever asks later.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._transformer = Transformer(connection)
        self._prepared: set[bytes] = set()
        self._lost = False
        self._result: PGresult | None = None
        self._answer: asyncio.Future[PGresult] | None = None
        self._loop = asyncio.get_running_loop()
        self._socket = self._pgconn.socket
        self._loop.add_reader(self._socket, self._receive)

    async def prepare(self, name: bytes, statement: bytes) -> None:
        """Raises a psycopg.Error."""
        self._pgconn.send_prepare(name, statement)
        await self._sent()
        self._prepared.add(name)

    async def fetch(
        self,
        name: bytes,
        statement: bytes,
        values: Sequence[Any],
        make_row: Callable[[Sequence[Any]], Row],
    ) -> list[Row]:
        """Runs a statement, by its name if it was prepared here.

        Raises a psycopg.Error, or what `make_row` raises.
        """
        dumped = self._transformer.dump_sequence(values, [PyFormat.AUTO] * len(values))
        formats = self._transformer.formats
        if name in self._prepared:
            self._pgconn.send_query_prepared(name, dumped, formats, result_format=Format.BINARY)
        else:
            # One message group, which poolers give to one connection.
            self._pgconn.send_query_params(
                statement, dumped, None, formats, result_format=Format.BINARY
            )
        result = await self._sent()
        self._transformer.set_pgresult(result)
        return self._transformer.load_rows(0, result.ntuples, make_row)

    def close(self) -> None:
        """Whoever waits for a result is told so by a psycopg.Error."""
        self._lose(OperationalError("the connection was closed"))

    async def _sent(self) -> PGresult:
        """The result of what was just sent."""
        self._answer = self._loop.create_future()
        if self._pgconn.flush():
            self._loop.add_writer(self._socket, self._flush)
        result = await self._answer
        if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            raise error_from_result(result, self._transformer.encoding)
        return result

    def _flush(self) -> None:
        """The rest of what the socket did not take at once."""
        try:
            if not self._pgconn.flush():
                self._loop.remove_writer(self._socket)
        except Error as error:
            self._lose(error)

    def _receive(self) -> None:
        try:
            self._pgconn.consume_input()
            while self._pgconn.notifies() is not None:
                pass  # Behind a pooler they may come from another's LISTEN, and libpq would keep them all.
            while not self._pgconn.is_busy():
                result = self._pgconn.get_result()
                if result is None:
                    break
                self._result = result
            else:
                return
        except Error as error:
            self._lose(error)
            return
        answer, self._answer = self._answer, None
        result, self._result = self._result, None
        if answer is not None and result is not None and not answer.done():
            answer.set_result(result)

    def _lose(self, error: Error) -> None:
        if self._lost:
            return
        self._lost = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._pgconn.finish()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
