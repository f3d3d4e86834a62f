"""Whether the holders of leases had the chance to renew them, as far as this replica can know."""

from __future__ import annotations

from opservice.domain.operation import SECOND

LATE_SECONDS = 1.5
"""The event loop may be late by so much, and a read or write may take so long, before it is a gap."""

DRIFT = 1_500_000
"""Microseconds by which the database's clock and the monotonic clock may part between two readings."""

FRESH_SECONDS = 3.0
"""For how long a reading of the database's clock may be used."""


class Grace:
    """Since when this replica could take renewals, and up to which time it may end operations.

    After a gap, as after the start, nothing is ended for `length` seconds. A gap is: the process was
    stopped, the database failed or was slow, or its clock was set. `now` is always monotonic seconds;
    `clock` is the database's clock in microseconds.
    """

    def __init__(self, length: float, now: float) -> None:
        self._length = length
        self._ends_from = now + length
        self._clock: int | None = None
        self._read_at = now
        self._proven: int | None = None
        self._proven_at = now

    def gap(self, now: float) -> None:
        """Renewals could not be taken up to now."""
        self._ends_from = max(self._ends_from, now + self._length)
        self._proven = None

    def slept(self, since: float, seconds: float, now: float) -> None:
        """The event loop was asked at `since` to go on after `seconds`, and did so now."""
        if now - since - seconds > LATE_SECONDS:
            self.gap(now)

    def read(self, clock: int, began: float, now: float) -> None:
        """The database's clock, read between `began` and now."""
        if now - began > LATE_SECONDS:
            self.gap(now)
        if self._clock is not None:
            drift = clock - self._clock - (now - self._read_at) * SECOND
            if abs(drift) > DRIFT:
                self.gap(now)
        self._clock, self._read_at = clock, now

    def proven(self, clock: int, began: float, now: float) -> None:
        """A write that was begun at `began`, after `clock` was read, became durable by now."""
        if now - began > LATE_SECONDS:
            self.gap(now)
        else:
            self._proven, self._proven_at = clock, began

    def cutoff(self, now: float) -> int | None:
        """What was due by this time of the database's clock may be ended; None: nothing may."""
        stale = now - self._proven_at > FRESH_SECONDS
        return None if stale or now < self._ends_from else self._proven

    def reading(self, now: float) -> int | None:
        """The last reading of the database's clock, if it is fresh; a gap does not matter for it."""
        return None if now - self._read_at > FRESH_SECONDS else self._clock
