"""Pages of operations, newest first."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    case,
    false,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
    union,
    union_all,
)

from opservice.domain.filters import (
    And,
    Comparison,
    Condition,
    Field,
    ListQuery,
    Operator,
    Position,
)
from opservice.domain.identity import EVERYWHERE
from opservice.domain.operation import Record
from opservice.store.conditions import condition_to_sql
from opservice.store.schema import BY_CREATION, operations
from opservice.store.statements import RECORD, THESE, record_of

PAGE_BYTES = 3 << 20
"""What is kept in a page's operations; clients accept messages of 4 MiB."""

WINDOW = 5_000
"""Operations that one query of a filtered list looks at: it must not run into its time limit."""
WINDOWS = 20
"""Queries for one page. When the page is not full by then, the next one goes on from there."""
MAX_SECONDS = 1.0
"""After which no further query is made for a page: others wait for theirs."""

MAX_RANGES = 8
"""Parents that are each read in their order, which each makes the statement longer; what a caller may see
beside them is sorted."""

_AFTER_SLASH = chr(ord("/") + 1)
_OVERHEAD_BYTES = 128  # of what has a fixed size, and of protobuf

_c = operations.c
_PAYLOADS = (_c.metadata, _c.response, _c.error)
_TEXTS = (
    _c.parent,
    _c.method,
    _c.description,
    _c.created_by,
    _c.progress_unit,
    _c.progress_message,
    _c.cancelled_by,
    _c.producer,
    _c.labels,
    _c.traceparent,
)


def _lengths(columns: Iterable[Column[Any]]) -> list[ColumnElement[int]]:
    return [func.coalesce(func.length(column), 0) for column in columns]


_SIZE = (
    sum(_lengths(_PAYLOADS), literal(_OVERHEAD_BYTES))
    + 4 * sum(_lengths(_TEXTS), literal(0))  # a character has at most 4 bytes
).label("size")


@dataclass(frozen=True, slots=True)
class Listed:
    """`end` is where the next page begins, and None when there is nothing more."""

    records: tuple[Record, ...]
    end: Position | None


def read_page(
    connection: Connection,
    query: ListQuery,
    visible: ColumnElement[bool],
    *,
    page_bytes: int = PAGE_BYTES,
    window: int = WINDOW,
    windows: int = WINDOWS,
) -> Listed:
    """Fewer operations than the query's limit when they are large, or when few satisfy its condition:
    possibly none, though there is more. Otherwise at least one, whatever its size.
    """
    if query.condition is not None:
        # Hardly any filter comes twice, and what is kept of each would take half a mebibyte.
        connection = connection.execution_options(compiled_cache=None)
    plan = _plan(query, visible)
    if not plan.ranges:
        return Listed((), None)
    # Sizes first: a page of the largest operations would not fit into memory.
    sizes, looked_at = _fetch_sizes(connection, plan, query.limit + 1, window, windows)
    ids, end = _fit(sizes, query.limit, page_bytes, looked_at)
    if not ids:
        return Listed((), end)
    # Again with the conditions: it may have changed since.
    reading = select(*RECORD).where(*plan.wanted, THESE)
    rows = connection.execute(reading, {"operation_ids": ids})
    records = {record.id: record for record in map(record_of, rows)}
    return Listed(tuple(records[id_] for id_ in ids if id_ in records), end)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a page is read from. The operations come after `newer` and not after `older`."""

    ranges: Sequence[_Range]
    wanted: Sequence[ColumnElement[bool]]
    newer: Position | None
    older: Position | None
    walks: bool
    """Most of what is looked at may be unwanted, so that it is looked at in windows."""


def _plan(query: ListQuery, visible: ColumnElement[bool]) -> _Plan:
    newer, older, conditions = _span(query.condition)
    ranges, narrowed = _ranges(query)
    since = query.changed_since
    if since is not None:
        changed = or_(_c.modified_at >= since, and_(~visible, _c.expires_at >= since))
        visible = _checked(changed)
    wanted = [visible, *map(_checked, narrowed)]
    for each in conditions:
        one = condition_to_sql(each)
        wanted.append(one if _names_one(each) else _checked(one))
    begin = min(filter(None, (query.after, newer)), default=None)
    walks = bool(conditions or narrowed or since is not None) and not any(
        map(_names_one, conditions)
    )
    return _Plan(ranges, wanted, begin, older, walks)


def _fetch_sizes(
    connection: Connection, plan: _Plan, most: int, window: int, windows: int
) -> tuple[list[Row[Any]], Position | None]:
    """Places and sizes of at most so many operations, and how far it has looked: None for to the end.

    It looks at `windows` windows of `window` operations each, and begins none after MAX_SECONDS.
    """
    deadline = time.monotonic() + MAX_SECONDS
    columns = (_c.created_at, _c.id, _SIZE)
    sizes: list[Row[Any]] = []
    begin, older = plan.newer, plan.older
    for _ in range(windows if plan.walks else 1):
        end = _last_of(connection, plan.ranges, begin, older, window) if plan.walks else None
        sizes += connection.execute(
            _newest(columns, plan.ranges, begin, end or older, plan.wanted, most - len(sizes))
        )
        begin = end
        if begin is None or len(sizes) >= most or time.monotonic() > deadline:
            break
    return sizes, begin


def _fit(
    sizes: Sequence[Row[Any]], limit: int, page_bytes: int, looked_at: Position | None
) -> tuple[list[str], Position | None]:
    """The ids of the operations that make the page, and where the next one begins."""
    fitting = _fitting(sizes[:limit], page_bytes)
    ids = [row.id for row in sizes[:fitting]]
    if fitting == len(sizes):
        return ids, looked_at
    return ids, (sizes[fitting - 1].created_at, sizes[fitting - 1].id)


@dataclass(frozen=True, slots=True)
class _Range:
    """Operations that are read by an index. It has them by creation, or they are to be sorted.

    A list reads its ranges and nothing else, so that neither how long it takes nor where its pages end
    tells of operations that the caller may not see.
    """

    condition: ColumnElement[bool]
    ordered: bool = True

    @property
    def created_at(self) -> ColumnElement[int]:
        # An expression, so that the index of all operations by creation is not walked instead.
        return _c.created_at if self.ordered else _c.created_at + 0


def _ranges(query: ListQuery) -> tuple[list[_Range], list[ColumnElement[bool]]]:
    """The ranges of a list, which may overlap, and what else its operations must satisfy."""
    parent, scope = query.parent, query.scope
    if parent is None and (scope is None or EVERYWHERE in scope.subtrees):
        return [_Range(BY_CREATION)], []
    of_parent = _c.parent == parent
    if scope is None or (parent is not None and any(s.covers(parent) for s in scope.subtrees)):
        return [_Range(of_parent)], []
    # What nobody is said to have created is not everybody's.
    own = [_Range(_c.created_by == scope.created_by)] if scope.created_by else []
    if parent is not None:
        return own, [of_parent]
    exact = [subtree.parent for subtree in scope.subtrees if not subtree.below]
    ranges = [_Range(_c.parent == each) for each in exact[:MAX_RANGES]]
    sorted_: list[ColumnElement[bool]] = []
    if len(exact) > MAX_RANGES:
        sorted_.append(_c.parent.in_(exact[MAX_RANGES:]))
    for subtree in scope.subtrees:
        if subtree.below:
            first, behind = f"{subtree.parent}/", f"{subtree.parent}{_AFTER_SLASH}"
            sorted_ += [
                _c.parent == subtree.parent,
                and_(_c.parent >= first, _c.parent < behind),
            ]
    if sorted_:
        ranges.append(_Range(or_(*sorted_), ordered=False))
    return [*ranges, *own], []


def _span(
    condition: Condition | None,
) -> tuple[Position | None, Position | None, list[Condition]]:
    """What the condition says of `created_at` as positions, between which the index is read, and the rest.

    The operations come before the first position and not before the second. No id is less than "".
    """
    newer: list[Position] = []
    older: list[Position] = []
    rest: list[Condition] = []
    conditions = condition.conditions if isinstance(condition, And) else (condition,)
    for each in conditions:
        match each:
            case Comparison(Field.CREATED_AT, operator, int(time)):
                if operator in (Operator.LESS, Operator.LESS_OR_EQUAL, Operator.EQUAL):
                    newer.append((time + (operator is not Operator.LESS), ""))
                if operator in (Operator.GREATER, Operator.GREATER_OR_EQUAL, Operator.EQUAL):
                    older.append((time + (operator is Operator.GREATER), ""))
            case None:
                pass
            case _:
                rest.append(each)
    return min(newer, default=None), max(older, default=None), rest


def _newest(
    columns: Sequence[ColumnElement[Any]],
    ranges: Sequence[_Range],
    newer: Position | None,
    older: Position | None,
    wanted: Sequence[ColumnElement[bool]],
    limit: int,
) -> Select[Any]:
    """The newest `limit` operations of all ranges together that come after one position and not after the
    other. The columns begin with `created_at` and, with several ranges, `id`.
    """
    selects = []
    for each in ranges:
        place = tuple_(each.created_at, _c.id)
        conditions = [each.condition, *wanted]
        if newer is not None:
            conditions.append(place < _position(newer))
        if older is not None:
            conditions.append(place >= _position(older))
        newest = (each.created_at.desc(), _c.id.desc())
        selects.append(select(*columns).where(*conditions).order_by(*newest).limit(limit))
    if len(selects) == 1:
        return selects[0]
    # UNION also takes out what is in several ranges.
    together = union(*(select(each.subquery()) for each in selects)).subquery()
    order = (together.c.created_at.desc(), together.c.id.desc())
    return select(together).order_by(*order).limit(limit)


def _checked(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """The condition, but no reason to read another index, which would have what nobody may know of."""
    return case((condition, true()), else_=false())


def _position(position: Position) -> ColumnElement[Any]:
    created_at, id_ = position
    return tuple_(bindparam(None, created_at, BigInteger), bindparam(None, id_, _c.id.type))


def _last_of(
    connection: Connection,
    ranges: Sequence[_Range],
    newer: Position | None,
    older: Position | None,
    rows: int,
) -> Position | None:
    """Where the first `rows` operations end, or None when there are fewer.

    It has no id, so that all of the last one's moment are among them: only the indexes are read. Where ranges
    overlap, fewer operations than `rows` are.
    """
    selects = []
    for each in ranges:
        conditions = [each.condition]
        if newer is not None:
            created_at, id_ = newer
            moment = bindparam(None, created_at, BigInteger)
            conditions.append(each.created_at <= moment if id_ else each.created_at < moment)
        if older is not None:
            conditions.append(each.created_at >= bindparam(None, older[0], BigInteger))
        moments = select(each.created_at.label("created_at")).where(*conditions)
        selects.append(moments.order_by(each.created_at.desc()).limit(rows))
    together = union_all(*(select(each.subquery()) for each in selects)).subquery()
    newest = select(together).order_by(together.c.created_at.desc())
    row = connection.execute(newest.offset(rows - 1).limit(1)).one_or_none()
    return None if row is None else (row.created_at, "")


def _fitting(sizes: Sequence[Row[Any]], most: int) -> int:
    """How many of the first together have at most so many bytes; at least one, if there is one."""
    together = 0
    for index, row in enumerate(sizes):
        together += row.size
        if together > most and index:
            return index
    return len(sizes)


def _names_one(condition: Condition) -> bool:
    """At most one operation can satisfy it, and its id is known."""
    return isinstance(condition, Comparison) and (condition.field, condition.operator) == (
        Field.ID,
        Operator.EQUAL,
    )
