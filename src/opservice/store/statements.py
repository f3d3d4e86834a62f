"""Every statement on single operations and every sweep, for all databases.

A statement that changes a row says in its WHERE when it may, and returns the row.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Delete,
    LargeBinary,
    Row,
    Select,
    SmallInteger,
    Update,
    UpdateBase,
    and_,
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
from sqlalchemy.dialects.postgresql import insert

from opservice.domain.operation import CancelPolicy, Change, Origin, Record
from opservice.store.drivers.protocol import Lookup
from opservice.store.schema import operations
from opservice.store.sql import database_clock, is_among, wall_clock

MOST_COUNTED = 100_000
"""Running operations that are counted at a time. Counting so many takes a tenth of a second."""

_c = operations.c
RECORD = [_c[field.name] for field in fields(Record)]
"""The columns of a Record, in its order."""
_ORIGIN = [_c[field] for field in Origin._fields]

Changing = TypeVar("Changing", Update, Delete)

THIS = _c.id == bindparam("operation_id")
THESE = is_among(_c.id, "operation_ids")

# Who may see an operation. How long that takes does not depend on payloads: SQLite has these columns before
# them in the row, and PostgreSQL does not fetch what is not asked for. So these queries do not ask either
# whether the operation has expired: SQLite has that behind the payloads.
ORIGINS = Lookup(select(*_ORIGIN).where(THIS), select(*_ORIGIN).where(THESE), _ORIGIN, Origin)


def record_of(row: Row[Any]) -> Record:
    """The operation in a row of the columns RECORD."""
    return Record(*tuple(row))


class Statements:
    """Those that look at the clock, or change what it decides.

    Repository gives them their parameters. Those on one operation take `operation_id`, those on many take
    `operation_ids`, and sweeps take what `_due` says.
    """

    def __init__(self, clock: ColumnElement[int] | None = None) -> None:
        """`clock` is now in SQL, in microseconds since the epoch; by default the database's own clock."""
        now: ColumnElement[int] = database_clock() if clock is None else clock
        self.visible = visible = or_(~_c.done, _c.expires_at > now)
        """The operation is there for callers: it is not past its retention."""

        # Grows with every change, even when the clock was set back or two changes share a tick.
        changed_at = case((now > _c.modified_at, now), else_=_c.modified_at + 1)
        touched = {"modified_at": changed_at, "revision": _c.revision + 1}
        ended = {
            **touched,
            "done": true(),
            "lease_expires_at": null(),
            "expires_at": changed_at + _c.retention,
        }

        self.records = Lookup(
            select(*RECORD).where(THIS, visible),
            select(*RECORD).where(visible, THESE),
            RECORD,
            Record,
        )
        self.revisions = select(_c.id, _c.revision).where(visible, THESE)
        self.clock = select(now, _any_is_awaited(now))
        """The clock, and whether housekeeping may soon have something to do."""

        self.count_running = _count_running()
        self.running = _running(now)
        self.start = _start(now)
        self.evict = delete(operations).where(THIS, ~visible)
        """Makes room for a new operation with the id of one that is past its retention."""
        self.renew = _renew(now, touched)
        self.end = _end(ended)
        self.cancel = _cancel(touched)
        # There for nobody from now on, whatever becomes of the clock. The row is left for DeleteExpired.
        self.delete = _returning_record(
            update(operations)
            .where(THIS, _c.done, visible)
            .values(**touched, expires_at=-changed_at)
        )
        self.now = select(now)
        gone = ~visible
        self.changed = _changes(gone, _c.modified_at, true())
        self.expired = _changes(gone, _c.expires_at, and_(_c.done, _c.expires_at <= now))

        executed = wall_clock() if clock is None else clock
        self.lapse = _sweep(executed, _c.lease_expires_at, {**ended, **_new_error()})
        self.time_out = _sweep(executed, _c.timeout_at, {**ended, **_new_error()})
        self.end_grace = _sweep(executed, _c.cancel_requested_at, ended)
        # A deleted operation has the negative of its deletion in expires_at. So all that is due, deleted or
        # expired, is one range of the index by expiry, and what must still be kept is outside of it. Replicas
        # of the version before write 0 there, which is always in the range: of such a row modified_at says
        # how long it was kept (`+ 0`, so that the index by change is not read).
        due_by = bindparam("due_by", type_=BigInteger)
        kept = and_(_c.done, _c.expires_at >= -due_by, _c.modified_at + 0 <= due_by)
        expired = _due(kept, executed, _c.expires_at)
        self.delete_expired = (
            delete(operations).where(expired).returning(_c.id, (_c.expires_at > 0).label("expired"))
        )


def _changes(
    gone: ColumnElement[bool], moment: Column[int], condition: ColumnElement[bool]
) -> Select[Any]:
    """The first `most` operations by a moment, from `since` on and after the id `after` at `since` itself."""
    since = bindparam("since", type_=BigInteger)
    after = bindparam("after", type_=_c.id.type)
    columns = [_c[field] for field in Change._fields if field != "gone"]
    return (
        select(*columns, gone.label("gone"))
        .where(condition, moment >= since, or_(moment > since, _c.id > after))
        .order_by(moment, _c.id)
        .limit(bindparam("most", type_=BigInteger))
    )


def _new_error() -> dict[str, Any]:
    return {
        "error": bindparam("new_error", type_=LargeBinary),
        "error_code": bindparam("new_error_code", type_=SmallInteger),
    }


def _new_metadata() -> ColumnElement[Any]:
    return func.coalesce(bindparam("new_metadata", type_=LargeBinary), _c.metadata)


def _by_holder() -> ColumnElement[bool]:
    """It is running, and the lease token is its own."""
    token = bindparam("token", type_=LargeBinary)
    return and_(THIS, ~_c.done, _c.lease_token_hash.is_not_distinct_from(token))


def _count_running() -> Select[Any]:
    """How many operations of a parent run; it counts no further than `most`."""
    siblings = select(_c.id).where(_c.parent == bindparam("parent"), ~_c.done)
    some = siblings.limit(bindparam("most", type_=BigInteger)).subquery()
    return select(func.count()).select_from(some)


def _running(now: ColumnElement[int]) -> Select[Any]:
    """How many operations run, no more than MOST_COUNTED, when the oldest was created, and the clock."""
    some = select(_c.created_at).where(~_c.done).limit(MOST_COUNTED).subquery()
    columns: list[ColumnElement[Any]] = [func.count(), func.min(some.c.created_at), now]
    return select(*columns).select_from(some)


def _start(now: ColumnElement[int]) -> UpdateBase:
    """Changes nothing when the id is there already."""
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
        _c.producer,
        _c.labels,
        _c.traceparent,
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
    # SQLite spells ON CONFLICT as PostgreSQL does, and SQLAlchemy's compiler for it takes this one.
    return insert(operations).values(inserted).on_conflict_do_nothing().returning(*RECORD)


def _renew(now: ColumnElement[int], touched: dict[str, Any]) -> UpdateBase:
    progress = (_c.progress_done, _c.progress_total, _c.progress_unit, _c.progress_message)
    reported = {
        column.name: func.coalesce(bindparam(f"new_{column.name}", type_=column.type), column)
        for column in progress
    }
    return _returning_record(
        update(operations)
        .where(_by_holder())
        .values(
            **touched,
            lease_expires_at=now + _c.lease,
            metadata=_new_metadata(),
            **reported,
        )
    )


def _end(ended: dict[str, Any]) -> UpdateBase:
    """By Complete or Fail."""
    return _returning_record(
        update(operations)
        .where(_by_holder())
        .values(
            **ended,
            metadata=_new_metadata(),
            response=bindparam("new_response", type_=LargeBinary),
            **_new_error(),
        )
    )


def _cancel(touched: dict[str, Any]) -> UpdateBase:
    at_once = _c.cancel_policy == CancelPolicy.IMMEDIATE
    changed_at = touched["modified_at"]
    return _returning_record(
        update(operations)
        .where(
            THIS,
            ~_c.done,
            _c.cancel_requested_at.is_(None),
            _c.cancel_policy != CancelPolicy.UNSUPPORTED,
        )
        .values(
            **touched,
            done=at_once,
            cancel_requested_at=changed_at,
            cancelled_by=bindparam("cancelled_by", type_=_c.cancelled_by.type),
            **_new_error(),
            lease_expires_at=case((at_once, null()), else_=_c.lease_expires_at),
            expires_at=case((at_once, changed_at + _c.retention)),
        )
    )


def _sweep(executed: ColumnElement[int], column: Column[int], values: dict[str, Any]) -> UpdateBase:
    """Changes running operations whose column has come to `due_by`; returns how long each had run, too."""
    due = _due(~_c.done, executed, column)
    lasted = (_c.modified_at - _c.created_at).label("lasted")
    return update(operations).where(due).values(**values).returning(_c.id, lasted)


def _due(
    state: ColumnElement[bool], executed: ColumnElement[int], column: Column[int]
) -> ColumnElement[bool]:
    """Is one of at most `batch` rows in the state whose column has come to `due_by`.

    There are none unless the clock is between `first` and `last` when the statement is executed.

    They are chosen by the index of that column, passing over those that another transaction holds, and
    locked; PostgreSQL checks the conditions again on what it locked. So they must not stand outside as
    well: it would then visit all rows that are due, not only those chosen. And the choice must not be
    joined as a plain subquery, which may be made anew for each row.
    """
    # In a subquery, so that PostgreSQL evaluates it once, before it looks at any row.
    first, last = (bindparam(name, type_=BigInteger) for name in ("first", "last"))
    in_time = select(executed).scalar_subquery().between(first, last)
    chosen = (
        select(_c.id)
        .where(state, in_time, column <= bindparam("due_by", type_=BigInteger))
        .order_by(column)
        .limit(bindparam("batch", type_=BigInteger))
        .with_for_update(skip_locked=True)
        .cte("due")
        .prefix_with("MATERIALIZED")
    )
    return _c.id.in_(select(chosen.c.id))


def _any_is_awaited(now: ColumnElement[int]) -> ColumnElement[bool]:
    """There is a lease, a Cancel that its producer has not answered, or a timeout that has passed."""
    return or_(
        *(
            select(_c.id).where(~_c.done, awaited).exists()
            for awaited in (
                _c.lease_expires_at.is_not(None),
                _c.cancel_requested_at.is_not(None),
                _c.timeout_at <= now,
            )
        )
    )


def _returning_record(statement: Changing) -> UpdateBase:
    return statement.returning(*RECORD)
