"""Values of requests: what is taken, and what is refused with the name of its field."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from opservice.domain.errors import InvalidArgument
from opservice.methods.validation import Check

LONGEST_SECONDS = 315_576_000_000
"""google/protobuf/duration.proto."""


@pytest.mark.parametrize(
    ("duration", "microseconds"),
    [
        (Duration(), 0),
        (Duration(nanos=999_999_999), 999_999),
        (Duration(seconds=1, nanos=1_000), 1_000_001),
        (Duration(nanos=-1_000), -1),
        (Duration(seconds=-1), -1_000_000),
        (Duration(seconds=LONGEST_SECONDS), LONGEST_SECONDS * 1_000_000),
    ],
)
def test_a_duration_is_read_in_microseconds(duration: Duration, microseconds: int) -> None:
    check = Check()

    assert check.duration("lease", duration, -1_000_000, microseconds) == microseconds
    check.finish()


@pytest.mark.parametrize(
    "duration",
    [
        Duration(nanos=1_000_000_000),
        Duration(seconds=LONGEST_SECONDS + 1),
        Duration(seconds=1, nanos=-1),
        Duration(seconds=-1, nanos=1),
    ],
)
def test_what_is_no_duration_is_refused_by_name(duration: Duration) -> None:
    check = Check()

    assert check.duration("lease", duration, -(2**63), 2**63) is None
    with pytest.raises(InvalidArgument, match="lease: is not a valid"):
        check.finish()
