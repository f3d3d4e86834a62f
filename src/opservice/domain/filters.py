"""What List asks for: the query, and its filter as a tree. Standard library only, beside who may see what.

Two-valued logic: every condition is either true or false of an operation, also where it has no value,
so that `Not` is true of exactly those operations of which its condition is not. What the fields and
their missing values mean is in docs/filters.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Self

from opservice.domain.identity import Scope

Position = tuple[int, str]
"""A place in the order of creation: `created_at` and `id`."""


class Kind(Enum):
    """The type of a field's values."""

    BOOLEAN = "boolean"
    INTEGER = "integer"
    STRING = "string"
    TIMESTAMP = "timestamp"
    """Microseconds since the epoch."""


class Field(Enum):
    """What may stand on the left of an operator, by the name that it has there."""

    kind: Kind

    def __new__(cls, name: str, kind: Kind) -> Self:
        made = object.__new__(cls)
        made._value_ = name
        made.kind = kind
        return made

    CANCELLED_BY = "cancelled_by", Kind.STRING
    CREATED_AT = "created_at", Kind.TIMESTAMP
    CREATED_BY = "created_by", Kind.STRING
    DESCRIPTION = "description", Kind.STRING
    DONE = "done", Kind.BOOLEAN
    ERROR_CODE = "error.code", Kind.INTEGER
    ID = "id", Kind.STRING
    METHOD = "method", Kind.STRING
    MODIFIED_AT = "modified_at", Kind.TIMESTAMP
    PRODUCER = "producer", Kind.STRING


@dataclass(frozen=True, slots=True)
class Label:
    """The label with this key, on the left of an operator. An operation may lack it."""

    key: str

    @property
    def value(self) -> str:
        """The name that it has there."""
        return f"labels.{self.key}"

    @property
    def kind(self) -> Kind:
        return Kind.STRING


class Operator(Enum):
    EQUAL = "="
    LESS = "<"
    LESS_OR_EQUAL = "<="
    GREATER = ">"
    GREATER_OR_EQUAL = ">="


class Anchor(Enum):
    """Where in a string a text is to stand."""

    START = "start"
    END = "end"
    ANYWHERE = "anywhere"


@dataclass(frozen=True, slots=True)
class Comparison:
    """False of a missing value. Strings compare by code point."""

    field: Field | Label
    operator: Operator
    value: bool | int | str


@dataclass(frozen=True, slots=True)
class Match:
    """A string field has the text, in the same case, where the anchor says. False of a missing value."""

    field: Field | Label
    text: str
    anchor: Anchor


@dataclass(frozen=True, slots=True)
class Present:
    """The field has a value other than the default of its type; a label is there, though it be empty."""

    field: Field | Label


@dataclass(frozen=True, slots=True)
class Not:
    condition: Condition


@dataclass(frozen=True, slots=True)
class And:
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Or:
    conditions: tuple[Condition, ...]


Condition = Comparison | Match | Present | Not | And | Or


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Up to `limit` operations, newest first: of a parent, or of all when it is None; after a position.

    Only those within the scope, of which None is everything.
    """

    parent: str | None
    limit: int
    condition: Condition | None = None
    after: Position | None = None
    scope: Scope | None = None
    changed_since: int | None = None
    """Only those that have changed since that time, those that were deleted or have expired since among them.

    Microseconds since the epoch.
    """


def depth(condition: Condition) -> int:
    """How many levels of conditions there are within one another. Does not recurse."""
    deepest, left = 1, [(condition, 1)]
    while left:
        part, level = left.pop()
        deepest = max(deepest, level)
        match part:
            case Not():
                left.append((part.condition, level + 1))
            case And() | Or():
                left += ((inner, level + 1) for inner in part.conditions)
    return deepest
