"""The operations table: commands in, outcomes out, every transition one conditional statement.

A statement that changes a row says in its WHERE when it may, and returns the row. Only when it
changed nothing is the row read, to say why: a terminal state never changes again, so what is read
then is still true. Each command may therefore be applied twice: the second time it finds what the
first one did.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any, assert_never

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    LargeBinary,
    Row,
    Select,
    SmallInteger,
    Text,
    Update,
    UpdateBase,
    and_,
    any_,
    bindparam,
    case,
    delete,
    false,
    func,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

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
    Swept,
)
from opservice.store.clocks import database_clock, wall_clock
from opservice.store.compiled import PostgresqlFind, SqliteGet
from opservice.store.schema import operations

_c = operations.c
RECORD = [_c[field.name] for field in fields(Record)]


SWEEP_WITHIN = 5 * SECOND
"""A sweep that is executed further than this from its cutoff changes nothing: something hung meanwhile."""


class Repository:
    """The statements, made once. Stateless: one serves every connection of an engine.

    `clock` is an SQL expression for now, in microseconds since the epoch.
    """

    def __init__(self, clock: ColumnElement[int] | None = None) -> None:
        now: ColumnElement[int] = database_clock() if clock is None else clock
        # Grows with every change, even when the clock was set back or two changes share a tick.
        changed_at = case((now > _c.modified_at, now), else_=_c.modified_at + 1)
        touched: dict[str, Any] = {"modified_at": changed_at, "revision": _c.revision + 1}
        ended: dict[str, Any] = {
            **touched,
            "done": true(),
            "lease_expires_at": null(),
            "expires_at": changed_at + _c.retention,
        }
        self.visible = visible = or_(~_c.done, _c.expires_at > now)
        self._evict = delete(operations).where(_c.id == bindparam("operation_id"), ~visible)
        this = _c.id == bindparam("operation_id")
        by_holder = and_(
            this,
            ~_c.done,
            _c.lease_token_hash.is_not_distinct_from(bindparam("token", type_=LargeBinary)),
        )
        new_metadata = func.coalesce(bindparam("new_metadata", type_=LargeBinary), _c.metadata)
        new_error: dict[str, Any] = {
            "error": bindparam("new_error", type_=LargeBinary),
            "error_code": bindparam("new_error_code", type_=SmallInteger),
        }

        self._get_one = select(*RECORD).where(_c.id == bindparam("operation_id"), visible)
        self._find = among_ids(select(*RECORD).where(visible))
        self._revisions = among_ids(select(_c.id, _c.revision).where(visible))
        given = (
            _c.id,
            _c.parent,
            _c.method,
            _c.description,
            _c.created_by,
            _c.metadata,
            _c.cancel_policy,
            _c.lease_token_hash,
            _c.lease,
            _c.retention,
            _c.request_hash,
        )
        inserted: dict[str, Any] = {
            **{column.name: bindparam(column.name, type_=column.type) for column in given},
            "created_at": now,
            "modified_at": now,
            "revision": 1,
            "done": false(),
            "lease_expires_at": now + bindparam("lease", type_=BigInteger),
            "timeout_at": now + bindparam("timeout", type_=BigInteger),
        }
        siblings = select(_c.id).where(_c.parent == bindparam("parent"), ~_c.done)
        self._count_running = select(func.count()).select_from(
            siblings.limit(bindparam("most", type_=BigInteger)).subquery()
        )
        # Both dialects spell ON CONFLICT alike, but SQLAlchemy has no insert for the two.
        self._insert = {
            name: insert(operations).values(inserted).on_conflict_do_nothing().returning(*RECORD)
            for name, insert in (("sqlite", sqlite.insert), ("postgresql", postgresql.insert))
        }
        self._renew = _returning(
            update(operations)
            .where(by_holder)
            .values(
                **touched,
                lease_expires_at=now + _c.lease,
                metadata=new_metadata,
                **{
                    column.name: func.coalesce(
                        bindparam(f"new_{column.name}", type_=column.type), column
                    )
                    for column in (
                        _c.progress_done,
                        _c.progress_total,
                        _c.progress_unit,
                        _c.progress_message,
                    )
                },
            )
        )
        self._end = _returning(
            update(operations)
            .where(by_holder)
            .values(
                **ended,
                metadata=new_metadata,
                response=bindparam("new_response", type_=LargeBinary),
                **new_error,
            )
        )
        at_once = _c.cancel_policy == CancelPolicy.IMMEDIATE
        self._cancel = _returning(
            update(operations)
            .where(
                this,
                ~_c.done,
                _c.cancel_requested_at.is_(None),
                _c.cancel_policy != CancelPolicy.UNSUPPORTED,
            )
            .values(
                **touched,
                done=at_once,
                cancel_requested_at=changed_at,
                **new_error,
                lease_expires_at=case((at_once, null()), else_=_c.lease_expires_at),
                expires_at=case((at_once, changed_at + _c.retention)),
            )
        )
        self._delete = delete(operations).where(this, _c.done, visible).returning(*RECORD)

        # In a subquery, so that PostgreSQL evaluates it once, before it looks at any row.
        executed = select(wall_clock() if clock is None else clock).scalar_subquery()
        first, last = (bindparam(name, type_=BigInteger) for name in ("first", "last"))
        in_time = executed.between(first, last)
        running = and_(~_c.done, in_time)
        due_by = bindparam("due_by", type_=BigInteger)
        failed = {**ended, **new_error}
        self._lapse = _sweep(running, _c.lease_expires_at, due_by, failed)
        self._time_out = _sweep(running, _c.timeout_at, due_by, failed)
        self._end_grace = _sweep(running, _c.cancel_requested_at, due_by, ended)
        expired = _due(and_(_c.done, in_time), _c.expires_at, due_by)
        self._expire = delete(operations).where(expired).returning(_c.id)
        awaited = or_(
            *(
                select(_c.id).where(~_c.done, due).exists()
                for due in (
                    _c.lease_expires_at.is_not(None),
                    _c.cancel_requested_at.is_not(None),
                    _c.timeout_at <= now,
                )
            )
        )
        self._clock = select(now, awaited)

    def find(self, connection: Connection, ids: Iterable[str]) -> dict[str, Record]:
        """The operations with these ids that exist and have not expired."""
        statement = self._find[connection.dialect.name]
        rows = connection.execute(statement, {"operation_ids": list(ids)})
        return {record.id: record for record in map(record_of, rows)}

    def compile_get(self) -> SqliteGet[Record]:
        return SqliteGet(self._get_one, RECORD, Record)

    def compile_find(self) -> PostgresqlFind[Record]:
        return PostgresqlFind(self._find["postgresql"], RECORD, Record)

    def revisions(self, connection: Connection, ids: Iterable[str]) -> dict[str, int]:
        """The revisions of those operations that `find` would find."""
        statement = self._revisions[connection.dialect.name]
        rows = connection.execute(statement, {"operation_ids": list(ids)})
        return {row.id: row.revision for row in rows}

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
        """The database's clock, and whether anybody may soon be late: there are leases, or the like."""
        clock, awaited = connection.execute(self._clock).one()
        return clock, bool(awaited)

    def prove_writes(self, connection: Connection) -> None:
        """Changes nothing, but its COMMIT waits for the disk and a synchronous standby, as others do."""
        if connection.dialect.name == "sqlite":
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            connection.exec_driver_sql(f"PRAGMA user_version={int(version)}")
        else:
            connection.exec_driver_sql("SELECT pg_logical_emit_message(true, 'opservice', '')")

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
        match sweep:
            case LapseLeases() | ReachTimeouts():
                statement = self._lapse if isinstance(sweep, LapseLeases) else self._time_out
                parameters |= {"new_error": sweep.error.status, "new_error_code": sweep.error.code}
            case EndCancelGrace():
                statement = self._end_grace
                parameters["due_by"] = cutoff - sweep.grace
            case DeleteExpired():
                return Swept(tuple(connection.execute(self._expire, parameters).scalars()))
            case _:
                assert_never(sweep)
        return Swept(tuple(connection.execute(statement, parameters).scalars()))

    def _apply(self, connection: Connection, command: Command) -> Outcome:
        match command:
            case Start():
                return self._start(connection, command)
            case Renew():
                progress = command.progress
                changed = self._change(
                    connection,
                    self._renew,
                    command,
                    token=command.lease_token_hash,
                    new_metadata=command.metadata,
                    new_progress_done=progress and progress.done,
                    new_progress_total=progress and progress.total,
                    new_progress_unit=progress and progress.unit,
                    new_progress_message=progress and progress.message,
                )
                return changed or self._explain_held(connection, command)
            case Complete() | Fail():
                error = command.error if isinstance(command, Fail) else None
                changed = self._change(
                    connection,
                    self._end,
                    command,
                    token=command.lease_token_hash,
                    new_metadata=command.metadata,
                    new_response=command.response if isinstance(command, Complete) else None,
                    new_error=error and error.status,
                    new_error_code=error and error.code,
                )
                return changed or self._explain_held(connection, command)
            case Cancel():
                changed = self._change(
                    connection,
                    self._cancel,
                    command,
                    new_error=command.error.status,
                    new_error_code=command.error.code,
                )
                return changed or self._explain_cancel(connection, command)
            case Delete():
                changed = self._change(connection, self._delete, command)
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
        insert = self._insert[connection.dialect.name]
        for _ in range(2):
            row = connection.execute(insert, parameters).one_or_none()
            if row is not None:
                return Outcome(record_of(row), changed=True)
            existing = self.find(connection, [command.id]).get(command.id)
            if existing is not None:
                return _repeated_start(command, existing)
            # What has the id is past its retention, as good as deleted: start anew, unless another
            # replica was quicker.
            connection.execute(self._evict, {"operation_id": command.id})
        raise StoreUnavailable

    def _is_full(self, connection: Connection, command: Start) -> bool:
        """Whether the parent has as many running operations as it may have.

        On PostgreSQL another replica may be starting some at the same moment, so there may become a few more.
        """
        parameters = {"parent": command.parent, "most": command.max_running}
        return bool(
            connection.execute(self._count_running, parameters).scalar_one() == command.max_running
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

    def _explain_held(self, connection: Connection, command: Renew | Complete | Fail) -> Outcome:
        """Why a command that needs the lease token changed nothing."""
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

    def _explain_cancel(self, connection: Connection, command: Cancel) -> Outcome:
        """Why a Cancel changed nothing."""
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


def among_ids(query: Select[Any]) -> dict[str, Select[Any]]:
    """The query for rows with given ids, by the name of the dialect.

    The ids are one parameter: the statement is the same for any number of them, so that it is compiled and
    prepared once, and there may be more of them than parameters are allowed.
    """
    values = func.json_each(bindparam("operation_ids", type_=JSON)).table_valued("value")
    array = bindparam("operation_ids", type_=ARRAY(Text))
    return {
        "sqlite": query.where(_c.id.in_(select(values.c.value))),
        "postgresql": query.where(_c.id == any_(array)),
    }


def _due(
    state: ColumnElement[bool], column: Column[int], deadline: ColumnElement[int]
) -> ColumnElement[bool]:
    """Is one of at most `batch` rows in the state whose column has reached the deadline.

    They are chosen by the index of that column, passing over those that another transaction holds, and
    locked; PostgreSQL checks the conditions again on what it locked. So they must not stand outside as
    well: it would then visit all rows that are due, not only those chosen. And the choice must not be
    joined as a plain subquery, which may be made anew for each row.
    """
    chosen = (
        select(_c.id)
        .where(state, column <= deadline)
        .order_by(column)
        .limit(bindparam("batch", type_=BigInteger))
        .with_for_update(skip_locked=True)
        .cte("due")
        .prefix_with("MATERIALIZED")
    )
    return _c.id.in_(select(chosen.c.id))


def _sweep(
    state: ColumnElement[bool],
    column: Column[int],
    deadline: ColumnElement[int],
    values: dict[str, Any],
) -> UpdateBase:
    return update(operations).where(_due(state, column, deadline)).values(**values).returning(_c.id)


def _returning(statement: Update) -> UpdateBase:
    return statement.returning(*RECORD)


def record_of(row: Row[Any]) -> Record:
    return Record(*tuple(row))
