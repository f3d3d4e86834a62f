"""The trace that a call belongs to, as its caller says it: https://www.w3.org/TR/trace-context/."""

from __future__ import annotations

import re

from opservice.methods.call import Headers

TRACEPARENT = "traceparent"
_TRACEPARENT = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})"
    r"(?P<known>-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(?P<unknown>-.*)?"
)


def traceparent_of(headers: Headers) -> str:
    """The caller's, in version 00; empty when there is no valid one, or more than one."""
    given = [value for name, value in headers if name == TRACEPARENT]
    found = _TRACEPARENT.fullmatch(given[0]) if len(given) == 1 else None
    # Of a later version what this one knows is taken, and nothing else.
    if found is None or (found["version"] == "00" and found["unknown"] is not None):
        return ""
    return "00" + found["known"]
