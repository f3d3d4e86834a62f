"""Tells other processes of changes by NOTIFY, and listens for theirs.

NOTIFY takes a lock on the whole instance while its transaction commits. So it is sent in a transaction of its
own, which writes nothing and waits for no disk, and only for changes that somebody may be waiting for.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import methodcaller
from typing import Any, LiteralString

import psycopg
from sqlalchemy import func, select

from opservice.domain.errors import StoreUnavailable
from opservice.store.drivers.postgresql.connections import PROBE_SECONDS, shut_down_after
from opservice.store.drivers.protocol import Read, Run

_CHANNEL: LiteralString = "opservice_changes"
_MAX_PAYLOAD = 7_900
"""Bytes; PostgreSQL refuses a payload of 8,000 and more."""
LIFE_SIGN_SECONDS = 15
"""How long PostgreSQL may tell nothing until it is asked whether the connection lives."""


class PostgresqlNotifications:
    """One for each process: it passes over what it has sent itself."""

    sends = True

    def __init__(
        self,
        arguments: Mapping[str, Any],
        read: Read,
        run: Run,
    ) -> None:
        """It listens on a connection made with these arguments."""
        self._arguments = arguments
        self._read = read
        self._run = run
        # So that a process does not read again what it has just written itself.
        self._origin = secrets.token_hex(4)

    async def send(self, operation_ids: Iterable[str]) -> None:
        await self._run(partial(self._send, [*_payloads(self._origin, operation_ids)]))

    def _send(self, payloads: Sequence[str]) -> None:
        for payload in payloads:
            notify = select(func.pg_notify(_CHANNEL, payload))
            self._read(methodcaller("execute", notify))

    async def receive(self) -> AsyncGenerator[Sequence[str] | None]:
        """None at first, and then the ids that each notification names."""
        try:
            async with await psycopg.AsyncConnection.connect(
                **self._arguments, autocommit=True
            ) as connection:
                await _ask(connection, f"LISTEN {_CHANNEL}")
                yield None
                while True:
                    async for notification in connection.notifies(timeout=LIFE_SIGN_SECONDS):
                        origin, _, ids = notification.payload.partition(" ")
                        if origin != self._origin:
                            yield ids.split()
                    # A connection that was forgotten on its way tells nothing for ever.
                    await _ask(connection, "SELECT 1")
        except psycopg.Error as error:
            raise StoreUnavailable from error


async def _ask(connection: psycopg.AsyncConnection, statement: LiteralString) -> None:
    """Raises psycopg.Error, also when there is no answer in time."""
    with shut_down_after(PROBE_SECONDS, connection):
        await connection.execute(statement, prepare=False)


def _payloads(origin: str, operation_ids: Iterable[str]) -> Iterator[str]:
    payload = origin
    for operation_id in operation_ids:
        if len(payload) + 1 + len(operation_id) > _MAX_PAYLOAD:
            yield payload
            payload = origin
        payload = f"{payload} {operation_id}"
    if payload != origin:
        yield payload
