"""Notices what other processes write to the same file, by SQLite's `data_version`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from functools import partial

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from opservice.store.drivers.protocol import Driver, Run

_TICK_SECONDS = 0.02
_DATA_VERSION = text("PRAGMA data_version")


class SqliteNotifications:
    """Nothing is sent: each commit shows to all who look."""

    sends = False

    def __init__(self, driver: Driver, run: Run) -> None:
        self._driver = driver
        self._run = run

    async def send(self, operation_ids: Iterable[str]) -> None:
        """Nothing."""

    async def receive(self) -> AsyncGenerator[Sequence[str] | None]:
        """None after every commit, this process's as well: SQLite does not tell them apart."""
        try:
            connection = await self._run(self._driver.reader.connect)
            with connection:
                seen = None
                while True:
                    version = await self._run(partial(connection.scalar, _DATA_VERSION))
                    if version != seen:
                        seen = version
                        yield None
                    await asyncio.sleep(_TICK_SECONDS)
        except DBAPIError as error:
            raise self._driver.store_error(error) from error
