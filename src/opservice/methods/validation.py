"""What requests must be like. One answer names every field that is wrong, with its limit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from opservice.common.durations import format_duration
from opservice.domain.errors import InvalidArgument, Violation
from opservice.domain.operation import SECOND

MAX_ID = 128
MAX_IDS = 1000
"""Of operations that one call is about."""
MAX_DESCRIPTION = 256
MAX_CREATED_BY = 64
MAX_NAME = 256
MAX_IDEMPOTENCY_KEY = 128
MIN_LEASE_TOKEN, MAX_LEASE_TOKEN = 16, 128
MAX_LABELS = 16
MAX_LABEL_VALUE = 63
MAX_PROGRESS_UNIT = 64
MAX_PROGRESS_MESSAGE = 256
MAX_DETAILS = 100
"""Of an error. Each is looked at, which takes longer than to send it."""
MIN_LEASE = SECOND
MAX_TIMEOUT = 366 * 86_400 * SECOND
MAX_VIOLATIONS = 32
"""Violations named in one answer: they travel as headers, of which clients accept 8 KiB."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PARENT = re.compile(r"[^/\s]+(/[^/\s]+)*")
_ID_PREFIX = re.compile(r"[a-z][a-z0-9]{2}")
LABEL_KEY = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
_SHOWN_KEY = 30
"""Characters shown of a key that is wrong."""
_ANSWER_SECONDS = 0.5
"""Before the deadline of a Wait: for the last read and the way back."""
_MAX_DURATION_SECONDS = 315_576_000_000  # google/protobuf/duration.proto


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that are settings; durations in microseconds."""

    retention: int
    max_retention: int
    max_lease: int
    max_payload_bytes: int
    max_running: int | None = None


def valid_id(operation_id: str, field: str = "operation_id") -> str:
    """The id. Raises InvalidArgument when it is empty, too long, or has control characters."""
    if operation_id and len(operation_id) <= MAX_ID and operation_id.isprintable():
        return operation_id  # nearly always
    check = Check()
    check.id(field, operation_id)
    check.finish()
    return operation_id


def valid_ids(operation_ids: Sequence[str], field: str = "operation_ids") -> list[str]:
    """The ids, each once. Raises InvalidArgument when there are none, too many, or one that is not valid."""
    check = Check()
    if not operation_ids:
        check.wrong(field, "must not be empty")
    check.ids(field, operation_ids)
    check.finish()
    return list(dict.fromkeys(operation_ids))


def wait_time(timeout: Duration | None, most: int, remaining: float | None) -> int:
    """How long to wait at most, in microseconds: `most`, less when the caller wants less.

    `remaining` is what is left of the call's deadline, in seconds: the answer should still arrive
    before it. Raises InvalidArgument when the timeout is no duration, or negative.
    """
    wanted = most
    if timeout is not None:
        check = Check()
        asked = check.duration("timeout", timeout, 0, _MAX_DURATION_SECONDS * SECOND)
        check.finish()
        assert asked is not None
        wanted = min(asked, most)
    if remaining is None:
        return wanted
    before_deadline = max(remaining - _ANSWER_SECONDS, remaining / 2)
    return min(wanted, int(before_deadline * SECOND))


class Check:
    """Collects violations; `finish` raises them all."""

    def __init__(self) -> None:
        self._violations: list[Violation] = []

    def finish(self) -> None:
        """Raises InvalidArgument when anything was wrong."""
        if self._violations:
            raise InvalidArgument(self._violations[:MAX_VIOLATIONS])

    def wrong(self, field: str, description: str) -> None:
        """Notes a violation, in words that follow the name of the field."""
        self._violations.append(Violation(field, description))

    def id(self, field: str, value: str) -> None:
        """An operation's id: 1 to MAX_ID characters, without control characters."""
        if not value:
            self.wrong(field, "must not be empty")
        self.name(field, value, MAX_ID)

    def ids(self, field: str, values: Sequence[str]) -> None:
        """At most MAX_IDS ids."""
        if len(values) > MAX_IDS:
            self.wrong(field, f"has {len(values)} ids, at most {MAX_IDS} are allowed")
            return
        for index, value in enumerate(values):
            self.id(f"{field}[{index}]", value)

    def text(self, field: str, value: str, limit: int) -> None:
        """Text of at most `limit` characters, line breaks among them."""
        if len(value) > limit:
            self.wrong(field, f"has {len(value)} characters, at most {limit} are allowed")
        if "\0" in value:
            self.wrong(field, "must not contain NUL characters")

    def name(self, field: str, value: str, limit: int) -> None:
        """At most `limit` characters, without control characters."""
        if len(value) > limit:
            self.wrong(field, f"has {len(value)} characters, at most {limit} are allowed")
        elif _CONTROL.search(value):
            self.wrong(field, "must not contain control characters")

    def parent(self, field: str, value: str) -> None:
        """Empty, or segments joined by '/', of at most MAX_NAME characters in all."""
        self.name(field, value, MAX_NAME)
        if len(value) > MAX_NAME:
            return  # megabytes are not to be looked through
        if value and not _PARENT.fullmatch(value):
            self.wrong(field, "must be segments joined by '/', such as folders/b1g, without spaces")
        if "-" in value.split("/"):
            self.wrong(field, "must not have a segment that is only '-', which means any")

    def id_prefix(self, field: str, value: str) -> None:
        """Empty, or 3 characters."""
        if value and not _ID_PREFIX.fullmatch(value):
            self.wrong(field, "must be 3 of a to z and 0 to 9, the first a letter")

    def labels(self, field: str, value: Mapping[str, str]) -> None:
        """At most MAX_LABELS. Values have at most MAX_LABEL_VALUE characters, without control characters."""
        if len(value) > MAX_LABELS:
            self.wrong(field, f"are {len(value)}, at most {MAX_LABELS} are allowed")
            return
        for key in sorted(value):
            if LABEL_KEY.fullmatch(key):
                self.name(f"{field}.{key}", value[key], MAX_LABEL_VALUE)
            else:
                expected = "1 to 63 of a to z, 0 to 9, '_', '.' and '-', the first a letter"
                self.wrong(f"{field}.{_shown_key(key)}", f"its key must be {expected}")

    def lease_token(self, field: str, value: str) -> None:
        """Empty, or MIN_LEASE_TOKEN to MAX_LEASE_TOKEN characters."""
        if value and not MIN_LEASE_TOKEN <= len(value) <= MAX_LEASE_TOKEN:
            allowed = f"{MIN_LEASE_TOKEN} to {MAX_LEASE_TOKEN} are allowed"
            self.wrong(field, f"has {len(value)} characters, {allowed}")

    def duration(self, field: str, value: Duration, least: int, most: int) -> int | None:
        """The duration in microseconds, or None when it is wrong. `least` and `most` are microseconds."""
        seconds, nanos = value.seconds, value.nanos
        opposite_signs = (seconds > 0 > nanos) or (seconds < 0 < nanos)
        if abs(seconds) > _MAX_DURATION_SECONDS or abs(nanos) > 999_999_999 or opposite_signs:
            self.wrong(field, "is not a valid google.protobuf.Duration")
            return None
        microseconds = seconds * SECOND + nanos // 1000
        if not least <= microseconds <= most:
            bounds = f"{format_duration(least)} to {format_duration(most)}"
            self.wrong(field, f"is {seconds + nanos / 1e9:g}s, allowed is {bounds}")
            return None
        return microseconds

    def payload(self, field: str, value: Any, limit: int) -> None:
        """A message in an Any, of at most `limit` bytes."""
        self._type_url(field, value)
        self._size(field, value.ByteSize(), limit)

    def error(self, field: str, value: Status, limit: int) -> None:
        """An error, of at most `limit` bytes, with at most MAX_DETAILS details."""
        if value.code not in Code.values() or value.code == Code.OK:
            self.wrong(f"{field}.code", f"is {value.code}, must be a google.rpc.Code other than OK")
        self._size(field, value.ByteSize(), limit)
        if len(value.details) > MAX_DETAILS:
            count = len(value.details)
            self.wrong(f"{field}.details", f"are {count}, at most {MAX_DETAILS} are allowed")
            return
        for index, detail in enumerate(value.details):
            self._type_url(f"{field}.details[{index}]", detail)

    def _type_url(self, field: str, value: Any) -> None:
        if "/" not in value.type_url or value.type_url.endswith("/"):
            self.wrong(f"{field}.type_url", "must be a type URL, such as type.googleapis.com/NAME")

    def _size(self, field: str, size: int, limit: int) -> None:
        if size > limit:
            self.wrong(field, f"has {size} bytes, at most {limit} are allowed")


def _shown_key(key: str) -> str:
    """Of a label's key, which may be anything, for the name of a field."""
    return "".join(c if " " <= c <= "~" else "?" for c in key[:_SHOWN_KEY])
