"""Paths as `google.api.http` annotations have them: `/v1/{name=operations/**}:cancel`.

Grammar: google/api/http.proto. A path is matched as it was sent, before percent-decoding: an encoded `/` or
`:` is part of a value and not of the path. An encoded slash is decoded in every value, also in one of
several segments, where that file would leave it: OpenAPI knows no parameters with slashes, so its clients
encode them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

_PART = re.compile(
    r"\{(?P<field>[\w.]+)(?:=(?P<pattern>[^}]+))?\}|(?P<any>\*\*|\*)|(?P<text>[^{*]+)"
)
_NO_ENCODING = re.compile("%(?![0-9A-Fa-f]{2})")
_WILDCARDS = {"*": "[^/]+", "**": ".+"}


@dataclass(frozen=True, slots=True)
class Template:
    """A path with variables."""

    text: str
    _pattern: re.Pattern[str]
    _fields: Mapping[str, str]
    """The fields that the variables set, by the names of their groups."""

    @classmethod
    def of(cls, text: str) -> Template:
        """Reads an annotation's path. Raises ValueError when it is malformed."""
        pattern, at = "", 0
        fields: dict[str, str] = {}
        while at < len(text):
            part = _PART.match(text, at)
            if part is None:
                raise ValueError(f"{text!r} is no path template, at {at}")
            at = part.end()
            if part["field"] is not None:
                inner = part["pattern"] or "*"
                group = f"v{len(fields)}"
                fields[group] = part["field"]
                pattern += f"(?P<{group}>{_literal(inner)})"
            else:
                pattern += _WILDCARDS[part["any"]] if part["any"] else re.escape(part["text"])
        return cls(text, re.compile(pattern, re.DOTALL), fields)

    @property
    def verb(self) -> str:
        """What follows the last colon: `cancel`; empty without one."""
        return self.text.rpartition("/")[2].rpartition("}")[2].partition(":")[2]

    @property
    def fields(self) -> tuple[str, ...]:
        """The request's fields that the variables set, in the order of the path."""
        return tuple(self._fields.values())

    def matches(self, raw_path: str) -> bool:
        """Whether it is the path's, whatever its variables hold."""
        return self._pattern.fullmatch(raw_path) is not None

    def match(self, raw_path: str) -> dict[str, str] | None:
        """The values of the variables by field, None when the path is another one.

        Raises ValueError when a value is not UTF-8, percent-encoded.
        """
        found = self._pattern.fullmatch(raw_path)
        if found is None:
            return None
        if not is_percent_encoded(raw_path):
            raise ValueError(f"{raw_path!r} is not percent-encoded")
        return {
            field: unquote_to_bytes(found[group]).decode() for group, field in self._fields.items()
        }


def is_percent_encoded(text: str) -> bool:
    """Whether every percent sign is one of an encoding."""
    return "%" not in text or _NO_ENCODING.search(text) is None


def _literal(pattern: str) -> str:
    return "".join(
        _WILDCARDS.get(part, re.escape(part)) for part in re.split(r"(\*\*|\*)", pattern) if part
    )
