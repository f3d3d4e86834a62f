"""The rules for leases, against histories that are known to be bad, and those that are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from support.history import Call, Event, Sight, State
from support.lease_rules import LAPSED, Disturbance, Lease, check_leases

LEASE = Lease("ops1", "h", seconds=3, started_at=1)
CLOCK = 1000.0
"""What the database's clock is ahead."""


def call(kind: Call, at: float, **more: Any) -> Event:
    state = State(int((at + CLOCK) * 1_000_000), metadata="m")
    given: dict[str, Any] = {"client": "h", "seen": (Sight(at + 0.1, state),), **more}
    return Event(call=kind, operation_id="ops1", invoked_at=at, returned_at=at + 0.1, **given)


def lapsed(at: float) -> Event:
    """Read much later."""
    state = State(int((at + CLOCK) * 1_000_000), done=True, result=LAPSED)
    return call("Get", at + 20, client="reader", seen=(Sight(at + 21, state),))


def disturbed(began: float, ended: float, *replicas: int) -> Disturbance:
    return Disturbance("pause", began, ended, replicas)


START, RENEW = call("Start", 1), call("Renew", 2)
UNHEARD = call("Renew", 3, answer="unknown", seen=())
STOPPED = replace(LEASE, kept_until=6)

GOOD: dict[str, tuple[Lease, list[Event], list[Disturbance]]] = {
    "a lease that is kept": (LEASE, [START, RENEW], []),
    "a lapse after the holder has stopped": (STOPPED, [START, RENEW, lapsed(6.5)], []),
    "a lapse while the holder is not heard, though a replica was there": (
        LEASE,
        [START, RENEW, UNHEARD, lapsed(5.1)],
        [],
    ),
    "a lapse after a pause and the grace": (
        LEASE,
        [START, RENEW, UNHEARD, lapsed(15.1)],
        [disturbed(3, 12, 0, 1)],
    ),
    "a lapse by a replica that nothing disturbed": (
        LEASE,
        [START, RENEW, UNHEARD, lapsed(5.1)],
        [disturbed(2.2, 12, 0)],
    ),
    "a lapse by a replica whose other worker was paused": (
        LEASE,
        [START, RENEW, UNHEARD, lapsed(5.1)],
        [disturbed(2.2, 12)],
    ),
}


def found(lease: Lease, events: list[Event], disturbances: list[Disturbance]) -> list[str]:
    violations = check_leases(
        events, [lease], disturbances, replicas=2, grace=3, calm_since=50, clock=CLOCK
    )
    return [each.message for each in violations]


@pytest.mark.parametrize("case", GOOD.values(), ids=GOOD)
def test_a_good_history_passes(
    case: tuple[Lease, list[Event], list[Disturbance]],
) -> None:
    assert found(*case) == []


ANSWERED, NO_CHANCE = (
    "a lease whose holder was answered",
    "a lease whose holder never got the chance",
)
BAD: dict[str, tuple[str, Lease, list[Event], list[Disturbance]]] = {
    "a lapse within a lease of the last Renew": (
        ANSWERED,
        LEASE,
        [START, RENEW, lapsed(4.6)],
        [],
    ),
    "a lapse within a lease of the Start": (ANSWERED, LEASE, [START, lapsed(3.5)], []),
    "a lapse that ignores a Renew, though everything was disturbed": (
        ANSWERED,
        LEASE,
        [START, call("Renew", 9), lapsed(10)],
        [disturbed(2.5, 8, 0, 1)],
    ),
    "a lapse as soon as a pause of all is over": (
        NO_CHANCE,
        LEASE,
        [START, RENEW, lapsed(12.1)],
        [disturbed(3, 12, 0, 1)],
    ),
    "a lapse before the grace after a pause is over": (
        NO_CHANCE,
        LEASE,
        [START, RENEW, lapsed(13.5)],
        [disturbed(3, 12, 0, 1)],
    ),
    "a lapse when one replica was paused after the other": (
        NO_CHANCE,
        LEASE,
        [START, RENEW, lapsed(12.1)],
        [disturbed(3, 7, 0), disturbed(3.5, 9, 1), disturbed(8.5, 12, 0), disturbed(9.2, 13, 1)],
    ),
    "a lapse before the holder has stopped": (
        ANSWERED,
        STOPPED,
        [START, call("Renew", 5), lapsed(5.9)],
        [],
    ),
    "an operation without a holder that goes on": (
        "a leased operation without a holder has not ended",
        STOPPED,
        [START, RENEW, call("GetRecord", 80, client="reader")],
        [],
    ),
}


@pytest.mark.parametrize(("message", "lease", "events", "disturbances"), BAD.values(), ids=BAD)
def test_a_bad_history_is_found(
    message: str, lease: Lease, events: list[Event], disturbances: list[Disturbance]
) -> None:
    (violation,) = found(lease, events, disturbances)

    assert violation.startswith(message)
