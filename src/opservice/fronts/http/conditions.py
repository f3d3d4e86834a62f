"""What a request may ask for beside its message: conditions, preferences, the form of streams, deadlines."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

LONGEST_SECONDS = 86_400.0

_LONGEST_PREFERENCES = 300
"""Characters of a Prefer that is read. Quotes without an end take a time that grows with their square."""
_PREFERENCE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
_WAIT = re.compile(r'\s*wait\s*=\s*("?)([0-9]{1,9})\1\s*(;.*)?', re.IGNORECASE)
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,30})?")
_LINES = ("application/json", "application/x-ndjson")
_TAG = re.compile(r'(W/)?("[^"]*")')


def preferred_wait(prefer: str | None) -> int:
    """The seconds of `Prefer: wait=SECONDS` (RFC 7240, section 4.3); 0 when it is not preferred."""
    if prefer is None or len(prefer) > _LONGEST_PREFERENCES:
        return 0
    for preference in _PREFERENCE.findall(prefer):
        if re.split("[=;]", preference, maxsplit=1)[0].strip().lower() == "wait":
            found = _WAIT.fullmatch(preference)
            return 0 if found is None else int(found[2])  # only the first counts (section 2)
    return 0


def server_timeout(given: str | None) -> float | None:
    """The seconds of `X-Server-Timeout`, by which Google's REST clients tell a deadline; None for none.

    Raises ValueError for what is no number of seconds.
    """
    if given is None:
        return None
    if not _SECONDS.fullmatch(given.strip()):
        raise ValueError(f"X-Server-Timeout is {given[:100]!r}: it takes seconds, such as 2.5")
    return min(float(given), LONGEST_SECONDS)


def matching(if_none_match: str | None, etag: str) -> str | None:
    """The tag of this version as the client has it, weak or strong; None when they have it not.

    RFC 9110, section 13.1.2. `*` has any version.
    """
    if if_none_match is None:
        return None
    if if_none_match.strip() == "*":
        return etag
    held = (weak + tag for weak, tag in _TAG.findall(if_none_match) if tag == etag)
    return next(held, None)


def is_met(if_match: str | None, etag: str | None) -> bool:
    """Whether the version is one that the client asks for (RFC 9110, section 13.1.1); None is no version.

    `*` is any. A weak tag is none.
    """
    if if_match is None or if_match.strip() == "*":
        return True
    return any(not weak and tag == etag for weak, tag in _TAG.findall(if_match))


def has_condition(header: Callable[[str], str | None]) -> bool:
    """Whether a request is to be done only if its resource is in some state (RFC 9110, section 13.1)."""
    return header("if-none-match") is not None or not is_met(header("if-match"), None)


def wants_events(accept: str | None) -> bool:
    """Whether a stream is to be server-sent events (RFC 9110, section 12.5.1).

    Only for who names them, and prefers no form of JSON.
    """
    kinds = {} if accept is None else weights(accept)
    wanted = kinds.get("text/event-stream", 0)
    return wanted > 0 and all(wanted >= kinds.get(other, 0) for other in _LINES)


def weights(accept: str) -> Mapping[str, float]:
    """What a header such as Accept names, in lower case, each with its weight."""
    return dict(map(_weighted, accept.lower().split(",")))


def _weighted(item: str) -> tuple[str, float]:
    name, *parameters = (part.strip() for part in item.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name, float(value)
            except ValueError:
                return name, 0.0
    return name, 1.0


def is_json(content_type: str | None) -> bool:
    """Whether a body is said to be JSON in UTF-8."""
    kind, _, parameters = (content_type or "").lower().partition(";")
    charset = re.search(r"charset\s*=\s*\"?([\w-]+)", parameters)
    return kind.strip() == "application/json" and (
        charset is None or charset[1] in {"utf-8", "utf8"}
    )
