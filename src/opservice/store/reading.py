"""Reading operations by their ids, as cheaply as the database allows: clients poll.

From memory, when the operation is done; on SQLite by the event loop itself; else in batches on a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from opservice.errors import OperationNotFound
from opservice.operation import SECOND, Record
from opservice.store.batching import MAX_BATCH, Batcher
from opservice.store.engine import Database
from opservice.store.repository import Repository

MEMORY_BYTES = 64 << 20
MEMORY_SECONDS = 5
"""How long a done operation is answered from memory: so long it may not be noticed that another process
has deleted it."""

_RECORD_BYTES = 1_500
"""What a record takes beside its payloads."""


class Reads:
    """Reads for many callers at once."""

    def __init__(self, database: Database, repository: Repository) -> None:
        self._database = database
        self._repository = repository
        self._memory = DoneRecords(MEMORY_BYTES)
        self._batches: Batcher[str, Record] = Batcher("store-read", self._read)
        self._turns = LoopReads(database, repository) if database.is_sqlite else None

    async def get(self, operation_id: str) -> Record:
        """The operation, as of some moment after the call. Raises OperationNotFound or a StoreError."""
        record = self._memory.get(operation_id)
        if record is None and self._turns is not None:
            record = await self._turns.get(operation_id)
        if record is None:
            record = await self._batches.submit(operation_id)
        if record.done:
            self._memory.put(record)
        return record

    def forget(self, operation_ids: Iterable[str]) -> None:
        """Of operations that were deleted."""
        self._memory.drop(operation_ids)

    async def close(self) -> None:
        await self._batches.close()
        if self._turns is not None:
            self._turns.close()

    def _read(self, ids: Sequence[str]) -> list[Record | Exception]:
        found = self._database.read(lambda connection: self._repository.find(connection, set(ids)))
        return [found.get(id_) or OperationNotFound(id_) for id_ in ids]


class DoneRecords:
    """Done operations in memory: they never change. The least recently used make room."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, tuple[Record, float]] = OrderedDict()

    def get(self, operation_id: str) -> Record | None:
        kept = self._kept.get(operation_id)
        if kept is None:
            return None
        record, until = kept
        now = time.time()
        if now > until:
            self.drop((operation_id,))
            return None
        self._kept.move_to_end(operation_id)
        return record

    def put(self, record: Record) -> None:
        if record.id in self._kept:
            return
        assert record.expires_at is not None
        until = min(time.time() + MEMORY_SECONDS, record.expires_at / SECOND)
        self._kept[record.id] = record, until
        self._bytes += _size(record)
        while self._bytes > self._max_bytes:
            _, (oldest, _) = self._kept.popitem(last=False)
            self._bytes -= _size(oldest)

    def drop(self, operation_ids: Iterable[str]) -> None:
        for operation_id in operation_ids:
            kept = self._kept.pop(operation_id, None)
            if kept is not None:
                self._bytes -= _size(kept[0])


def _size(record: Record) -> int:
    payloads = (record.metadata, record.response, record.error)
    return _RECORD_BYTES + sum(len(payload) for payload in payloads if payload is not None)


class LoopReads:
    """Reads on the event loop itself, in one query, what its callers ask for in one of its turns.

    SQLite answers from memory in less time than it takes to wake a thread. It is never waited for here:
    a read that would have to wait, or fails, has no result, and is to go through a thread.
    """

    def __init__(self, database: Database, repository: Repository) -> None:
        self._database = database
        self._repository = repository
        self._connection: Connection | None = None
        self._asked: dict[str, list[asyncio.Future[Record | None]]] = {}

    async def get(self, operation_id: str) -> Record | None:
        """The operation, or None when it must be looked for by other means. Raises OperationNotFound."""
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._run)
        future: asyncio.Future[Record | None] = loop.create_future()
        self._asked.setdefault(operation_id, []).append(future)
        return await future

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _run(self) -> None:
        asked, self._asked = self._asked, {}
        ids = [*asked]
        found: dict[str, Record] = {}
        try:
            if self._connection is None:
                self._connection = self._database.connect_without_waiting()
            for start in range(0, len(ids), MAX_BATCH):
                found |= self._repository.find(self._connection, ids[start : start + MAX_BATCH])
        except SQLAlchemyError:
            failed = True
            self.close()
        else:
            failed = False
        for id_, futures in asked.items():
            for future in futures:
                if future.done():
                    continue
                if failed:
                    future.set_result(None)
                elif id_ in found:
                    future.set_result(found[id_])
                else:
                    future.set_exception(OperationNotFound(id_))
