"""The operations of the server in memory, and what becomes of them: the rules of the real one.

Nothing here is for several threads: it belongs to one event loop. What a call is refused with is a Refusal.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field

from google.protobuf.any_pb2 import Any as AnyPayload
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from opservice_client._proto.opservice.v1.operation_record_pb2 import CancelPolicy, OperationRecord
from opservice_client._proto.opservice.v1.producer_service_pb2 import (
    CompleteRequest,
    FailRequest,
    RenewRequest,
    RenewResponse,
    StartRequest,
    StartResponse,
)
from opservice_client._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice_client.retries import ERROR_DOMAIN
from opservice_client.testing.changes import Changes
from opservice_client.testing.checks import SECOND, Check
from opservice_client.testing.refusals import (
    invalid,
    not_found,
    precondition,
    shortened,
    wrong_token,
)
from opservice_client.testing.tokens import digest

_BASE32HEX = "0123456789abcdefghijklmnopqrstuv"


def _status(code: int, reason: str, message: str) -> Status:
    status = Status(code=code, message=message)
    status.details.add().Pack(ErrorInfo(reason=reason, domain=ERROR_DOMAIN))
    return status


_CANCELLED = _status(Code.CANCELLED, "OPERATION_CANCELLED", "The operation was cancelled")
_LEASE_EXPIRED = _status(
    Code.ABORTED, "LEASE_EXPIRED", "The service that ran the operation stopped renewing its lease"
)
_TIMED_OUT = _status(
    Code.DEADLINE_EXCEEDED, "OPERATION_TIMEOUT", "The operation did not end within its timeout"
)
_EMPTY = AnyPayload()
_EMPTY.Pack(Empty())


@dataclass(eq=False)
class Entry:
    """An operation, and what its record does not show. Times and durations are microseconds."""

    record: OperationRecord
    token: str
    lease: int | None
    timeout_at: int | None
    retention: int
    request_hash: bytes | None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at the next change, when another one takes its place."""

    @property
    def place(self) -> tuple[int, str]:
        """In a list, where the newest comes first."""
        operation = self.record.operation
        return operation.created_at.ToMicroseconds(), operation.id

    @property
    def done(self) -> bool:
        return self.record.operation.done

    def dues(self, cancel_grace: int) -> list[tuple[int, Status | None]]:
        """When it ends by itself, if it runs; each with its error, None for the one that it has already."""
        dues: list[tuple[int, Status | None]] = []
        if self.done:
            return dues
        if self.record.HasField("lease_expires_at"):
            dues.append((self.record.lease_expires_at.ToMicroseconds(), _LEASE_EXPIRED))
        if self.timeout_at is not None:
            dues.append((self.timeout_at, _TIMED_OUT))
        if self.record.HasField("cancel_requested_at"):
            dues.append((self.record.cancel_requested_at.ToMicroseconds() + cancel_grace, None))
        return dues


class Operations:
    """All of them, by their ids. `cancel_grace` is microseconds."""

    def __init__(self, cancel_grace: int) -> None:
        self._cancel_grace = cancel_grace
        self._ahead: int = 0
        self._entries: dict[str, Entry] = {}
        self.changes: Changes = Changes(self.now)
        self.is_stopping: bool = False
        """Whoever waits for a change is to go."""

    def stop(self) -> None:
        """Wakes whoever waits for a change."""
        self.is_stopping = True
        self.changes.next.set()
        for entry in self._entries.values():
            entry.changed.set()

    def now(self) -> int:
        """Microseconds since the epoch."""
        return time.time_ns() // 1000 + self._ahead

    def of_parent(self, parent: str) -> list[Entry]:
        """Those of the parent, or of all for `-`, that are not past their retention, the newest first."""
        found = [
            entry
            for entry in self._entries.values()
            if parent in ("-", entry.record.parent) and self._is_visible(entry)
        ]
        return sorted(found, key=lambda entry: entry.place, reverse=True)

    def find(self, operation_id: str) -> Entry:
        """Raises a Refusal when there is none."""
        entry = self._entries.get(operation_id)
        if entry is None or not self._is_visible(entry):
            raise not_found(operation_id)
        return entry

    def start(self, request: StartRequest, traceparent: str) -> StartResponse:
        lease, timeout, retention = Check().start(request)
        same = StartRequest()
        same.CopyFrom(request)
        same.ClearField("lease_token")
        request_hash, id_ = None, _new_id(request)
        if request.idempotency_key:
            request_hash = digest(same.SerializeToString(deterministic=True))
            existing = self._entries.get(id_)
            if existing is not None and self._is_visible(existing):
                if existing.request_hash != request_hash:
                    violation = ("idempotency_key", "was used before with another request")
                    raise invalid([violation], "IDEMPOTENCY_KEY_REUSED")
                owned = existing.token == request.lease_token
                return _started(existing.record, owned=owned)
        now = self.now()
        operation = Operation(
            id=id_,
            description=request.description,
            created_at=_timestamp(now),
            created_by=request.created_by,
            modified_at=_timestamp(now),
        )
        if request.HasField("metadata"):
            operation.metadata.CopyFrom(request.metadata)
        record = OperationRecord(
            operation=operation,
            parent=request.parent,
            method=request.method,
            cancel_policy=request.cancel_policy or CancelPolicy.IMMEDIATE,
            lease_expires_at=None if lease is None else _timestamp(now + lease),
            revision=1,
            labels=request.labels,
            traceparent=traceparent,
        )
        timeout_at = None if timeout is None else now + timeout
        if timeout_at is not None:
            record.timeout_at.FromMicroseconds(timeout_at)
        entry = Entry(record, request.lease_token, lease, timeout_at, retention, request_hash)
        self._entries[id_] = entry
        self.changes.note(id_, request.parent)
        return _started(record, owned=True)

    def renew(self, request: RenewRequest) -> RenewResponse:
        check = _check_report(request)
        if request.HasField("progress"):
            check.progress(request.progress)
        check.finish()
        entry = self._held(request)
        if entry.done:
            raise _done_already(entry)
        record = entry.record
        if request.HasField("metadata"):
            record.operation.metadata.CopyFrom(request.metadata)
        if request.HasField("progress"):
            record.progress.CopyFrom(request.progress)
        if entry.lease is not None:
            record.lease_expires_at.FromMicroseconds(self.now() + entry.lease)
        self._touch(entry, self._changed_at(entry))
        return RenewResponse(
            operation=record.operation,
            cancel_requested=record.HasField("cancel_requested_at"),
            lease_expires_at=record.lease_expires_at if entry.lease is not None else None,
        )

    def complete(self, request: CompleteRequest) -> Operation:
        response = request.response if request.HasField("response") else _EMPTY
        check = _check_report(request)
        check.payload("response", response)
        check.finish()
        entry = self._held(request)
        operation = entry.record.operation
        if not entry.done:
            operation.response.CopyFrom(response)
            self._end(entry, self._changed_at(entry), request)
        elif operation.WhichOneof("result") != "response" or operation.response != response:
            raise _done_already(entry)
        return operation

    def fail(self, request: FailRequest) -> Operation:
        check = _check_report(request)
        check.error(request.error)
        check.finish()
        entry = self._held(request)
        operation = entry.record.operation
        if not entry.done:
            operation.error.CopyFrom(request.error)
            self._end(entry, self._changed_at(entry), request)
        elif operation.WhichOneof("result") != "error" or operation.error != request.error:
            raise _done_already(entry)
        return operation

    def cancel(self, operation_id: str) -> Operation:
        entry = self.find(operation_id)
        record = entry.record
        if entry.done or record.HasField("cancel_requested_at"):
            return record.operation
        if record.cancel_policy == CancelPolicy.UNSUPPORTED:
            message = "The operation cannot be cancelled."
            raise precondition("OPERATION_NOT_CANCELLABLE", message, operation_id)
        now = self._changed_at(entry)
        record.operation.error.CopyFrom(_CANCELLED)
        record.cancel_requested_at.FromMicroseconds(now)
        if record.cancel_policy == CancelPolicy.IMMEDIATE:
            self._end(entry, now)
        else:
            self._touch(entry, now)
        return record.operation

    def delete(self, operation_id: str) -> None:
        entry = self.find(operation_id)
        if not entry.done:
            message = "The operation is still running: only a done operation can be deleted."
            raise precondition("OPERATION_RUNNING", message, operation_id)
        self._remove(entry)

    def sweep(self) -> None:
        """Ends and deletes what is due."""
        now = self.now()
        for entry in list(self._entries.values()):
            if entry.done and not self._is_visible(entry):
                self._remove(entry)
            for due, error in entry.dues(self._cancel_grace):
                if due <= now:
                    if error is not None:
                        entry.record.operation.error.CopyFrom(error)
                    self._end(entry, self._changed_at(entry))
                    break

    def advance(self, microseconds: int) -> None:
        """Moves the clock on, and does what becomes due in that time, second by second."""
        start = self._ahead
        end = start + microseconds
        now = time.time_ns() // 1000
        seconds = {
            -(-due // SECOND) * SECOND
            for entry in self._entries.values()
            for due, _ in entry.dues(self._cancel_grace)
        }
        for second in sorted(each for each in seconds if each <= now + end):
            self._ahead = max(start, second - now)
            self.sweep()
        self._ahead = end
        self.sweep()

    def _remove(self, entry: Entry) -> None:
        id_ = entry.record.operation.id
        del self._entries[id_]
        self.changes.note(id_, entry.record.parent)

    def _end(
        self, entry: Entry, now: int, last: CompleteRequest | FailRequest | None = None
    ) -> None:
        record = entry.record
        if last is not None and last.HasField("metadata"):
            record.operation.metadata.CopyFrom(last.metadata)
        record.operation.done = True
        record.ClearField("lease_expires_at")
        record.expires_at.FromMicroseconds(now + entry.retention)
        self._touch(entry, now)

    def _touch(self, entry: Entry, now: int) -> None:
        entry.record.operation.modified_at.FromMicroseconds(now)
        entry.record.revision += 1
        changed, entry.changed = entry.changed, asyncio.Event()
        changed.set()
        self.changes.note(entry.record.operation.id, entry.record.parent)

    def _is_visible(self, entry: Entry) -> bool:
        return not entry.done or entry.record.expires_at.ToMicroseconds() > self.now()

    def _held(self, request: RenewRequest | CompleteRequest | FailRequest) -> Entry:
        """Raises a Refusal unless the request has the operation's token."""
        entry = self.find(request.operation_id)
        if entry.token != request.lease_token:
            raise wrong_token()
        return entry

    def _changed_at(self, entry: Entry) -> int:
        """Later than every change before, whatever the clock says."""
        return max(self.now(), entry.record.operation.modified_at.ToMicroseconds() + 1)


def _check_report(request: RenewRequest | CompleteRequest | FailRequest) -> Check:
    check = Check()
    check.id(request.operation_id)
    if request.HasField("metadata"):
        check.payload("metadata", request.metadata)
    return check


def _done_already(entry: Entry) -> Exception:
    operation = entry.record.operation
    ended = Status(code=Code.OK)
    if operation.HasField("error"):
        ended = Status(code=operation.error.code, message=shortened(operation.error.message))
    message = "The operation is done already, and stays as it is."
    return precondition("OPERATION_DONE", message, operation.id, [ended])


def _new_id(request: StartRequest) -> str:
    """Random, or the one that the idempotency key always leads to."""
    number = os.urandom(11)
    if request.idempotency_key:
        owner = (request.created_by, request.parent, request.idempotency_key)
        number = digest(*owner)[:11]
    bits = int.from_bytes(number, "big") >> 3
    prefix = request.id_prefix or "ops"
    return prefix + "".join(_BASE32HEX[(bits >> shift) & 31] for shift in range(80, -1, -5))


def _timestamp(microseconds: int) -> Timestamp:
    made = Timestamp()
    made.FromMicroseconds(microseconds)
    return made


def _started(record: OperationRecord, *, owned: bool) -> StartResponse:
    """With what is kept beside the operation, without the operation itself."""
    answer = StartResponse(operation=record.operation, owned=owned, record=record)
    answer.record.ClearField("operation")
    return answer
