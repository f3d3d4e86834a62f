"""What a filter's conditions are in SQL.

They become expressions with bound parameters, never text. None of them is ever NULL: SQL's third truth value
would make NOT miss the operations that have no value.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import ge, gt, le, lt
from typing import Any, assert_never

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Text,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    not_,
    or_,
)

from opservice.domain.filters import (
    Anchor,
    And,
    Comparison,
    Condition,
    Field,
    Kind,
    Label,
    Match,
    Not,
    Operator,
    Or,
    Present,
)
from opservice.store.schema import operations
from opservice.store.sql import in_bytes, position_in

_c = operations.c
_COLUMNS: dict[Field, Column[Any]] = {
    Field.CANCELLED_BY: _c.cancelled_by,
    Field.CREATED_AT: _c.created_at,
    Field.CREATED_BY: _c.created_by,
    Field.DESCRIPTION: _c.description,
    Field.DONE: _c.done,
    Field.ERROR_CODE: _c.error_code,
    Field.ID: _c.id,
    Field.METHOD: _c.method,
    Field.MODIFIED_AT: _c.modified_at,
    Field.PRODUCER: _c.producer,
}
_ORDERS: dict[Operator, Callable[[Any, Any], ColumnElement[bool]]] = {
    Operator.LESS: lt,
    Operator.LESS_OR_EQUAL: le,
    Operator.GREATER: gt,
    Operator.GREATER_OR_EQUAL: ge,
}


def condition_to_sql(condition: Condition) -> ColumnElement[bool]:
    """Means the same on every database."""
    match condition:
        case And():
            return and_(*(condition_to_sql(each) for each in condition.conditions))
        case Or():
            return or_(*(condition_to_sql(each) for each in condition.conditions))
        case Not():
            return not_(condition_to_sql(condition.condition))
        case Present():
            return _present(condition.field)
        case Match():
            return _match(condition)
        case Comparison():
            return _comparison(condition)
        case _:
            assert_never(condition)


def _present(field: Field | Label) -> ColumnElement[bool]:
    value = _value_of(field)
    if isinstance(field, Label):
        return value.is_not(None)
    match field.kind:
        case Kind.BOOLEAN:
            return value
        case Kind.STRING:
            return value != ""
        case Kind.INTEGER | Kind.TIMESTAMP:
            return value.is_not(None)


def _match(match: Match) -> ColumnElement[bool]:
    # Not LIKE: SQLite's takes no notice of case, and its wildcards would have to be escaped.
    value, length = _value_of(match.field), len(match.text)
    text = bindparam(None, match.text, Text)
    matched: ColumnElement[bool]
    match match.anchor:
        case Anchor.START:
            matched = func.substr(value, 1, length) == text
        case Anchor.END:
            matched = func.substr(value, func.length(value) - length + 1) == text
        case Anchor.ANYWHERE:
            matched = position_in(value, text) > 0
    return and_(value.is_not(None), matched) if _may_be_missing(match.field) else matched


def _comparison(comparison: Comparison) -> ColumnElement[bool]:
    field, expected = comparison.field, comparison.value
    value, may_be_missing = _value_of(field), _may_be_missing(field)
    if field.kind is Kind.BOOLEAN:
        return value if expected else not_(value)
    # BigInteger: a number that is too large for its column is no error.
    literal_ = bindparam(None, expected, Text if field.kind is Kind.STRING else BigInteger)
    if comparison.operator is Operator.EQUAL:
        return value.is_not_distinct_from(literal_) if may_be_missing else value == literal_
    # Never as a range of an index, which would not be that of the order: hence "" and 0.
    ordered: ColumnElement[Any]
    ordered = in_bytes(value.concat("")) if field.kind is Kind.STRING else value + 0
    compared = _ORDERS[comparison.operator](ordered, literal_)
    return and_(value.is_not(None), compared) if may_be_missing else compared


def _value_of(field: Field | Label) -> ColumnElement[Any]:
    return _label(field.key) if isinstance(field, Label) else _COLUMNS[field]


def _may_be_missing(field: Field | Label) -> bool:
    return isinstance(field, Label) or bool(_COLUMNS[field].nullable)


def _label(key: str) -> ColumnElement[Any]:
    """The label's value, NULL when there is none. What is searched is the text of domain/labels.py."""
    before = f"\n{key}="
    start = position_in(_c.labels, bindparam(None, before, Text))
    # The numbers are no parameters: those would be of a type that PostgreSQL's substr does not take.
    rest = func.substr(_c.labels, start + literal_column(str(len(before))))
    end = position_in(rest, bindparam(None, "\n", Text)) - literal_column("1")
    return case((start > 0, func.substr(rest, 1, end)))
