"""Decides whether operations may be ended: only when producers could have renewed their leases."""

from __future__ import annotations

from opservice.domain.operation import SECOND

LATE_SECONDS = 1.5
"""A gap is: the event loop was late by more than this, or a read or write took longer than this."""

DRIFT = 1_500_000
"""A gap is: between two readings, the database's clock moved by so many microseconds more or less than
the monotonic clock."""

FRESH_SECONDS = 3.0
"""How long a reading of the database's clock may be used."""


class Grace:
    """Knows since when this replica could take renewals, and so which operations it may end.

    After the start, and after each gap, nothing is ended for `length` seconds. In a gap producers could not
    renew: the process was stopped, the database failed or was slow, or its clock was set. `now` is always
    monotonic seconds; `clock` is the database's clock in microseconds.
    """

    def __init__(self, length: float, now: float) -> None:
        self._length = length
        self._ends_from = now + length
        self._clock: int | None = None
        self._read_at = now
        self._proven: int | None = None
        self._proven_at = now

    def gap(self, now: float) -> None:
        """The server could not take renewals until now."""
        self._ends_from = max(self._ends_from, now + self._length)
        self._proven = None

    def slept(self, since: float, seconds: float, now: float) -> None:
        """A task began to sleep for `seconds` at `since`, and woke now."""
        if now - since - seconds > LATE_SECONDS:
            self.gap(now)

    def read(self, clock: int, began: float, now: float) -> None:
        """The database's clock was read between `began` and now."""
        if now - began > LATE_SECONDS:
            self.gap(now)
        if self._clock is not None:
            drift = clock - self._clock - (now - self._read_at) * SECOND
            if abs(drift) > DRIFT:
                self.gap(now)
        self._clock, self._read_at = clock, now

    def proven(self, clock: int, began: float, now: float) -> None:
        """A write began at `began`, after `clock` was read, and is durable now."""
        if now - began > LATE_SECONDS:
            self.gap(now)
        else:
            self._proven, self._proven_at = clock, began

    def cutoff(self, now: float) -> int | None:
        """Operations that were due by this time of the database's clock may be ended. None: end nothing."""
        stale = now - self._proven_at > FRESH_SECONDS
        return None if stale or now < self._ends_from else self._proven

    def reading(self, now: float) -> int | None:
        """The last reading of the database's clock, None when it is too old. Gaps do not matter here."""
        return None if now - self._read_at > FRESH_SECONDS else self._clock
