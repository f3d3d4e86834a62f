"""Who calls, and what they may do with operations of which parents. Standard library only.

A grant is written ROLE:PARENT, as in `viewer:folders/b1g`: the role on that very parent. With `/*` behind it,
`viewer:folders/b1g/*`, it holds for that parent and all below it, by whole segments; `viewer:*` holds
for all parents, and `viewer:` for the operations that have none.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

MAX_SUBJECT = 255
"""Characters (OpenID Connect Core 1.0, section 2)."""

MAX_GRANTS = 100
"""Of a token, of a subject of the policy, and of everyone."""

_ALL = "*"
_BELOW = "/*"


class Right(Enum):
    """What is done with an operation; its value ends the sentence "may not … operation X"."""

    SEE = "see"
    CANCEL = "cancel"
    DELETE = "delete"
    PRODUCE = "start, renew or end"


class Role(Enum):
    """What a caller is for a parent."""

    VIEWER = "viewer"
    EDITOR = "editor"
    PRODUCER = "producer"
    ADMIN = "admin"


RIGHTS: dict[Role, frozenset[Right]] = {
    Role.VIEWER: frozenset({Right.SEE}),
    Role.EDITOR: frozenset({Right.SEE, Right.CANCEL, Right.DELETE}),
    Role.PRODUCER: frozenset({Right.SEE, Right.PRODUCE}),
    Role.ADMIN: frozenset(Right),
}
_OF_CREATOR = frozenset({Right.SEE, Right.CANCEL})
"""What everybody may do with the operations that were created by them, or for them."""


@dataclass(frozen=True, slots=True)
class Subtree:
    """A parent, and with `below` all that lie below it, by whole segments."""

    parent: str
    below: bool = False

    def covers(self, parent: str) -> bool:
        if parent == self.parent:
            return True
        return self.below and (not self.parent or parent.startswith(f"{self.parent}/"))

    def __str__(self) -> str:
        if not self.below:
            return self.parent
        return self.parent + _BELOW if self.parent else _ALL


EVERYWHERE = Subtree("", below=True)


@dataclass(frozen=True, slots=True)
class Grant:
    role: Role
    subtree: Subtree

    def __str__(self) -> str:
        return f"{self.role.value}:{self.subtree}"


def parse_grant(text: str) -> Grant:
    """Raises ValueError, which says what is wrong, for anything but ROLE:PARENT."""
    name, colon, parent = text.partition(":")
    if not colon:
        # Shortened: somebody may have put a token there.
        raise ValueError(
            f"{text[:16]!r} is no grant: expected ROLE:PARENT, such as viewer:folders/b1g/*"
        )
    try:
        role = Role(name)
    except ValueError:
        known = ", ".join(role.value for role in Role)
        raise ValueError(f"{text[:80]!r}: unknown role; the roles are {known}") from None
    if parent == _ALL:
        return Grant(role, EVERYWHERE)
    below = parent.endswith(_BELOW)
    parent = parent.removesuffix(_BELOW)
    # A star elsewhere would look as if it matched something, and an empty segment matches nothing.
    if (
        "*" in parent
        or not parent.isprintable()
        or (not all(parent.split("/")) and (parent or below))
    ):
        raise ValueError(
            f"{text[:80]!r}: a parent is segments joined by '/', with '/*' only at its end"
        )
    return Grant(role, Subtree(parent, below))


@dataclass(frozen=True, slots=True)
class Scope:
    """The operations that a caller may see: those of these parents, and those that are their own."""

    subtrees: tuple[Subtree, ...]
    created_by: str


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller. `source` says how they showed who they are; `expires_at` is seconds since the epoch."""

    subject: str
    grants: tuple[Grant, ...] = ()
    source: str = ""
    expires_at: float | None = None

    def may(self, right: Right, parent: str, created_by: str) -> bool:
        """Whether they may do this with an operation of this parent that was created by, or for, somebody."""
        own = created_by == self.subject and right in _OF_CREATOR and self.subject != ""
        return own or any(
            right in RIGHTS[grant.role] and grant.subtree.covers(parent) for grant in self.grants
        )

    def may_any(self, right: Right) -> bool:
        """Whether there can be an operation that they may do this with."""
        own = right in _OF_CREATOR and self.subject != ""
        return own or any(right in RIGHTS[grant.role] for grant in self.grants)

    @property
    def sees_everything(self) -> bool:
        """Every role may see."""
        return self is ANYBODY or any(grant.subtree == EVERYWHERE for grant in self.grants)

    def scope(self) -> Scope | None:
        """What they may see; None when that is everything. Every role may see."""
        subtrees = _outermost({grant.subtree for grant in self.grants})
        return None if EVERYWHERE in subtrees else Scope(subtrees, self.subject)


ANYBODY = Identity("", (Grant(Role.ADMIN, EVERYWHERE),), "anonymous")
"""Every caller of a server without authentication: they may do everything."""

NOBODY = Identity("")
"""A caller who was not asked who they are, where others are asked: they may do nothing with operations."""


def _outermost(subtrees: Collection[Subtree]) -> tuple[Subtree, ...]:
    """Without those that lie within another."""
    whole = {subtree.parent for subtree in subtrees if subtree.below}

    def lies_within_another(subtree: Subtree) -> bool:
        if subtree == EVERYWHERE:
            return False
        if not subtree.below and subtree.parent in whole:
            return True
        segments = subtree.parent.split("/")
        above = ("/".join(segments[:count]) for count in range(1, len(segments)))
        return "" in whole or any(parent in whole for parent in above)

    kept = (subtree for subtree in subtrees if not lies_within_another(subtree))
    return tuple(sorted(kept, key=lambda each: (each.parent, each.below)))
