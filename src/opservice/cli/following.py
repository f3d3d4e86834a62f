"""Following operations until they are done, through outages of the server."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Thread

import grpc

from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    WaitOperationRecordRequest,
    WatchOperationRecordRequest,
)
from opservice.cli.connection import Connection
from opservice.common.jitter import jitter
from opservice_client.retries import is_transient, retry_delay

_WAIT_SECONDS = 50.0
"""Of one Wait: below the idle timeouts of most proxies."""
_SHORT_WAIT_SECONDS = 0.5
_ANSWER_SECONDS = 2.0
_FIRST_ANSWER_SECONDS = 0.5  # a Watch of no time should still show the state
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Update:
    """The newest that is known of an operation.

    When `ended`, nothing follows: it is done, or there is an error, or the time has run out.
    """

    operation_id: str
    record: OperationRecord | None
    error: grpc.RpcError | None = None
    ended: bool = False


class Follower:
    """Follows several operations at once, by Watch or else by Wait. Times are seconds.

    It ends with UNAVAILABLE for an operation when the server is away for longer than `reconnect`, or
    was never reached within `timeout`.
    """

    def __init__(
        self, connection: Connection, *, watch: bool, timeout: float | None, reconnect: float
    ) -> None:
        self._connection = connection
        self._states = self._watched if watch else self._waited
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._reconnect = reconnect
        self._updates: SimpleQueue[Update] = SimpleQueue()
        self._stopped = Event()

    def follow(self, operation_ids: Collection[str]) -> Iterator[Update]:
        for operation_id in operation_ids:
            Thread(target=self._follow, args=(operation_id,), daemon=True).start()
        running = len(operation_ids)
        try:
            while running:
                update = self._updates.get()
                running -= update.ended
                yield update
        finally:
            self._stopped.set()

    def _follow(self, operation_id: str) -> None:
        record: OperationRecord | None = None
        error: grpc.RpcError | None = None
        failing_since: float | None = None
        pause = _FIRST_PAUSE_SECONDS
        while True:
            asked = 0.0
            try:
                for newest in self._states(operation_id, failing_since is not None):
                    failing_since, pause = None, _FIRST_PAUSE_SECONDS
                    if newest.operation.done:
                        self._updates.put(Update(operation_id, newest, ended=True))
                        return
                    if record is None or newest.revision > record.revision:
                        record = newest
                        self._updates.put(Update(operation_id, record))
            except grpc.RpcError as raised:
                now = time.monotonic()
                error = raised
                failing_since = now if failing_since is None else failing_since
                lasting = now - failing_since >= self._reconnect
                asked = retry_delay(error)
                if not is_transient(error) or (lasting and not self._is_late()):
                    self._updates.put(Update(operation_id, record, error, ended=True))
                    return
            except ValueError:  # the channel was closed: nobody listens any more
                return
            if self._is_late():
                late = Update(operation_id, record, error if record is None else None, ended=True)
                self._updates.put(late)
                return
            next_try = max(asked, pause * jitter.uniform(0.5, 1))
            if self._stopped.wait(
                next_try if (left := self._left()) is None else min(next_try, left)
            ):
                return
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _waited(self, operation_id: str, failing: bool) -> Iterator[OperationRecord]:
        # A short one after a failure tells a proxy that cuts long ones from a server that is away.
        seconds = _SHORT_WAIT_SECONDS if failing else _WAIT_SECONDS
        if (left := self._left()) is not None:
            seconds = min(left, seconds)
        request = WaitOperationRecordRequest(operation_id=operation_id)
        request.timeout.FromMicroseconds(int(seconds * 1e6))
        yield self._connection.records.Wait(
            request, timeout=seconds + _ANSWER_SECONDS, metadata=self._connection.metadata
        )

    def _watched(self, operation_id: str, _failing: bool) -> Iterator[OperationRecord]:
        left = self._left()
        yield from self._connection.records.Watch(
            WatchOperationRecordRequest(operation_id=operation_id),
            timeout=None if left is None else max(left, _FIRST_ANSWER_SECONDS),
            metadata=self._connection.metadata,
        )

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _is_late(self) -> bool:
        return self._left() == 0.0
