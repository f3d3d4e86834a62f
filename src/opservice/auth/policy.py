"""The files of static tokens and of the policy (YAML): how callers authenticate, and what they may do.

A policy grants to subjects, and to everyone who has authenticated:

    everyone: [viewer:public/*]
    subjects:
      alice: [editor:folders/b1g/*]
      spiffe://example.org/registry: [producer:*]

The file of static tokens holds only their SHA-256 hashes, so it reveals no token. `opservice token` makes a
token and its entry:

    - subject: alice
      sha256: 5e88…
      grants: [viewer:*]                # added to those of the policy
      expires: 2027-01-01T00:00:00Z     # optional
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from opservice.common.threads import no_garbage_collection
from opservice.domain.errors import StartupError
from opservice.domain.identity import MAX_GRANTS, MAX_SUBJECT, Grant, parse_grant

if yaml.__with_libyaml__:
    from yaml._yaml import CParser

_TOKEN_PREFIX = "opservice_"  # noqa: S105 - lets scanners find tokens where they should not be
_SHOWN = 16
"""Characters of an unknown key that an error shows."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Policy:
    """What subjects may do, and what everyone may do who has authenticated."""

    subjects: Mapping[str, tuple[Grant, ...]] = field(default_factory=dict)
    everyone: tuple[Grant, ...] = ()

    def grants_of(self, subject: str) -> tuple[Grant, ...]:
        """The subject's own grants, and those of everyone."""
        return self.subjects.get(subject, ()) + self.everyone


@dataclass(frozen=True, slots=True)
class StaticToken:
    """Who the holder of a token is; `expires_at` is seconds since the epoch."""

    subject: str
    grants: tuple[Grant, ...]
    expires_at: float | None


StaticTokens = Mapping[str, StaticToken]
"""Tokens by their hashes, as `hash_token` makes them."""


def new_token() -> str:
    """A new token with 256 random bits, so many that a plain hash of it reveals nothing."""
    return _TOKEN_PREFIX + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """The SHA-256 of the token, as 64 hexadecimal digits."""
    return hashlib.sha256(token.encode()).hexdigest()


def valid_subject(value: object) -> bool:
    """Whether the value can be a subject: text of 1 to MAX_SUBJECT printable characters."""
    return isinstance(value, str) and 0 < len(value) <= MAX_SUBJECT and value.isprintable()


def read_policy(path: Path) -> Policy:
    """Reads the file. May block. Raises StartupError, which says what is wrong and where."""
    text = _read(path)
    try:
        with no_garbage_collection():
            return _policy(_load(path, text))
    except ValueError as error:
        raise StartupError(f"the policy {path} cannot be used: {error}") from error


def read_tokens(path: Path) -> StaticTokens:
    """Reads the file. May block. Raises StartupError, which says what is wrong and where."""
    text = _read(path)
    try:
        with no_garbage_collection():
            return _static_tokens(_load(path, text))
    except ValueError as error:
        raise StartupError(f"the tokens {path} cannot be used: {error}") from error


def _policy(content: object) -> Policy:
    entry = _mapping(content, "the policy", {"subjects", "everyone"})
    subjects = _mapping(entry.get("subjects") or {}, "subjects")
    for subject in subjects:
        if not valid_subject(subject):
            raise ValueError(f"subjects: {subject!r} is no subject: quote it if it is text")
    granted = {subject: _grants(grants, subject) for subject, grants in subjects.items()}
    return Policy(granted, _grants(entry.get("everyone"), "everyone"))


def _static_tokens(content: object) -> StaticTokens:
    if not isinstance(content, list):
        raise ValueError("expected a list of entries that begin with '- subject:'")  # noqa: TRY004 - one error for all
    tokens: dict[str, StaticToken] = {}
    for number, item in enumerate(content, 1):
        hash_, token = _token(item, f"entry {number}")
        if hash_ in tokens:
            raise ValueError(f"entry {number}: the token stands there twice")
        tokens[hash_] = token
    return tokens


def _token(item: object, where: str) -> tuple[str, StaticToken]:
    entry = _mapping(item, where, {"subject", "sha256", "grants", "expires"})
    subject, hash_, expires = entry.get("subject"), entry.get("sha256"), entry.get("expires")
    if not valid_subject(subject):
        raise ValueError(f"{where}: subject must be text of 1 to {MAX_SUBJECT} characters")
    if not isinstance(hash_, str) or not _SHA256.fullmatch(hash_):
        # Not shown: it may be the token itself.
        raise ValueError(f"{where}: sha256 must be 64 hexadecimal digits in quotes")
    expires_at = None
    if expires is not None:
        if not isinstance(expires, datetime) or expires.tzinfo is None:
            raise ValueError(f"{where}: expires must be a time such as 2027-01-01T00:00:00Z")
        expires_at = expires.timestamp()
    return hash_, StaticToken(str(subject), _grants(entry.get("grants"), where), expires_at)


if TYPE_CHECKING or not yaml.__with_libyaml__:
    _FastLoader = yaml.SafeLoader
else:

    class _FastLoader(Composer, CParser, SafeConstructor, Resolver):
        """libyaml finds the events, which makes it fast.

        yaml.CSafeLoader would also compose them in C, and hold Python's global lock for all of a long file.
        """

        def __init__(self, stream: str) -> None:
            CParser.__init__(self, stream)
            Composer.__init__(self)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)


class _Loader(_FastLoader):
    """Refuses a key that occurs twice. YAML would take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(
                None, None, "a key stands twice", node.start_mark
            )
        return mapping


# PyYAML lets some of what tags of values lead to pass, such as `!!bool x` and `!!timestamp x`.
_NOT_YAML = (
    yaml.YAMLError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    TypeError,
    RecursionError,
)


def _read(path: Path) -> str:
    """May block for as long as the file system blocks."""
    try:
        return path.read_text()
    except OSError as error:
        raise StartupError(f"cannot read {path}: {error.strerror}") from error
    except ValueError:
        raise StartupError(f"{path} is not YAML") from None


def _load(path: Path, text: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - it is a safe one
    except _NOT_YAML as error:
        # Only where the error is: its text would quote the file.
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" at line {mark.line + 1}"
        raise StartupError(f"{path} is not YAML{where}") from None


def _mapping(value: object, where: str, known: set[str] | None = None) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a mapping")  # noqa: TRY004 - one error for all
    unknown = [] if known is None else sorted(str(key) for key in value if key not in known)
    if unknown:
        # Shortened, because somebody may have put a token there.
        shown = ", ".join(each[:_SHOWN] for each in unknown[:5])
        raise ValueError(f"{where}: unknown {shown}")
    return value


def _grants(value: object, where: str) -> tuple[Grant, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{where}: expected a list of grants, such as [viewer:folders/b1g/*]")
    if len(value) > MAX_GRANTS:
        raise ValueError(f"{where}: {len(value)} grants, at most {MAX_GRANTS} are allowed")
    try:
        return tuple(map(parse_grant, value))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
