"""Expressions that each database spells in its own way.

Each driver says how its database does so (drivers/*/sql.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import ARRAY, JSON, BigInteger, Boolean, Column, ColumnElement, Text, bindparam
from sqlalchemy.sql.functions import GenericFunction

_TEXTS = JSON().with_variant(ARRAY(Text), "postgresql")
"""A list of texts as one parameter."""


class database_clock(GenericFunction[int]):  # noqa: N801 - reads as the SQL function that it is
    """The database's clock, in microseconds since the epoch: all replicas share it.

    Where a statement has several of them, they are the same moment.
    """

    type = BigInteger()
    inherit_cache = True


class wall_clock(GenericFunction[int]):  # noqa: N801 - as above
    """The same clock at the moment of evaluation, however long ago the statement came in."""

    type = BigInteger()
    inherit_cache = True


def clock_that_says(now: Callable[[], int]) -> ColumnElement[int]:
    """A clock that takes the place of the database's: what `now` returns when a statement is executed.

    `now` returns microseconds since the epoch.
    """
    return bindparam("clock", callable_=now, type_=BigInteger())


class position_in(GenericFunction[int]):  # noqa: N801 - as above
    """Where in the first text the second begins, in characters from 1; 0 when it is not there."""

    type = BigInteger()
    inherit_cache = True


class in_bytes(GenericFunction[str]):  # noqa: N801 - as above
    """The text, which compares byte by byte, whatever language the database is set to."""

    type = Text()
    inherit_cache = True


def is_among(column: Column[str], name: str) -> ColumnElement[bool]:
    """The column's value is among those of the parameter with this name, a list of any length.

    The list is one parameter. So the statement is the same for any length: it is compiled and prepared once,
    and the list may be longer than the number of parameters that a statement may have.
    """
    return IsAmong(column, bindparam(name, type_=_TEXTS))


class IsAmong(GenericFunction[bool]):
    """The column in the first place is among the list in the second."""

    type = Boolean()
    inherit_cache = True

    def self_group(self, against: Any = None) -> Any:
        """Stands as it is, not as the number that SQLite takes for a truth value."""
        return self
