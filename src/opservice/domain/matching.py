"""Whether an operation that is in memory satisfies a filter: what conditions_to_sql asks of a database.

A test holds the two to each other.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter, eq, ge, gt, le, lt
from typing import Any, assert_never

from opservice.domain.filters import (
    Anchor,
    And,
    Comparison,
    Condition,
    Field,
    Label,
    Match,
    Not,
    Operator,
    Or,
    Present,
)
from opservice.domain.labels import labels_from_text
from opservice.domain.operation import Record

_OPERATORS: dict[Operator, Callable[[Any, Any], bool]] = {
    Operator.EQUAL: eq,
    Operator.LESS: lt,
    Operator.LESS_OR_EQUAL: le,
    Operator.GREATER: gt,
    Operator.GREATER_OR_EQUAL: ge,
}
_VALUES: dict[Field, Callable[[Record], Any]] = {
    field: attrgetter(field.value.replace(".", "_")) for field in Field
}


def satisfies(record: Record, condition: Condition) -> bool:
    """Two-valued: also of what has no value."""
    match condition:
        case And():
            return all(satisfies(record, each) for each in condition.conditions)
        case Or():
            return any(satisfies(record, each) for each in condition.conditions)
        case Not():
            return not satisfies(record, condition.condition)
        case Present():
            value = _value_of(record, condition.field)
            if isinstance(condition.field, Label):
                return value is not None
            return value not in (None, "", False)
        case Match():
            return _has_text(_value_of(record, condition.field), condition)
        case Comparison():
            value = _value_of(record, condition.field)
            return value is not None and _OPERATORS[condition.operator](value, condition.value)
        case _:
            assert_never(condition)


def _value_of(record: Record, field: Field | Label) -> Any:
    """None when there is none."""
    if isinstance(field, Label):
        return labels_from_text(record.labels).get(field.key)
    return _VALUES[field](record)


def _has_text(value: str | None, match: Match) -> bool:
    if value is None:
        return False
    match match.anchor:
        case Anchor.START:
            return value.startswith(match.text)
        case Anchor.END:
            return value.endswith(match.text)
        case Anchor.ANYWHERE:
            return match.text in value
