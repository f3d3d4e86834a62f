"""Filters made at random: as conditions, as text, and what they mean, in plain Python."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from operator import eq, ge, gt, le, lt
from typing import Any

from google.rpc.code_pb2 import Code
from hypothesis import strategies as st

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
from opservice.domain.labels import labels_from_text
from opservice.domain.operation import SECOND, Record

EPOCH = 1_700_000_000 * SECOND

_ALPHABET = "aAbz *%_?[\\\"'():.-éÉя😀\ue000ss"
texts = st.text(_ALPHABET, max_size=4)
words = st.text("aAbB", max_size=2)
times = st.integers(-3, 3).map(lambda n: EPOCH + n * SECOND // 2) | st.integers(
    EPOCH - 5, EPOCH + 5
)
codes = st.integers(0, 3) | st.sampled_from([-5, 16, 40_000, 2**31 - 1])

_VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.BOOLEAN: st.booleans(),
    Kind.INTEGER: codes,
    Kind.STRING: texts | words,
    Kind.TIMESTAMP: times,
}
_LABELS = [Label("a"), Label("b.c"), Label("a-b_1")]
_FIELDS: list[Field | Label] = [*Field, *_LABELS]
_STRINGS = [field for field in _FIELDS if field.kind is Kind.STRING]


@st.composite
def _comparisons(draw: st.DrawFn) -> Comparison:
    field = draw(st.sampled_from(_FIELDS))
    operators = [Operator.EQUAL] if field.kind is Kind.BOOLEAN else list(Operator)
    return Comparison(field, draw(st.sampled_from(operators)), draw(_VALUES[field.kind]))


@st.composite
def _matches(draw: st.DrawFn) -> Match:
    field, text = draw(st.sampled_from(_STRINGS)), draw(texts | words)
    return Match(field, text, draw(st.sampled_from(Anchor)) if text else Anchor.ANYWHERE)


def _compound(inner: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    """As the parser leaves them: no And directly within an And, no Or within an Or, no Not in a Not."""

    def several(kind: type[And | Or]) -> st.SearchStrategy[Condition]:
        others = inner.filter(lambda each: not isinstance(each, kind))
        return st.lists(others, min_size=2, max_size=3).map(lambda found: kind(tuple(found)))

    return (
        several(And) | several(Or) | inner.filter(lambda each: not isinstance(each, Not)).map(Not)
    )


conditions: st.SearchStrategy[Condition] = st.recursive(
    _comparisons() | _matches() | st.sampled_from(_FIELDS).map(Present), _compound, max_leaves=8
)


@st.composite
def filters(draw: st.DrawFn) -> tuple[Condition, str]:
    """A condition, and one of the ways to write it."""
    condition = draw(conditions)
    return condition, _Writer(draw).expression(condition)


class _Writer:
    """Writes each thing in one of the ways in which it can be written, parentheses only where needed."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def _one_of(self, *ways: str) -> str:
        return self._draw(st.sampled_from(ways))

    def expression(self, condition: Condition) -> str:
        if not isinstance(condition, And):
            return self._factor(condition)
        written = self._factor(condition.conditions[0])
        for each in condition.conditions[1:]:
            written += self._one_of(" ", "\n ", " AND ") + self._factor(each)
        return written

    def _factor(self, condition: Condition) -> str:
        if isinstance(condition, Or):
            return " OR ".join(self._term(each) for each in condition.conditions)
        return self._term(condition)

    def _term(self, condition: Condition) -> str:
        if isinstance(condition, Not):
            inner = condition.condition
            if isinstance(inner, Comparison) and inner.operator is Operator.EQUAL and self._maybe():
                return f"{inner.field.value}!={self._value(inner.field, inner.value)}"
            return self._one_of("-", "NOT ") + self._simple(inner)
        return self._simple(condition)

    def _maybe(self) -> bool:
        return self._draw(st.booleans())

    def _simple(self, condition: Condition) -> str:
        match condition:
            case Comparison(field, operator, value):
                sign = operator.value
                if operator is Operator.EQUAL and field.kind is not Kind.STRING:
                    sign = self._one_of("=", ":")
                space = self._one_of("", " ")
                return f"{field.value}{space}{sign}{space}{self._value(field, value)}"
            case Match(field, text, anchor):
                if anchor is Anchor.ANYWHERE and self._maybe():
                    return f"{field.value}:{self._string(text)}"
                start = "" if anchor is Anchor.START else "*"
                end = "" if anchor is Anchor.END or not text else "*"
                return f"{field.value} = {self._string(text, start, end)}"
            case Present(Label(key)) if self._maybe():
                return f"labels:{key}"
            case Present(field):
                return f"{field.value}:{self._one_of('*', chr(34) + '*' + chr(34))}"
            case _:
                return f"({self.expression(condition)})"

    def _value(self, field: Field | Label, value: bool | int | str) -> str:
        match field.kind:
            case Kind.BOOLEAN:
                return str(value).lower()
            case Kind.STRING:
                return self._string(str(value))
            case Kind.INTEGER:
                named = value in Code.values() and self._maybe()
                return Code.Name(int(value)) if named else str(value)
            case Kind.TIMESTAMP:
                written = self._timestamp(int(value))
                return f'"{written}"' if self._maybe() else written

    def _timestamp(self, microseconds: int) -> str:
        zone = timezone(timedelta(minutes=self._draw(st.sampled_from([0, -90, 330]))))
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
        written = moment.astimezone(zone).isoformat()
        return written.replace("+00:00", self._one_of("Z", "+00:00", "z"))

    def _string(self, text: str, start: str = "", end: str = "") -> str:
        if text and text.isascii() and text.isalpha() and self._maybe():
            return start + text + end
        quote = self._one_of("'", '"')
        written = text.replace("\\", "\\\\").replace("*", "\\*").replace(quote, f"\\{quote}")
        return f"{quote}{start}{written}{end}{quote}"


def satisfies(record: Record, condition: Condition) -> bool:
    match condition:
        case And():
            return all(satisfies(record, each) for each in condition.conditions)
        case Or():
            return any(satisfies(record, each) for each in condition.conditions)
        case Not():
            return not satisfies(record, condition.condition)
        case Present(Label(key)):
            return key in labels_from_text(record.labels)
        case Present(field):
            return _value_of(record, field) not in (None, "", False)
        case Match(field, text, anchor):
            value = _value_of(record, field)
            if value is None:
                return False
            found = {
                Anchor.START: value.startswith,
                Anchor.END: value.endswith,
                Anchor.ANYWHERE: value.__contains__,
            }
            return bool(found[anchor](text))
        case Comparison(field, operator, expected):
            value = _value_of(record, field)
            compare = {"=": eq, "<": lt, "<=": le, ">": gt, ">=": ge}[operator.value]
            return value is not None and compare(value, expected)


def _value_of(record: Record, field: Field | Label) -> Any:
    if isinstance(field, Label):
        return labels_from_text(record.labels).get(field.key)
    return getattr(record, field.value.replace(".", "_"))
