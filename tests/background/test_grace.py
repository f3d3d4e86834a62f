"""When operations may be ended: not before their holders had the chance to be in time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from opservice.background.grace import FRESH_SECONDS, Grace
from opservice.domain.operation import SECOND

LENGTH = 10.0
EPOCH = 1_700_000_000 * SECOND


def run(grace: Grace, start: float, end: float) -> None:
    """All is well from `start` to `end`, in seconds, with a clock that runs with them."""
    now = start
    while now <= end:
        clock = EPOCH + int(now * SECOND)
        grace.read(clock, now, now)
        grace.proven(clock, now, now)
        now += 0.5


@pytest.fixture
def grace() -> Grace:
    made = Grace(LENGTH, now=0)
    run(made, 0, 20)
    return made


def test_nothing_is_ended_after_the_start_until_the_grace_is_over() -> None:
    grace = Grace(LENGTH, now=0)
    assert grace.cutoff(0) is None
    run(grace, 0, 9.5)
    assert grace.cutoff(9.9) is None
    assert grace.cutoff(10) == EPOCH + int(9.5 * SECOND)


def test_the_cutoff_is_what_the_clock_said_before_the_write(grace: Grace) -> None:
    assert grace.cutoff(20.4) == EPOCH + 20 * SECOND


def test_without_a_fresh_proof_nothing_is_ended(grace: Grace) -> None:
    assert grace.cutoff(20 + FRESH_SECONDS + 0.1) is None
    assert grace.reading(20 + FRESH_SECONDS + 0.1) is None


GAPS: dict[str, Callable[[Grace], None]] = {
    "a failure": lambda grace: grace.gap(22),
    "a stopped process": lambda grace: grace.slept(20, 0.5, 22.1),
    "a slow read": lambda grace: grace.read(EPOCH + 22 * SECOND, 20.4, 22),
    "a slow write": lambda grace: grace.proven(EPOCH + 20 * SECOND, 20.4, 22),
    "a clock set forward": lambda grace: grace.read(EPOCH + 112 * SECOND, 22, 22),
    "a clock set back": lambda grace: grace.read(EPOCH, 22, 22),
}


@pytest.mark.parametrize("gap", GAPS.values(), ids=GAPS)
def test_after_a_gap_nothing_is_ended_until_the_grace_is_over(
    grace: Grace, gap: Callable[[Grace], None]
) -> None:
    assert grace.cutoff(20) is not None
    gap(grace)
    after = grace.cutoff(22)
    grace.read(EPOCH + 22 * SECOND, 22, 22)  # of a clock that was set: a gap at 22 as well
    run(grace, 22, 31.5)

    assert after is None
    assert grace.cutoff(31.9) is None
    run(grace, 32, 32.5)
    assert grace.cutoff(32.6) == EPOCH + int(32.5 * SECOND)


def test_a_loop_that_is_a_little_late_is_no_gap(grace: Grace) -> None:
    grace.slept(20, 0.5, 21)
    assert grace.cutoff(21) is not None


def test_what_is_deleted_does_not_wait_for_the_grace() -> None:
    grace = Grace(LENGTH, now=0)
    run(grace, 0, 1)
    assert grace.reading(1.1) == EPOCH + SECOND
