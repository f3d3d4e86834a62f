"""How durations are read and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opservice.common.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("500us", 500),
        ("1ms", 1_000),
        ("1.5s", 1_500_000),
        ("2m", 120_000_000),
        ("24h", 86_400_000_000),
        ("30d", 2_592_000_000_000),
        (" 0s ", 0),
    ],
)
def test_a_duration_is_read(text: str, microseconds: int) -> None:
    assert parse_duration(text) == microseconds


@pytest.mark.parametrize(
    "text", ["", "5", "s", "-1s", "1 s", "1e3s", "1w", "1s1s", "1.s", "\u0661s"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number and a unit"):
        parse_duration(text)


@pytest.mark.parametrize("number", ["9" * 309, "9" * 305], ids=["no float", "no microseconds"])
def test_a_number_that_is_too_large_is_refused(number: str) -> None:
    with pytest.raises(ValueError, match=r"^the number is too large$"):
        parse_duration(f"{number}d")


@given(st.integers(min_value=0, max_value=10**15))
def test_a_duration_is_written_as_it_is_read(microseconds: int) -> None:
    assert parse_duration(format_duration(microseconds)) == microseconds


def test_a_duration_is_written_in_its_largest_unit() -> None:
    assert [format_duration(parse_duration(text)) for text in ("24h", "90s", "1000ms")] == [
        "1d",
        "90s",
        "1s",
    ]
