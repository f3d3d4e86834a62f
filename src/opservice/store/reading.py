"""Reading operations by their ids, as cheaply as the database allows: clients poll.

From memory, when the operation is done; else on the event loop (the driver's fast_reads.py);
on a thread when that fails. docs/performance.md has what that comes to, and bench/speed.py measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection

from opservice.domain.errors import OperationNotFound, StoreUnavailable
from opservice.domain.operation import Origin, Record
from opservice.store.batching import Batcher
from opservice.store.cache import MEMORY_BYTES, DoneRecords
from opservice.store.engine import Database
from opservice.store.repository import Repository
from opservice.store.statements import ORIGINS

Found = TypeVar("Found")
Find = Callable[[Connection, Iterable[str]], Mapping[str, Found]]


class Reads:
    """Reads for many callers at once."""

    def __init__(
        self,
        database: Database,
        repository: Repository,
        on_hang: Callable[[float], object] = lambda _seconds: None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        """`on_hang` is that of Batcher, `memory_bytes` that of OperationStore."""
        self._database = database
        self._memory = DoneRecords(memory_bytes)
        self._forgotten = 0
        self._fast = database.driver.fast_reads(repository.records, ORIGINS)
        self._batches: Batcher[str, Record] = Batcher(
            "store-read",
            partial(self._read, repository.find),
            on_loop=self._fast.find,
            on_hang=self._hang,
        )
        self._origins: Batcher[str, Origin] = Batcher(
            "store-origin",
            partial(self._read, repository.origins),
            on_loop=self._fast.origins,
            on_hang=self._hang,
        )
        self._on_hang = on_hang

    async def get(self, operation_id: str) -> Record:
        """The operation, as of some moment after the call. Raises OperationNotFound or a StoreError."""
        self._database.driver.refuse_if_lost()
        record = self._memory.get(operation_id)
        if record is not None:
            return record
        forgotten = self._forgotten
        record = self._fast.get(operation_id)
        if record is None:
            record = await self._batches.submit(operation_id)
        # An id that was derived from an idempotency key may come again, as another operation.
        if record.done and record.request_hash is None and forgotten == self._forgotten:
            self._memory.put(record)
        return record

    async def origin(self, operation_id: str, *, remembered: bool = True) -> Record | Origin:
        """Who may see the operation, by a query that does not read its payloads (statements.py).

        Also of one that has expired and is not deleted yet. What is `remembered` is not asked for. Raises as
        `get` does.
        """
        self._database.driver.refuse_if_lost()
        found: Record | Origin | None = self._memory.get(operation_id) if remembered else None
        if found is None:
            found = self._fast.origin(operation_id)
        return await self._origins.submit(operation_id) if found is None else found

    def database_clock_read(self, database_clock: int, began: float) -> None:
        """As DoneRecords has it; `began` is monotonic."""
        self._memory.database_clock_read(database_clock, began)

    def forget(self, operation_id: str) -> None:
        """It was deleted: neither what is in memory of it nor what is being read is to stay there."""
        self._forgotten += 1
        self._memory.drop(operation_id)

    async def close(self) -> None:
        """Waits for what was asked for."""
        await self._batches.close()
        await self._origins.close()
        self._fast.close()

    def _hang(self, seconds: float) -> None:
        self._fast.give_up()
        self._on_hang(seconds)

    def _read(self, find: Find[Found], ids: Sequence[str]) -> list[Found | Exception]:
        try:
            found = self._database.read(lambda c: find(c, set(ids)))
        except StoreUnavailable:
            raise
        except Exception:
            if len(ids) == 1:
                raise
        else:
            return [found.get(id_) or OperationNotFound(id_) for id_ in ids]
        # One of them cannot be read: each for itself, so that the others do not suffer from it.
        results: list[Found | Exception] = []
        for id_ in ids:
            try:
                results += self._read(find, [id_])
            except Exception as error:  # noqa: BLE001 - goes to the caller
                results.append(error)
        return results
