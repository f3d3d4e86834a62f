"""Parses the filter of List, by the grammar of AIP-160 (https://google.aip.dev/160), into a Condition.

The grammar follows the published EBNF: OR binds more tightly than AND, and two restrictions beside one
another mean AND. Bare literals, functions, and parentheses to the right of an operator are left out. The
parser is LALR(1) and calls back at each reduction, so nothing here recurses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

from google.rpc.code_pb2 import Code
from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedToken
from lark.lark import PostLex

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
    depth,
)
from opservice.methods.validation import LABEL_KEY

MAX_FILTER = 2048
"""Characters."""
MAX_COMPARISONS = 100
MAX_DEPTH = 20
"""Levels of conditions within conditions."""
MAX_PARENTHESES = 100
"""Pairs. A pair may be superfluous, and costs as much to parse as a comparison."""

_GRAMMAR = r"""
    ?expression: sequence (_AND sequence)* -> conjunction
    ?sequence: factor+ -> conjunction
    ?factor: term (_OR term)* -> disjunction
    ?term: simple
        | (_NOT | _MINUS) simple -> negation
    ?simple: restriction
        | "(" expression ")"
    restriction: FIELD OPERATOR (QUOTED | TIMESTAMP | TEXT)

    // Keywords only as whole words.
    _AND.2: /AND(?![^\s()"'=<>!:,])/
    _OR.2: /OR(?![^\s()"'=<>!:,])/
    _NOT.2: /NOT(?![^\s()"'=<>!:,])/
    _MINUS: "-"
    FIELD: /(?!(?:AND|OR|NOT)(?![^\s()"'=<>!:,\\]))[^\s()"'=<>!:,\\-][^\s()"'=<>!:,\\]*/
    OPERATOR: /<=|>=|!=|[=<>:]/
    QUOTED: /"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'/s
    // Unquoted, though it contains colons.
    TIMESTAMP.1: /[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][^\s()"'=<>!,\\]*/
    TEXT: /(?!(?:AND|OR|NOT)(?![^\s()"'=<>!:,\\]))[^\s()"'=<>!:,\\]+/
    %ignore /\s+/
"""
_FIELDS = {field.value: field for field in Field}
_LABELS = "labels"
_LABEL = f"{_LABELS}."
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC_3339 = re.compile(
    r"(?P<second>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(\.(?P<fraction>[0-9]+))?"
    r"(?P<zone>Z|[+-][0-9]{2}:[0-9]{2})",
    re.IGNORECASE,
)
_INTEGER = re.compile(r"-?[0-9]{1,10}")
_MAX_CODE = 2**31 - 1
_QUOTED = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'""", re.DOTALL)
_CHARACTER = re.compile(r"\\.|.", re.DOTALL)
_WORD = re.compile(r"[^\s()]{1,30}|.", re.DOTALL)
_EXCERPT = 30
"""Characters to either side of what is wrong."""


class FilterError(ValueError):
    """Says what is wrong and where, with an excerpt of the filter and a caret below it."""


class _Wrong(Exception):
    """What is wrong, at a position in the filter, from 0."""

    def __init__(self, position: int | None, message: str) -> None:
        super().__init__(message)
        self.position = position or 0


def parse_filter(text: str) -> Condition | None:
    """The condition; None for an empty filter. Raises FilterError."""
    if not text.strip():
        return None
    try:
        condition = _parse(text)
    except _Wrong as wrong:
        raise FilterError(_located(text, wrong.position, str(wrong))) from None
    levels = depth(condition)
    if levels > MAX_DEPTH:
        raise FilterError(f"is nested {levels} deep, at most {MAX_DEPTH} is allowed")
    return condition


def _parse(text: str) -> Condition:
    try:
        # Typed as the tree, which is not built.
        return cast("Condition", _parser.parse(text))
    except UnexpectedToken as error:
        at_end = error.token.type == "$END"
        raise _syntax_error(
            text, len(text) if at_end else error.pos_in_stream, error.expected
        ) from None
    except UnexpectedCharacters as error:
        raise _syntax_error(text, error.pos_in_stream, error.allowed) from None


def _syntax_error(text: str, position: int | None, expected: set[str]) -> _Wrong:
    assert position is not None
    if position == len(text):
        return _Wrong(position, f"expected {_expectation(expected)}, found the end")
    word = _WORD.match(text, position)
    assert word is not None
    if word[0][0] in "\"'" and not _QUOTED.match(text, position):
        return _Wrong(position, "the string that begins here does not end")
    return _Wrong(position, f"expected {_expectation(expected)}, found {word[0]}")


def _expectation(terminals: set[str]) -> str:
    """What the grammar's terminals are called by those who have not read it."""
    if "TEXT" in terminals:
        return "a value"
    if "OPERATOR" in terminals:
        return "one of = != < <= > >= :"
    if terminals == {"RPAR"}:
        return "a )"
    if "FIELD" not in terminals or "_AND" in terminals:
        return "AND, OR, or a field"
    return "a field, NOT, -, or (" if "_NOT" in terminals else "a field or ("


def _located(text: str, position: int, message: str) -> str:
    start = max(0, position - _EXCERPT)
    shown = text[start : position + _EXCERPT]
    excerpt = "".join(character if character.isprintable() else " " for character in shown)
    return f"at character {position + 1}: {message}\n  {excerpt}\n  {' ' * (position - start)}^"


@v_args(inline=True)
class _Conditions(Transformer[Token, Condition]):
    """Makes conditions of what the parser reduces."""

    def conjunction(self, *conditions: Condition) -> Condition:
        return conditions[0] if len(conditions) == 1 else And(_flat(And, conditions))

    def disjunction(self, *conditions: Condition) -> Condition:
        return conditions[0] if len(conditions) == 1 else Or(_flat(Or, conditions))

    def negation(self, condition: Condition) -> Condition:
        return condition.condition if isinstance(condition, Not) else Not(condition)

    def restriction(self, name: Token, operator: Token, value: Token) -> Condition:
        if name == _LABELS and operator == ":":
            return Present(_label(_plain(value), value))
        field: Field | Label | None = _FIELDS.get(name)
        if field is None and name.startswith(_LABEL):
            field = _label(name.removeprefix(_LABEL), name)
        if field is None:
            known = ", ".join([*_FIELDS, f"{_LABEL}KEY"])
            raise _Wrong(name.start_pos, f'unknown field "{name[:30]}"; the fields are {known}')
        if field.kind is Kind.BOOLEAN and operator not in ("=", "!=", ":"):
            raise _Wrong(operator.start_pos, f"{field.value} goes only with = != :")
        try:
            return _comparison(field, operator, _read(value))
        except ValueError as error:
            raise _Wrong(value.start_pos, f"{value[:40]} {error}") from None


def _label(key: str, token: Token) -> Label:
    if not LABEL_KEY.fullmatch(key):
        raise _Wrong(token.start_pos, f'"{key[:30]}" cannot be the key of a label')
    return Label(key)


def _plain(token: Token) -> str:
    """A value that is to have no wildcard."""
    try:
        literal = _read(token)
    except ValueError as error:
        raise _Wrong(token.start_pos, f"{token[:40]} {error}") from None
    return "*" if literal.has_wildcards else literal.text


def _flat(kind: type[And | Or], conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    flat: list[Condition] = []
    for condition in conditions:
        flat += condition.conditions if isinstance(condition, kind) else (condition,)
    return tuple(flat)


@dataclass(frozen=True, slots=True)
class _Literal:
    """A value without its quotes and escapes, and whether it began and ended with a wildcard."""

    text: str
    open_start: bool
    open_end: bool

    @property
    def has_wildcards(self) -> bool:
        return self.open_start or self.open_end


def _read(token: Token) -> _Literal:
    """Raises ValueError, as all that follow, with what is wrong with the value."""
    characters = _CHARACTER.findall(token[1:-1] if token.type == "QUOTED" else token)
    open_start = characters[:1] == ["*"]
    open_end = len(characters) > 1 and characters[-1] == "*"
    inner = characters[open_start : len(characters) - open_end]
    if "*" in inner:
        raise ValueError(
            r'has a * in its middle: at the ends it stands for any text, "\*" for itself'
        )
    for escape in inner:
        if len(escape) > 1 and escape[1] not in "\\\"'*":
            raise ValueError(rf"""has an unknown escape {escape}; there are \\ \" \' \*""")
    return _Literal("".join(character[-1] for character in inner), open_start, open_end)


def _comparison(field: Field | Label, operator: str, literal: _Literal) -> Condition:
    match operator:
        case ":":
            return _has(field, literal)
        case "=":
            return _equals(field, literal)
        case "!=":
            return Not(_equals(field, literal))
        case _:
            return Comparison(field, Operator(str(operator)), _value(field, literal))


def _has(field: Field | Label, literal: _Literal) -> Condition:
    if literal.has_wildcards and not literal.text:
        return Present(field)
    if field.kind is not Kind.STRING:
        return _equals(field, literal)
    return Match(field, str(_value(field, literal)), Anchor.ANYWHERE)


def _equals(field: Field | Label, literal: _Literal) -> Condition:
    if field.kind is not Kind.STRING or not literal.has_wildcards:
        return Comparison(field, Operator.EQUAL, _value(field, literal))
    if (literal.open_start and literal.open_end) or not literal.text:
        return Match(field, literal.text, Anchor.ANYWHERE)
    return Match(field, literal.text, Anchor.END if literal.open_start else Anchor.START)


def _value(field: Field | Label, literal: _Literal) -> bool | int | str:
    """The literal as a value of the field's kind."""
    if literal.has_wildcards:
        raise ValueError(
            r'has a wildcard, which goes with = and !=, and strings; "\*" is an asterisk'
        )
    return _CONVERSIONS[field.kind](literal.text)


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("is neither true nor false")
    return text == "true"


def _code(text: str) -> int:
    if text in Code.keys():  # noqa: SIM118 - an enum's wrapper, not a mapping
        return Code.Value(text)
    if not _INTEGER.fullmatch(text) or not -_MAX_CODE <= int(text) <= _MAX_CODE:
        raise ValueError("is neither a 32-bit number nor a google.rpc.Code such as NOT_FOUND")
    return int(text)


def _timestamp(text: str) -> int:
    """Microseconds since the epoch."""
    found = _RFC_3339.fullmatch(text)
    if found is None:
        raise ValueError("is not an RFC 3339 time such as 2026-01-02T03:04:05Z")
    fraction = found["fraction"] or ""
    if fraction[6:].strip("0"):
        raise ValueError("is finer than a microsecond")
    try:
        whole = datetime.fromisoformat(f"{found['second']}{found['zone']}".upper())
    except ValueError:
        raise ValueError("is not a time that there is") from None
    microseconds = int(fraction[:6].ljust(6, "0"))
    return (whole - _EPOCH) // timedelta(microseconds=1) + microseconds


_CONVERSIONS: dict[Kind, Callable[[str], bool | int | str]] = {
    Kind.BOOLEAN: _boolean,
    Kind.INTEGER: _code,
    Kind.STRING: str,
    Kind.TIMESTAMP: _timestamp,
}


class _Bounds(PostLex):
    """Counts what costs time to parse between the lexer and the parser, so that no more of it is parsed."""

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        most = {
            "OPERATOR": (MAX_COMPARISONS, "comparisons"),
            "LPAR": (MAX_PARENTHESES, "pairs of parentheses"),
        }
        counts: Counter[str] = Counter()
        for token in stream:
            counts[token.type] += 1
            if token.type in most:
                limit, what = most[token.type]
                if counts[token.type] > limit:
                    raise _Wrong(token.start_pos, f"more than {limit} {what}")
            yield token


_parser = Lark(
    _GRAMMAR, start="expression", parser="lalr", transformer=_Conditions(), postlex=_Bounds()
)
