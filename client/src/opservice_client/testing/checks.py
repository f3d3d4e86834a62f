"""What requests must be like, for the server in memory: the rules of the real one, in the same words.

client/tests/test_testing_same.py and test_testing_wire.py compare the two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from google.protobuf.any_pb2 import Any as AnyPayload
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from opservice_client._proto.opservice.v1.operation_record_pb2 import (
    CancelPolicy,
    OperationRecord,
    Progress,
)
from opservice_client._proto.opservice.v1.producer_service_pb2 import StartRequest
from opservice_client.testing.refusals import invalid

SECOND = 1_000_000
DAY = 86_400 * SECOND

MAX_PAYLOAD_BYTES = 1 << 20
_MAX_NAME = 256
_MAX_ID = 128
_MAX_IDS = 1000
LARGEST_BATCH = 3 << 20
"""Bytes of payloads in one answer."""
_MAX_DETAILS = 100
_MAX_VIOLATIONS = 32
_MAX_DURATION_SECONDS = 315_576_000_000  # google/protobuf/duration.proto

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PARENT = re.compile(r"[^/\s]+(/[^/\s]+)*")
_MAX_LABELS = 16
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
_SHOWN_KEY = 30
_ID_PREFIX = re.compile(r"[a-z][a-z0-9]{2}")
_UNITS = {"d": DAY, "h": 3600 * SECOND, "m": 60 * SECOND, "s": SECOND, "ms": 1_000, "us": 1}


class Check:
    """Collects what is wrong; `finish` raises it all."""

    def __init__(self) -> None:
        self._violations: list[tuple[str, str]] = []

    def finish(self) -> None:
        """Raises a Refusal when anything was wrong."""
        if self._violations:
            raise invalid(self._violations[:_MAX_VIOLATIONS])

    def wrong(self, field: str, description: str) -> None:
        self._violations.append((field, description))

    def id(self, value: str, field: str = "operation_id") -> None:
        if not value:
            self.wrong(field, "must not be empty")
        self.name(field, value, _MAX_ID)

    def ids(self, values: Sequence[str]) -> None:
        """Those of a batch."""
        field = "operation_ids"
        if not values:
            self.wrong(field, "must not be empty")
        elif len(values) > _MAX_IDS:
            self.wrong(field, f"has {len(values)} ids, at most {_MAX_IDS} are allowed")
        else:
            for index, value in enumerate(values):
                self.id(value, f"{field}[{index}]")

    def text(self, field: str, value: str, limit: int) -> None:
        if len(value) > limit:
            self.wrong(field, f"has {len(value)} characters, at most {limit} are allowed")
        if "\0" in value:
            self.wrong(field, "must not contain NUL characters")

    def name(self, field: str, value: str, limit: int) -> None:
        if len(value) > limit:
            self.wrong(field, f"has {len(value)} characters, at most {limit} are allowed")
        elif _CONTROL.search(value):
            self.wrong(field, "must not contain control characters")

    def parent(self, value: str) -> None:
        self.name("parent", value, _MAX_NAME)
        if len(value) > _MAX_NAME:
            return
        if value and not _PARENT.fullmatch(value):
            self.wrong(
                "parent", "must be segments joined by '/', such as folders/b1g, without spaces"
            )
        if "-" in value.split("/"):
            self.wrong("parent", "must not have a segment that is only '-', which means any")

    def duration(self, field: str, value: Duration, least: int, most: int) -> int:
        """In microseconds, as `least` and `most` are; 0 when it is wrong."""
        seconds, nanos = value.seconds, value.nanos
        opposite_signs = (seconds > 0 > nanos) or (seconds < 0 < nanos)
        if abs(seconds) > _MAX_DURATION_SECONDS or abs(nanos) > 999_999_999 or opposite_signs:
            self.wrong(field, "is not a valid google.protobuf.Duration")
            return 0
        microseconds = seconds * SECOND + nanos // 1000
        if not least <= microseconds <= most:
            bounds = f"{_shown(least)} to {_shown(most)}"
            self.wrong(field, f"is {seconds + nanos / 1e9:g}s, allowed is {bounds}")
            return 0
        return microseconds

    def payload(self, field: str, value: AnyPayload) -> None:
        self._type_url(field, value)
        self._size(field, value.ByteSize())

    def error(self, value: Status) -> None:
        if value.code not in Code.values() or value.code == Code.OK:
            self.wrong("error.code", f"is {value.code}, must be a google.rpc.Code other than OK")
        self._size("error", value.ByteSize())
        if len(value.details) > _MAX_DETAILS:
            count = len(value.details)
            self.wrong("error.details", f"are {count}, at most {_MAX_DETAILS} are allowed")
            return
        for index, detail in enumerate(value.details):
            self._type_url(f"error.details[{index}]", detail)

    def progress(self, progress: Progress) -> None:
        if progress.done < 0:
            self.wrong("progress.done", f"is {progress.done}, must not be negative")
        if progress.total < 0:
            self.wrong("progress.total", f"is {progress.total}, must not be negative")
        elif 0 < progress.total < progress.done:
            self.wrong("progress.done", f"is {progress.done}, more than total {progress.total}")
        self.text("progress.unit", progress.unit, 64)
        self.text("progress.message", progress.message, 256)

    def labels(self, value: Mapping[str, str]) -> None:
        if len(value) > _MAX_LABELS:
            self.wrong("labels", f"are {len(value)}, at most {_MAX_LABELS} are allowed")
            return
        for key in sorted(value):
            if _LABEL_KEY.fullmatch(key):
                self.name(f"labels.{key}", value[key], 63)
            else:
                shown = "".join(c if " " <= c <= "~" else "?" for c in key[:_SHOWN_KEY])
                expected = "1 to 63 of a to z, 0 to 9, '_', '.' and '-', the first a letter"
                self.wrong(f"labels.{shown}", f"its key must be {expected}")

    def start(self, request: StartRequest) -> tuple[int | None, int | None, int]:
        """Lease, timeout and retention, in microseconds. Raises a Refusal."""
        self.text("description", request.description, 256)
        self.parent(request.parent)
        self.name("method", request.method, _MAX_NAME)
        self.name("created_by", request.created_by, 64)
        self.name("idempotency_key", request.idempotency_key, 128)
        if request.id_prefix and not _ID_PREFIX.fullmatch(request.id_prefix):
            self.wrong("id_prefix", "must be 3 of a to z and 0 to 9, the first a letter")
        if request.lease_token and not 16 <= len(request.lease_token) <= 128:
            length = len(request.lease_token)
            self.wrong("lease_token", f"has {length} characters, 16 to 128 are allowed")
        self.labels(request.labels)
        if request.HasField("metadata"):
            self.payload("metadata", request.metadata)
        if request.cancel_policy not in CancelPolicy.values():
            self.wrong("cancel_policy", f"{request.cancel_policy} is not a CancelPolicy")
        lease = timeout = None
        retention = 30 * DAY
        if request.HasField("lease"):
            lease = self.duration("lease", request.lease, SECOND, DAY)
            if not request.lease_token:
                self.wrong("lease_token", "is required with a lease")
        if request.HasField("timeout"):
            timeout = self.duration("timeout", request.timeout, 1, 366 * DAY)
        if request.HasField("retention"):
            retention = self.duration("retention", request.retention, 1, 365 * DAY)
        self.finish()
        return lease, timeout, retention

    def _type_url(self, field: str, value: AnyPayload) -> None:
        if "/" not in value.type_url or value.type_url.endswith("/"):
            self.wrong(f"{field}.type_url", "must be a type URL, such as type.googleapis.com/NAME")

    def _size(self, field: str, size: int) -> None:
        if size > MAX_PAYLOAD_BYTES:
            self.wrong(field, f"has {size} bytes, at most {MAX_PAYLOAD_BYTES} are allowed")


def check_id(operation_id: str) -> None:
    """Raises a Refusal unless it may be an operation's id."""
    check = Check()
    check.id(operation_id)
    check.finish()


def check_ids(operation_ids: Sequence[str]) -> None:
    """Raises a Refusal unless a batch may have these ids."""
    check = Check()
    check.ids(operation_ids)
    check.finish()


def batch_too_large() -> Exception:
    """Of records that together are too large for one answer."""
    wrong = f"have records of more than {LARGEST_BATCH} bytes together, ask for fewer at a time"
    return invalid([("operation_ids", wrong)])


def payload_bytes(record: OperationRecord) -> int:
    """Of metadata, and of the response or the error, as far as the operation has them."""
    operation = record.operation
    return sum(
        each.ByteSize() for each in (operation.metadata, operation.response, operation.error)
    )


def wait_seconds(timeout: Duration | None, remaining: float | None) -> float:
    """How long a Wait lasts at most: so that it is answered half a second before the call's deadline.

    `remaining` is what is left of it, in seconds. Raises a Refusal when the timeout is no duration, or
    negative.
    """
    most = 50 * SECOND
    if timeout is not None:
        check = Check()
        asked = check.duration("timeout", timeout, 0, _MAX_DURATION_SECONDS * SECOND)
        check.finish()
        most = min(asked, most)
    if remaining is None:
        return most / SECOND
    return min(most / SECOND, max(remaining - 0.5, remaining / 2))


def _shown(microseconds: int) -> str:
    """In the largest unit that needs no fraction."""
    for unit, length in _UNITS.items():
        if microseconds and microseconds % length == 0:
            return f"{microseconds // length}{unit}"
    return "0s"
