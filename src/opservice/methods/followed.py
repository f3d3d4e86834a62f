"""What a BatchWatch follows, and the tokens by which another one continues it.

A token holds how far the stream was, and digests that bind it to its request and to what its caller might
see. They tell tokens that are foreign or damaged. They are no secret, since a token gives nothing away that
the request alone would not.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opservice.domain.errors import WatchOutdated
from opservice.domain.filters import Condition
from opservice.domain.identity import Scope
from opservice.domain.matching import satisfies
from opservice.domain.operation import Change, Record
from opservice.store.feed import LATE, OVERLAP
from opservice.store.following import ENDED, MARK_BYTES, MAX_MARKS, Follower, ResumePoint

MAX_RESUME_TOKEN = 1024

_VERSION = b"\x01"
_DIGEST_BYTES = 12
_TIME_BYTES = 8
_PLACE = len(_VERSION) + _DIGEST_BYTES + _DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class Followed:
    """Operations by their ids, or else those of a parent that satisfy the condition; None is all parents.

    `resumed` is how far they were told already. `resume_window` is how long it is known which operations were
    deleted, in microseconds.
    """

    ids: Sequence[str] | None
    parent: str | None
    condition: Condition | None
    resumed: ResumePoint | None
    resume_window: int

    def follower(self, admits: Callable[[Record | Change], bool]) -> Follower:
        """Of a stream that follows them."""

        def matches(record: Record) -> bool:
            return self.condition is None or satisfies(record, self.condition)

        return Follower(self.ids, self.parent, admits, matches, self.resumed)

    @property
    def has_ended(self) -> bool:
        """Whether the stream that it continues was told that nothing is to come."""
        return self.ids is not None and self.resumed == ENDED

    def since(self, clock: int) -> int | None:
        """From when on changes may not have been told, None when nothing was told.

        Raises WatchOutdated when it is not known any more what has changed since then.
        """
        if self.resumed is None:
            return None
        since = self.resumed.clock - LATE
        if since < clock - self.resume_window or self.resumed.clock > clock + OVERLAP:
            raise WatchOutdated
        return since


class ResumeTokens:
    """The tokens of one request, of a caller who may see what is in the scope."""

    def __init__(self, ids: Sequence[str], parent: str, filter_: str, scope: Scope | None) -> None:
        self._request = hashlib.sha256(_VERSION)
        for part in (parent, filter_, *ids):
            encoded = part.encode()
            self._request.update(len(encoded).to_bytes(8, "big") + encoded)
        self._scope = hashlib.sha256(repr(scope).encode()).digest()[:_DIGEST_BYTES]

    def encode(self, point: ResumePoint | None) -> str:
        """The token of the point; empty for none."""
        if point is None:
            return ""
        place = self._scope + point.clock.to_bytes(_TIME_BYTES, "big", signed=True)
        place += b"".join(point.marks)
        token = _VERSION + self._digest(place) + place
        return base64.urlsafe_b64encode(token).decode().rstrip("=")

    def decode(self, token: str) -> ResumePoint | None:
        """None when the token is not one of this request.

        Raises WatchOutdated when its caller might see something else.
        """
        if len(token) > MAX_RESUME_TOKEN or not token.isascii():
            return None
        try:
            data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except binascii.Error:
            return None
        start = len(_VERSION) + _DIGEST_BYTES
        marks = data[_PLACE + _TIME_BYTES :]
        if (
            len(data) < _PLACE + _TIME_BYTES
            or data[:start] != _VERSION + self._digest(data[start:])
            or len(marks) % MARK_BYTES
            or len(marks) > MARK_BYTES * MAX_MARKS
        ):
            return None
        if data[start:_PLACE] != self._scope:
            raise WatchOutdated
        clock = int.from_bytes(data[_PLACE : _PLACE + _TIME_BYTES], "big", signed=True)
        cut = range(0, len(marks), MARK_BYTES)
        return ResumePoint(clock, tuple(marks[at : at + MARK_BYTES] for at in cut))

    def _digest(self, place: bytes) -> bytes:
        digest = self._request.copy()
        digest.update(place)
        return digest.digest()[:_DIGEST_BYTES]
