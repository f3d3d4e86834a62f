"""The operations table: commands in, outcomes out, every transition one conditional statement.

Only when a statement has changed nothing is the row read, to say why: a terminal state never changes again,
so what is read then is still true. Each command may therefore be applied twice: the second time it finds
what the first one did.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, assert_never

from sqlalchemy import ColumnElement, Connection, UpdateBase

from opservice.domain.errors import (
    IdempotencyKeyReused,
    LeaseTokenMismatch,
    OperationDone,
    OperationNotCancellable,
    OperationNotFound,
    OperationRunning,
    OpserviceError,
    StoreUnavailable,
    TooManyOperations,
)
from opservice.domain.operation import (
    SECOND,
    Cancel,
    CancelPolicy,
    Change,
    Command,
    Complete,
    Delete,
    DeleteExpired,
    EndCancelGrace,
    Fail,
    LapseLeases,
    Origin,
    Outcome,
    ReachTimeouts,
    Record,
    Renew,
    Start,
    Sweep,
    Swept,
)
from opservice.store.drivers.protocol import Lookup
from opservice.store.statements import ORIGINS, Statements, record_of

SWEEP_WITHIN = 5 * SECOND
"""A sweep that is executed further than this from its cutoff changes nothing: something hung meanwhile."""


_CHANGES_AT_ONCE = 1_000
"""Rows of one query for changes."""


class Repository:
    """Applies commands and sweeps. Stateless: one serves every connection of every database."""

    def __init__(self, clock: ColumnElement[int] | None = None) -> None:
        """`clock` is now in SQL, in microseconds since the epoch; by default the database's own clock."""
        self._statements = Statements(clock)

    @property
    def visible(self) -> ColumnElement[bool]:
        """The condition of operations that are not past their retention."""
        return self._statements.visible

    @property
    def records(self) -> Lookup[Record]:
        """The queries of `find`."""
        return self._statements.records

    def find(self, connection: Connection, ids: Iterable[str]) -> dict[str, Record]:
        """The operations with these ids that exist and have not expired."""
        rows = connection.execute(self._statements.records.many, {"operation_ids": list(ids)})
        return {record.id: record for record in map(record_of, rows)}

    def origins(self, connection: Connection, ids: Iterable[str]) -> dict[str, Origin]:
        """Who may see the operations with these ids; also of those that have expired and are still there."""
        rows = connection.execute(ORIGINS.many, {"operation_ids": list(ids)})
        return {row.id: Origin(*row) for row in rows}

    def revisions(self, connection: Connection, ids: Iterable[str]) -> dict[str, int]:
        """The revisions of those operations that `find` would find."""
        rows = connection.execute(self._statements.revisions, {"operation_ids": list(ids)})
        return {row.id: row.revision for row in rows}

    def changes(
        self, connection: Connection, since: int, after: Change | None = None, *, expired: bool
    ) -> tuple[list[Change], Change | None]:
        """A page of what has changed or was deleted since that time or, with `expired`, has expired since.

        `since` is microseconds since the epoch. With the page comes what the next one is to be `after`; None
        when there is no more. What changes meanwhile is on a later page once more.
        """
        statement = self._statements.expired if expired else self._statements.changed
        parameters: dict[str, Any] = {"since": since, "after": "", "most": _CHANGES_AT_ONCE}
        if after is not None:
            moment = after.expires_at if expired else after.modified_at
            parameters |= {"since": moment, "after": after.id}
        page = [Change(*row) for row in connection.execute(statement, parameters)]
        return page, page[-1] if len(page) == _CHANGES_AT_ONCE else None

    def read_now(self, connection: Connection) -> int:
        """The database's clock in microseconds since the epoch."""
        now: int = connection.execute(self._statements.now).scalar_one()
        return now

    def apply(
        self, connection: Connection, commands: Sequence[Command]
    ) -> list[Outcome | OpserviceError]:
        """Applies the commands within the connection's transaction; an outcome for each, in order.

        A refusal is an outcome too. Rows are taken in the order of their ids, so that two such
        transactions cannot deadlock; commands on the same operation keep their order.
        """
        outcomes: dict[int, Outcome | OpserviceError] = {}
        for index in sorted(range(len(commands)), key=lambda i: commands[i].id):
            try:
                outcomes[index] = self._apply(connection, commands[index])
            except OpserviceError as refusal:
                outcomes[index] = refusal
        return [outcomes[index] for index in range(len(commands))]

    def read_clock(self, connection: Connection) -> tuple[int, bool]:
        """The database's clock in microseconds since the epoch, and whether anybody may soon be late.

        Somebody may be when there is a lease, a Cancel that its producer has not answered, or a timeout that
        has passed.
        """
        clock, awaited = connection.execute(self._statements.clock).one()
        return clock, bool(awaited)

    def count_running(self, connection: Connection) -> tuple[int, int]:
        """How many operations run, at most MOST_COUNTED, and the age of the oldest in microseconds."""
        count, created_at, now = connection.execute(self._statements.running).one()
        return count, 0 if created_at is None else max(0, now - created_at)

    def sweep(self, connection: Connection, sweep: Sweep, cutoff: int) -> Swept:
        """Changes operations whose time had come by `cutoff`, a reading of the database's clock.

        Those that another transaction holds are left, and all of them when the statement is executed
        further than SWEEP_WITHIN from the cutoff.
        """
        parameters: dict[str, Any] = {
            "batch": sweep.limit,
            "due_by": cutoff,
            "first": cutoff - SWEEP_WITHIN,
            "last": cutoff + SWEEP_WITHIN,
        }
        statements = self._statements
        match sweep:
            case LapseLeases() | ReachTimeouts():
                lapse = isinstance(sweep, LapseLeases)
                statement = statements.lapse if lapse else statements.time_out
                parameters |= {"new_error": sweep.error.status, "new_error_code": sweep.error.code}
            case EndCancelGrace():
                statement = statements.end_grace
                parameters["due_by"] = cutoff - sweep.grace
            case DeleteExpired():
                statement = statements.delete_expired
                parameters["due_by"] = cutoff - sweep.kept
            case _:
                assert_never(sweep)
        rows = [*connection.execute(statement, parameters)]
        ids = tuple(row.id for row in rows)
        if isinstance(sweep, DeleteExpired):
            return Swept(ids, expired=sum(row.expired for row in rows))
        return Swept(ids, tuple(row.lasted for row in rows))

    def _apply(self, connection: Connection, command: Command) -> Outcome:
        match command:
            case Start():
                return self._start(connection, command)
            case Renew():
                progress = command.progress
                changed = self._change(
                    connection,
                    self._statements.renew,
                    command,
                    token=command.lease_token_hash,
                    new_metadata=command.metadata,
                    new_progress_done=progress and progress.done,
                    new_progress_total=progress and progress.total,
                    new_progress_unit=progress and progress.unit,
                    new_progress_message=progress and progress.message,
                )
                return changed or self._lease_conflict(connection, command)
            case Complete() | Fail():
                error = command.error if isinstance(command, Fail) else None
                changed = self._change(
                    connection,
                    self._statements.end,
                    command,
                    token=command.lease_token_hash,
                    new_metadata=command.metadata,
                    new_response=command.response if isinstance(command, Complete) else None,
                    new_error=error and error.status,
                    new_error_code=error and error.code,
                )
                return changed or self._lease_conflict(connection, command)
            case Cancel():
                changed = self._change(
                    connection,
                    self._statements.cancel,
                    command,
                    cancelled_by=command.by,
                    new_error=command.error.status,
                    new_error_code=command.error.code,
                )
                return changed or self._refused_cancel(connection, command)
            case Delete():
                changed = self._change(connection, self._statements.delete, command)
                if changed:
                    return changed
                raise OperationRunning(self._get(connection, command.id))
            case _:
                assert_never(command)

    def _start(self, connection: Connection, command: Start) -> Outcome:
        if command.max_running is not None and self._is_full(connection, command):
            existing = self.find(connection, [command.id]).get(command.id)
            if existing is not None:
                return _repeated_start(command, existing)
            raise _too_many(command)
        parameters = asdict(command)
        del parameters["max_running"]
        for _ in range(2):
            row = connection.execute(self._statements.start, parameters).one_or_none()
            if row is not None:
                return Outcome(record_of(row), changed=True)
            existing = self.find(connection, [command.id]).get(command.id)
            if existing is not None:
                return _repeated_start(command, existing)
            # What has the id is past its retention, as good as deleted: start anew, unless another
            # replica was quicker.
            connection.execute(self._statements.evict, {"operation_id": command.id})
        raise StoreUnavailable

    def _is_full(self, connection: Connection, command: Start) -> bool:
        """Whether the parent has as many running operations as it may have.

        On PostgreSQL another replica may be starting some at the same moment, so there may become a few more.
        """
        parameters = {"parent": command.parent, "most": command.max_running}
        return bool(
            connection.execute(self._statements.count_running, parameters).scalar_one()
            == command.max_running
        )

    def _change(
        self, connection: Connection, statement: UpdateBase, command: Command, **parameters: Any
    ) -> Outcome | None:
        row = connection.execute(
            statement, {"operation_id": command.id, **parameters}
        ).one_or_none()
        return None if row is None else Outcome(record_of(row), changed=True)

    def _get(self, connection: Connection, operation_id: str) -> Record:
        record = self.find(connection, [operation_id]).get(operation_id)
        if record is None:
            raise OperationNotFound(operation_id)
        return record

    def _lease_conflict(self, connection: Connection, command: Renew | Complete | Fail) -> Outcome:
        """What a command comes to that needs the lease token and has changed nothing."""
        record = self._get(connection, command.id)
        if record.lease_token_hash != command.lease_token_hash:
            raise LeaseTokenMismatch
        if not record.done:
            raise StoreUnavailable  # it was created between the two statements
        match command:
            case Complete() if record.response == command.response:
                return Outcome(record, changed=False)
            case Fail() if record.error == command.error.status:
                return Outcome(record, changed=False)
            case _:
                raise OperationDone(record)

    def _refused_cancel(self, connection: Connection, command: Cancel) -> Outcome:
        """What a Cancel comes to that has changed nothing."""
        record = self._get(connection, command.id)
        if record.done or record.cancel_requested_at is not None:
            return Outcome(record, changed=False)
        if record.cancel_policy is CancelPolicy.UNSUPPORTED:
            raise OperationNotCancellable(record)
        raise StoreUnavailable  # it was created between the two statements


def _too_many(command: Start) -> TooManyOperations:
    where = command.parent or "the operations without a parent"
    return TooManyOperations(
        f"The limit on the maximum number of active operations is reached: {command.max_running} in {where}",
        f"parent:{command.parent}",
    )


def _repeated_start(command: Start, existing: Record) -> Outcome:
    if existing.request_hash != command.request_hash:
        raise IdempotencyKeyReused
    if command.request_hash is None:
        # A random id is this command's alone: it is being applied again after an unknown commit.
        return Outcome(existing, changed=False)
    # Without tokens nobody can be told apart. Somebody must do the work of a Start whose answer was lost, so
    # whoever repeats it owns it.
    owned = command.lease_token_hash == existing.lease_token_hash
    return Outcome(existing, changed=False, owned=owned)
