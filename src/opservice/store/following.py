"""Those who follow many operations in one stream: what is still to be told to each of them.

A change that is not told yet is replaced by the next one of the same operation. So a slow reader costs no
more than the operations that have changed, and few of their records.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from sys import maxsize
from typing import Any

from opservice.common.metrics import WAKE_SECONDS
from opservice.domain.errors import OpserviceError, ServerBusy
from opservice.domain.operation import Change, Record, Removed

MAX_KNOWN = 10_000
"""Operations of a stream that are remembered, and that may wait to be told."""
KNOWN_OF_ALL = 500_000
"""Those that all streams of a process remember together: each takes 240 bytes."""
LEAST_KNOWN = 1_000
"""Those that each stream remembers, also when others remember very many."""
PENDING_BYTES = 4 << 20
"""Records that are kept for a stream. The others are read when their turn comes."""
PENDING_BYTES_OF_ALL = 64 << 20
"""The same, of all streams of a process together: of those who read nothing, too."""
_LEAST_BYTES = 16 << 10
"""What each stream may keep, also when others keep very much."""
MAX_MARKS = 64
MARK_BYTES = 6

_GONE = maxsize


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """How far a stream was told: of what changed until `clock` everything, and of the rest what `marks` say.

    `clock` is the database's, in microseconds since the epoch.
    """

    clock: int
    marks: tuple[bytes, ...] = ()


ENDED = ResumePoint(maxsize)
"""Of a stream by ids that was told all that it ever will be."""


@dataclass(frozen=True, slots=True)
class Event:
    """What is told. `news` is None where all was told that there is; `point` is None before that."""

    news: Record | Removed | None
    point: ResumePoint | None
    is_last: bool = False
    """Whether it is known that nothing follows."""


@dataclass(slots=True)
class Room:
    """For records that are kept for streams, in bytes, and how many operations the streams remember."""

    most: int
    used: int = 0
    known: int = 0


class Follower:
    """Of one stream. What it does not admit it must not be told, and it says that other news are removed."""

    def __init__(
        self,
        ids: Iterable[str] | None,
        parent: str | None,
        admits: Callable[[Record | Change], bool],
        matches: Callable[[Record], bool],
        resumed: ResumePoint | None = None,
    ) -> None:
        """With `ids` it follows these; else those of the parent, of which None is all."""
        self.ids = None if ids is None else set(ids)
        """Those that are not done and not removed, as far as was told; None when it follows a parent."""
        self.parent = parent
        self.point = resumed
        self.room = Room(PENDING_BYTES)
        """Of all streams; the feed sets it before there is anything to tell."""
        self._admits = admits
        self._matches = matches
        self._continues = resumed is not None
        self._marks = [] if resumed is None else list(resumed.marks)
        self._versions: dict[str, tuple[int, int]] = {}
        self._shown: dict[str, bool] = {}
        """What was told and not removed, and whether it was done then."""
        self._knows_all_shown = resumed is None
        self._pending: dict[str, Record | Removed | None] = {}
        self._current: dict[str, Record | Removed | None] = {}
        self._bytes = 0
        self._known = 0
        self._clock_after: int | None = None
        self._error: OpserviceError | None = None
        self._sleeper: asyncio.Future[None] | None = None
        self._woken_at = 0.0

    def wants(self, change: Record | Change) -> bool:
        """Whether it follows the operation, may be told of it, and does not know of this change."""
        if self._error is not None:
            return False
        if self.ids is not None:
            if change.id not in self.ids:
                return False
        elif self.parent is not None and self.parent != change.parent:
            return False
        known = self._versions.get(change.id)
        gone = isinstance(change, Change) and change.gone
        version = (change.created_at, _GONE if gone else change.revision)
        return (known is None or known < version) and self._admits(change)

    def tell(self, record: Record) -> None:
        """Notes a record, unless it is none of its business or no news."""
        if self.wants(record):
            if self._has_mark(record):
                self._note_told(record)
                return
            self._versions.pop(record.id, None)
            self._versions[record.id] = (record.created_at, record.revision)
            self._note(record.id, record)

    def tell_gone(self, change: Change) -> None:
        """Notes that an operation is not there any more."""
        if self.wants(change):
            self.remove(change.id, change.created_at)

    def remove(self, operation_id: str, created_at: int = 0) -> None:
        """Notes that an operation that it follows is not there."""
        known_at, _ = self._versions.pop(operation_id, (0, 0))
        self._versions[operation_id] = (created_at or known_at, _GONE)
        self._note(operation_id, Removed(operation_id))

    def was_told(self, record: Record, since: int) -> bool:
        """Whether the stream that it continues has told the record. Then it need not be told again.

        It has told all that had changed before `since`.
        """
        if record.id in self._versions:  # what it was told of it meanwhile may be older
            return False
        if record.modified_at >= since and not self._has_mark(record):
            return False
        self._note_told(record)
        return True

    def _has_mark(self, record: Record) -> bool:
        """Whether the stream that it continues has told the record lately.

        The feed may tell of it before what there is was read. If by then this stream has told another state,
        of a look that had read it long before, it counts no more: that one must not be the last.
        """
        if not self._continues or record.id in self._versions:
            return False
        return _mark(record.id, record.created_at, record.revision) in self._marks

    def _note_told(self, record: Record) -> None:
        self._versions[record.id] = (record.created_at, record.revision)
        self._shown[record.id] = record.done
        self._forget_oldest()
        if record.done:
            self.settle(record.id)

    def settle(self, operation_id: str) -> None:
        """Of one of its ids there is nothing to be told any more."""
        if self.ids is not None:
            self.ids.discard(operation_id)

    def running(self) -> dict[str, int]:
        """What was shown and is not done, with the newest revision that is known of each."""
        return {
            id_: version[1]
            for id_, done in self._shown.items()
            if not done and (version := self._versions.get(id_)) and version[1] != _GONE
        }

    def end(self, error: OpserviceError) -> None:
        """Ends the stream. The first error counts."""
        if self._error is None:
            self._error = error
        self.forget_records()
        self._wake()

    def begin(self) -> None:
        """Forgets the records that it was told: what there is will be read from now on.

        A look that was under way may have told an older state than the stream has that this one continues.
        What was removed is kept, as nothing may be left of it to be read.
        """
        for id_, news in [*self._pending.items()]:
            if not isinstance(news, Removed):
                self._keep(0 if news is None else -news.kept_bytes)
                del self._pending[id_]
        self._versions = {
            id_: version for id_, version in self._versions.items() if version[1] == _GONE
        }
        self._count_known(len(self._versions))

    def forget_records(self) -> None:
        """Nothing is to be told any more."""
        self._pending.clear()
        self._current.clear()
        self._keep(-self._bytes)

    def leave(self) -> None:
        """Takes no room any more."""
        self.forget_records()
        self._count_known(0)
        self.room = Room(PENDING_BYTES)

    async def sleep(self) -> None:
        """Until there is something to be told. Raises what the stream was ended with."""
        while not (self._pending or self._current):
            self.check()
            self._sleeper = asyncio.get_running_loop().create_future()
            await self._sleeper
            WAKE_SECONDS.observe(time.perf_counter() - self._woken_at)
        self.check()

    def check(self) -> None:
        """Raises what the stream was ended with."""
        if self._error is not None:
            raise self._error

    def take(self, clock: int | None) -> tuple[str, Record | Removed | None] | None:
        """The next that is to be told, None when there is nothing. A record that is None must be read.

        `clock` is how far all changes are known to whoever follows. Once all was told that is there now, this
        stream will be so far, too.
        """
        if not self._current:
            self._current, self._pending = self._pending, {}
            self._clock_after = clock
            if not self._current:
                self._advance()
                return None
        operation_id = next(iter(self._current))
        news = self._current.pop(operation_id)
        if isinstance(news, Record):
            self._keep(-news.kept_bytes)
        return operation_id, news

    def read(self, record: Record) -> bool:
        """Notes the version of a record that was read late. Returns whether it may be told."""
        if not self._admits(record) or (self.parent is not None and self.parent != record.parent):
            return False
        version = (record.created_at, record.revision)
        self._versions[record.id] = max(version, self._versions.get(record.id, version))
        return True

    def told(self, news: Record | Removed) -> Record | Removed | None:
        """What is told instead of the news, by filter and by what was told before; None for nothing."""
        id_ = news.id
        if isinstance(news, Record) and self._matches(news):
            self._shown.pop(id_, None)
            self._shown[id_] = news.done
            self._forget_oldest()
            self._marks.append(_mark(id_, news.created_at, news.revision))
            del self._marks[:-MAX_MARKS]
            if news.done:
                self.settle(id_)
            told: Record | Removed | None = news
        else:
            was_shown = id_ in self._shown or not self._knows_all_shown or self.ids is not None
            self._shown.pop(id_, None)
            self.settle(id_)
            told = Removed(id_) if was_shown else None
        if not self._current:
            self._advance()
        return told

    def caught_up(self, clock: int) -> None:
        """All was told that there was when the clock said so."""
        self.point = ResumePoint(clock)

    def _advance(self) -> None:
        if self._error is not None:
            return  # what was not told was forgotten
        if self._clock_after is not None and self.point is not None:
            self.point = ResumePoint(max(self.point.clock, self._clock_after))

    def resume_point(self) -> ResumePoint | None:
        """Where a stream goes on that continues this one now; None while it has not told all there is."""
        if self.point is not None and self.ids == set():
            return ENDED
        return None if self.point is None else ResumePoint(self.point.clock, tuple(self._marks))

    def _note(self, operation_id: str, news: Record | Removed) -> None:
        self._forget_oldest()
        waiting = self._current if operation_id in self._current else self._pending
        before = waiting.get(operation_id)
        if isinstance(before, Record):
            self._keep(-before.kept_bytes)
        kept: Record | Removed | None = news
        if isinstance(news, Record):
            size = news.kept_bytes
            most = min(PENDING_BYTES, self._bytes + self.room.most - self.room.used)
            if self._bytes + size > max(most, _LEAST_BYTES):
                kept = None
            else:
                self._keep(size)
        waiting[operation_id] = kept
        if len(self._pending) > MAX_KNOWN:
            self.end(ServerBusy("You read too slowly: continue with the resume token."))
        self._wake()

    def _forget_oldest(self) -> None:
        """So that no more is remembered than may be."""
        most = MAX_KNOWN if self.room.known < KNOWN_OF_ALL else LEAST_KNOWN
        _cut(self._versions, most)
        if _cut(self._shown, most):
            self._knows_all_shown = False
        self._count_known(len(self._versions))

    def _count_known(self, known: int) -> None:
        self.room.known += known - self._known
        self._known = known

    def _keep(self, size: int) -> None:
        self._bytes += size
        self.room.used += size

    def _wake(self) -> None:
        if self._sleeper is not None and not self._sleeper.done():
            self._woken_at = time.perf_counter()
            self._sleeper.set_result(None)


def _cut(known: dict[str, Any], most: int) -> bool:
    """Takes out the oldest beyond the most. Returns whether there were any."""
    oldest = [*islice(known, max(0, len(known) - most))]
    for id_ in oldest:
        del known[id_]
    return bool(oldest)


def _mark(operation_id: str, created_at: int, revision: int) -> bytes:
    """Tells states of operations apart, all but surely: one in 4 billion times is wrong of 64."""
    state = f"{created_at} {revision} {operation_id}".encode()
    return hashlib.blake2b(state, digest_size=MARK_BYTES).digest()
