"""Durations as people write them: a number and a unit, such as `500ms`, `2m`, `1.5h` or `30d`."""

from __future__ import annotations

import re
from math import isinf

from opservice.domain.operation import DAY, SECOND

MINUTE, HOUR = 60 * SECOND, 3600 * SECOND
_UNITS = {"us": 1, "ms": 1_000, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY}


def parse_duration(text: str) -> int:
    """Microseconds from text such as `500ms`, `2m`, `1.5h` or `30d`. Raises ValueError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h|d)", text.strip())
    if match is None:
        raise ValueError("expected a number and a unit (us, ms, s, m, h, d), such as 30s or 1.5h")
    microseconds = float(match[1]) * _UNITS[match[2]]
    if isinf(microseconds):
        raise ValueError("the number is too large")
    return round(microseconds)


def format_duration(microseconds: int) -> str:
    """The duration in the largest unit that needs no fraction, such as `90s` or `2d`."""
    for unit, length in reversed(_UNITS.items()):
        if microseconds and microseconds % length == 0:
            return f"{microseconds // length}{unit}"
    return "0s"
