"""Whether leases lapsed that should not have, and whether all that should have ended did.

The server promises its holder that a lease lapses only when the holder had the chance to renew it. After
a gap in which it could take no renewals (it was paused, killed, or its database was away) it gives every
lease its restart grace.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

from support.history import Event, Violation

LAPSED = "ABORTED LEASE_EXPIRED"

_CLOCKS = 0.25
"""Seconds by which two readings of the same machine's clocks may differ."""
_STRETCH = 1.0
"""So much shorter than the grace may a stretch be that we saw: the server may have been up before we knew."""
_PATIENCE = 20.0
"""Seconds that a server on a busy machine may take to end what is due."""


@dataclass(slots=True)
class Lease:
    """A leased operation, and the client that renews it every third of the lease."""

    operation_id: str
    holder: str
    seconds: float
    started_at: float
    """When the first try to start it was invoked."""
    kept_until: float = inf
    """When the holder stopped on purpose."""


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Something done to the servers or their database, and when it began and ended."""

    kind: str
    began: float
    ended: float
    replicas: tuple[int, ...] = ()
    """Those that could take no renewals meanwhile, by any worker."""


def check_leases(
    events: Iterable[Event],
    leases: Sequence[Lease],
    disturbances: Sequence[Disturbance],
    *,
    replicas: int,
    grace: float,
    calm_since: float,
    clock: float,
) -> list[Violation]:
    """Lapses that a correct server would not have made, and ends that it would have.

    `grace` is the server's restart grace in seconds. Since `calm_since` nothing is disturbed. `clock` is
    what the database's clock, in seconds, is ahead of the clock of the events. A replica that is not in
    a disturbance may still have been unable to renew, for example because a connection was cut: that
    gives the server more freedom, so nothing wrong is found, only less.
    """
    by_operation: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_operation[event.operation_id].append(event)
    found: list[Violation] = []
    for lease in leases:
        its = by_operation[lease.operation_id]
        calm = _Calm(disturbances, replicas)
        found += _lapsed_unjustly(lease, its, calm, grace, clock)
        found += _never_ended(lease, its, max(calm_since, lease.started_at) + grace)
    return found


@dataclass(frozen=True, slots=True)
class _Calm:
    disturbances: Sequence[Disturbance]
    replicas: int

    def longest(self, began: float, ended: float) -> float:
        """The longest stretch in which one and the same replica was not disturbed."""
        return max(self._longest_of(replica, began, ended) for replica in range(self.replicas))

    def _longest_of(self, replica: int, began: float, ended: float) -> float:
        longest, since = 0.0, began
        for each in sorted(self.disturbances, key=lambda each: each.began):
            if replica in each.replicas and each.ended > began and each.began < ended:
                longest = max(longest, each.began - since)
                since = max(since, each.ended)
        return max(longest, ended - since)


def _lapsed_unjustly(
    lease: Lease, events: Sequence[Event], calm: _Calm, grace: float, clock: float
) -> Iterator[Violation]:
    lapses = (
        (event, sight.state.modified_at / 1_000_000 - clock)
        for event in events
        for sight in event.seen
        if sight.state.done and sight.state.result == LAPSED
    )
    witness, lapsed_at = next(lapses, (None, -inf))
    if witness is None or lapsed_at > lease.kept_until:
        return
    # A lease counts from when the server took the call, which is after its invocation. A Start that is
    # repeated renews nothing.
    given_at, given = lease.started_at, None
    for event in events:
        if event.client != lease.holder or event.answer != "ok":
            continue
        if event.call == "Renew" and given_at < event.invoked_at < lapsed_at:
            given_at, given = event.invoked_at, event
        elif event.call == "Start" and given is None:
            given = event
    shown = (witness,) if given is None else (given, witness)
    lapse = (
        f"lapsed {lapsed_at - given_at:.3f} s after the holder of {lease.seconds:g} s was answered"
    )
    if lapsed_at < given_at + lease.seconds - _CLOCKS:
        yield Violation(f"a lease whose holder was answered {lapse}", shown)
        return
    # Had there been such a stretch, the holder would have been answered in it, or could have been.
    stretch = calm.longest(given_at, lapsed_at)
    if stretch < min(grace, lease.seconds) - _STRETCH:
        why = f"no replica was undisturbed for more than {stretch:.3f} s meanwhile"
        yield Violation(f"a lease whose holder never got the chance {lapse}; {why}", shown)


def _never_ended(lease: Lease, events: Sequence[Event], graced: float) -> Iterator[Violation]:
    due = max(lease.kept_until, graced) + lease.seconds + _PATIENCE
    for event in events:
        if event.invoked_at > due and event.seen and not event.seen[0].state.done:
            yield Violation("a leased operation without a holder has not ended", (event,))
            return
