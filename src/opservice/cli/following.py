"""Following operations until they are done, or those of a parent, through outages of the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import grpc

from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    BatchWatchOperationRecordsRequest,
    OperationRecordEvent,
    WaitOperationRecordRequest,
    WatchOperationRecordRequest,
)
from opservice.cli.connection import Connection
from opservice.cli.exits import CommandFailed, Exit
from opservice.common.jitter import jitter
from opservice.domain.operation import Removed
from opservice.methods.validation import MAX_IDS
from opservice_client.retries import is_transient, retry_delay

_WAIT_SECONDS = 50.0
"""Of one Wait: below the idle timeouts of most proxies."""
_SHORT_WAIT_SECONDS = 0.5
_ANSWER_SECONDS = 2.0
_FIRST_ANSWER_SECONDS = 0.5  # a Watch of no time should still show the state
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 2.0

_CANNOT_CONTINUE = {
    grpc.StatusCode.ABORTED,  # the token is too old, or what the caller may see has changed
    grpc.StatusCode.INVALID_ARGUMENT,  # the server that gave the token was replaced by another
}

_Call = Callable[[bool], Iterator[OperationRecordEvent | None]]


@dataclass(frozen=True, slots=True)
class Update:
    """The newest that is known of an operation.

    When `ended`, nothing follows: it is done, or `error` says why it is not followed any more.
    """

    operation_id: str
    record: OperationRecord | None
    error: CommandFailed | None = None
    ended: bool = False


class Follower:
    """Follows operations. Times are seconds.

    It gives up when the server is away for longer than `reconnect`, or was never reached within `timeout`.
    """

    def __init__(self, connection: Connection, *, timeout: float | None, reconnect: float) -> None:
        self._connection = connection
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._reconnect = reconnect

    def follow(self, operation_ids: Sequence[str], *, watch: bool) -> Iterator[Update]:
        """How each becomes and ends; without `watch` what comes before the end may be left out.

        Several are followed in one stream. MAX_IDS are followed at a time: the others when these have ended.
        """
        error: CommandFailed | None = None
        for start in range(0, len(operation_ids), MAX_IDS):
            ids = operation_ids[start : start + MAX_IDS]
            if error is None:
                error = yield from self._follow(ids, watch)
            else:
                yield from (Update(id_, None, error, ended=True) for id_ in ids)

    def _follow(
        self, ids: Sequence[str], watch: bool
    ) -> Generator[Update, None, CommandFailed | None]:
        """Returns what keeps all from being followed, if something does."""
        call: _Call
        if len(ids) > 1:
            call = self._stream(BatchWatchOperationRecordsRequest(operation_ids=ids))
        else:
            call = partial(self._watched if watch else self._waited, ids[0])
        newest: dict[str, OperationRecord | None] = dict.fromkeys(ids)
        try:
            for event in self._events(call):
                kind = None if event is None else event.WhichOneof("event")
                if event is None or kind == "caught_up":
                    continue
                id_ = event.removed_id or event.record.operation.id
                if id_ not in newest:
                    continue  # it has ended
                before = newest[id_]
                if kind == "removed_id":
                    missing = self._connection.not_found(id_)
                    yield Update(id_, newest.pop(id_), missing, ended=True)
                elif event.record.operation.done:
                    del newest[id_]
                    yield Update(id_, event.record, ended=True)
                elif before is None or _version(before) < _version(event.record):
                    newest[id_] = event.record
                    yield Update(id_, event.record)
                if not newest:
                    return None
        except grpc.RpcError as raised:
            error = self._connection.failed(raised)
            for id_, record in newest.items():
                yield Update(id_, record, error, ended=True)
            return error
        except _TimeIsUp as late:
            for id_, record in newest.items():
                if record is None and late.error is not None:
                    error = self._connection.failed(late.error)
                else:
                    error = CommandFailed(f"{id_}: not done within --timeout", Exit.TIMED_OUT)
                yield Update(id_, record, error, ended=True)
        return None

    def follow_parent(self, parent: str, filter_: str) -> Iterator[OperationRecord | Removed]:
        """What there is of the operations of a parent, then each change of them. Has no end of its own.

        Raises CommandFailed.
        """
        request = BatchWatchOperationRecordsRequest(parent=parent, filter=filter_)
        known: dict[str, tuple[int, int, int]] = {}
        untold: set[str] = set()
        was_reached = False
        try:
            for event in self._events(self._stream(request)):
                was_reached = True
                if event is None:
                    untold = set(known)
                    continue
                gone: set[str] = set()
                match event.WhichOneof("event"):
                    case "record":
                        id_, version = event.record.operation.id, _version(event.record)
                        untold.discard(id_)
                        if id_ not in known or known[id_] < version:
                            known[id_] = version
                            yield event.record
                    case "removed_id":
                        gone = {event.removed_id} & known.keys()
                    case "caught_up":
                        gone, untold = untold, set()
                for id_ in sorted(gone):
                    del known[id_]
                    yield Removed(id_)
        except grpc.RpcError as raised:
            raise self._connection.failed(raised) from raised
        except _TimeIsUp as late:
            if late.error is not None and not was_reached:
                raise self._connection.failed(late.error) from late
            raise CommandFailed("stopped after --timeout", Exit.TIMED_OUT) from late

    def _events(self, call: _Call) -> Iterator[OperationRecordEvent | None]:
        """What one call after the other tells; each gets whether the one before has failed.

        Raises RpcError when no further one would help, and _TimeIsUp.
        """
        failing_since: float | None = None
        pause = _FIRST_PAUSE_SECONDS
        while True:
            asked, told = 0.0, False
            error: grpc.RpcError | None = None
            try:
                for event in call(failing_since is not None):
                    told, failing_since, pause = True, None, _FIRST_PAUSE_SECONDS
                    yield event
            except grpc.RpcError as raised:
                now = time.monotonic()
                error = None if told else raised
                failing_since = now if failing_since is None else failing_since
                lasting = now - failing_since >= self._reconnect
                if not is_transient(raised) or (lasting and not self._is_late()):
                    raise
                asked = retry_delay(raised)
            if self._is_late():
                raise _TimeIsUp(error)
            next_try = max(asked, pause * jitter.uniform(0.5, 1))
            time.sleep(next_try if (left := self._left()) is None else min(next_try, left))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _waited(self, operation_id: str, failing: bool) -> Iterator[OperationRecordEvent]:
        # A short one after a failure tells a proxy that cuts long ones from a server that is away.
        seconds = _SHORT_WAIT_SECONDS if failing else _WAIT_SECONDS
        if (left := self._left()) is not None:
            seconds = min(left, seconds)
        request = WaitOperationRecordRequest(operation_id=operation_id)
        request.timeout.FromMicroseconds(int(seconds * 1e6))
        record = self._connection.records.Wait(
            request, timeout=seconds + _ANSWER_SECONDS, metadata=self._connection.metadata
        )
        yield OperationRecordEvent(record=record)

    def _watched(self, operation_id: str, _failing: bool) -> Iterator[OperationRecordEvent]:
        for record in self._connection.records.Watch(
            WatchOperationRecordRequest(operation_id=operation_id),
            timeout=self._call_seconds(),
            metadata=self._connection.metadata,
        ):
            yield OperationRecordEvent(record=record)

    def _stream(self, request: BatchWatchOperationRecordsRequest) -> _Call:
        """Calls of which each goes on where the last broke off.

        When that is not possible, or not yet, None is told before everything is told again.
        """

        def events(_failing: bool) -> Iterator[OperationRecordEvent | None]:
            # One that is late ends by itself when all was told that there is.
            seconds = _ANSWER_SECONDS if self._is_late() else self._call_seconds()
            continues = bool(request.resume_token)
            is_complete = False
            told = False
            try:
                for event in self._connection.records.BatchWatch(
                    request,
                    timeout=seconds,
                    metadata=self._connection.metadata,
                ):
                    if not told and not continues:
                        yield None
                    told = True
                    request.resume_token = event.resume_token
                    is_complete = is_complete or event.HasField("caught_up")
                    yield event
                    if is_complete and self._is_late():
                        return
            except grpc.RpcError as error:
                if not (told or continues) or error.code() not in _CANNOT_CONTINUE:
                    raise
                request.resume_token = ""

        return events

    def _call_seconds(self) -> float | None:
        """For a call that lasts."""
        return None if (left := self._left()) is None else max(left, _FIRST_ANSWER_SECONDS)

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _is_late(self) -> bool:
        return self._left() == 0.0


class _TimeIsUp(Exception):
    """The time has run out. `error` is that of the last call, unless it told something."""

    def __init__(self, error: grpc.RpcError | None) -> None:
        super().__init__()
        self.error = error


def _version(record: OperationRecord) -> tuple[int, int, int]:
    """Grows with each change; also when the id comes again, by an idempotency key."""
    created_at = record.operation.created_at
    return created_at.seconds, created_at.nanos, record.revision
