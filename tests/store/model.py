"""What the store should do, in plain Python on a dict, for test_model.py to hold it to."""

from __future__ import annotations

from dataclasses import replace

from opservice.domain.errors import (
    IdempotencyKeyReused,
    LeaseTokenMismatch,
    OperationDone,
    OperationNotCancellable,
    OperationNotFound,
    OperationRunning,
)
from opservice.domain.operation import (
    Cancel,
    CancelPolicy,
    Command,
    Complete,
    Delete,
    DeleteExpired,
    EndCancelGrace,
    Fail,
    LapseLeases,
    Outcome,
    ReachTimeouts,
    Record,
    Renew,
    Start,
    Sweep,
)
from store.conftest import Clock


class Model:
    """One command at a time. `rows` is the table, with what has expired still in it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.rows: dict[str, Record] = {}

    def find(self, id_: str) -> Record | None:
        record = self.rows.get(id_)
        expired = record and record.expires_at is not None and record.expires_at <= self.clock.now
        return None if expired else record

    def apply(self, command: Command) -> Outcome | type[Exception]:
        record = self.find(command.id)
        if isinstance(command, Start):
            return self._start(command) if record is None else self._repeat(command, record)
        if record is None:
            return OperationNotFound
        match command:
            case Cancel():
                return self._cancel(command, record)
            case Delete():
                if not record.done:
                    return OperationRunning
                return self._change(replace(record, expires_at=-self._changed_at(record)))
            case _:
                return self._held(command, record)

    def due(self, sweep: Sweep) -> dict[str, int]:
        """When each operation that it is time for was due."""
        now = self.clock.now
        deadlines = {
            record.id: _deadline(sweep, record)
            for record in self.rows.values()
            if record.done == isinstance(sweep, DeleteExpired)
            # What is deleted may have changed a little after the clock.
            and not (record.done and record.modified_at > now)
        }
        return {id_: at for id_, at in deadlines.items() if at is not None and at <= now}

    def sweep(self, sweep: Sweep, id_: str) -> None:
        if isinstance(sweep, DeleteExpired):
            del self.rows[id_]
        elif isinstance(sweep, EndCancelGrace):
            self._end(self.rows[id_])
        else:
            error = sweep.error
            self._end(replace(self.rows[id_], error=error.status, error_code=error.code))

    def _start(self, command: Start) -> Outcome:
        now = self.clock.now
        record = Record(
            id=command.id,
            parent=command.parent,
            method=command.method,
            description=command.description,
            created_by=command.created_by,
            created_at=now,
            modified_at=now,
            revision=1,
            done=False,
            metadata=command.metadata,
            response=None,
            error=None,
            error_code=None,
            cancel_policy=command.cancel_policy,
            cancel_requested_at=None,
            progress_done=None,
            progress_total=None,
            progress_unit=None,
            progress_message=None,
            lease_token_hash=command.lease_token_hash,
            lease=command.lease,
            lease_expires_at=None if command.lease is None else now + command.lease,
            timeout_at=None if command.timeout is None else now + command.timeout,
            retention=command.retention,
            expires_at=None,
            request_hash=command.request_hash,
            cancelled_by="",
            producer=command.producer,
            labels=command.labels,
            traceparent=command.traceparent,
        )
        self.rows[command.id] = record
        return Outcome(record, changed=True)

    def _repeat(self, command: Start, record: Record) -> Outcome | type[Exception]:
        if command.request_hash != record.request_hash:
            return IdempotencyKeyReused
        keyed = command.request_hash is not None
        owned = not keyed or command.lease_token_hash == record.lease_token_hash
        return Outcome(record, changed=False, owned=owned)

    def _held(self, command: Renew | Complete | Fail, record: Record) -> Outcome | type[Exception]:
        if command.lease_token_hash != record.lease_token_hash:
            return LeaseTokenMismatch
        if record.done:
            same = _same_result(command, record)
            return Outcome(record, changed=False) if same else OperationDone
        if command.metadata is not None:
            record = replace(record, metadata=command.metadata)
        match command:
            case Renew():
                if record.lease is not None:
                    record = replace(record, lease_expires_at=self.clock.now + record.lease)
                if progress := command.progress:
                    record = replace(
                        record,
                        progress_done=progress.done,
                        progress_total=progress.total,
                        progress_unit=progress.unit,
                        progress_message=progress.message,
                    )
                return self._change(record)
            case Complete():
                return self._end(
                    replace(record, response=command.response, error=None, error_code=None)
                )
            case Fail():
                error = command.error
                return self._end(replace(record, error=error.status, error_code=error.code))

    def _cancel(self, command: Cancel, record: Record) -> Outcome | type[Exception]:
        if record.done or record.cancel_requested_at is not None:
            return Outcome(record, changed=False)
        if record.cancel_policy is CancelPolicy.UNSUPPORTED:
            return OperationNotCancellable
        record = replace(
            record,
            error=command.error.status,
            error_code=command.error.code,
            cancel_requested_at=self._changed_at(record),
            cancelled_by=command.by,
        )
        at_once = record.cancel_policy is CancelPolicy.IMMEDIATE
        return self._end(record) if at_once else self._change(record)

    def _end(self, record: Record) -> Outcome:
        expires_at = self._changed_at(record) + record.retention
        return self._change(
            replace(record, done=True, lease_expires_at=None, expires_at=expires_at)
        )

    def _change(self, record: Record) -> Outcome:
        changed = replace(
            record, modified_at=self._changed_at(record), revision=record.revision + 1
        )
        self.rows[record.id] = changed
        return Outcome(changed, changed=True)

    def _changed_at(self, record: Record) -> int:
        return max(self.clock.now, record.modified_at + 1)


def _deadline(sweep: Sweep, record: Record) -> int | None:
    match sweep:
        case LapseLeases():
            return record.lease_expires_at
        case ReachTimeouts():
            return record.timeout_at
        case EndCancelGrace():
            asked_at = record.cancel_requested_at
            return None if asked_at is None else asked_at + sweep.grace
        case DeleteExpired():
            return record.expires_at


def _same_result(command: Renew | Complete | Fail, record: Record) -> bool:
    match command:
        case Complete():
            return command.response == record.response
        case Fail():
            return command.error.status == record.error
        case Renew():
            return False
