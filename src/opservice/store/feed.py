"""What has changed in the database, for those who follow many operations: one query for all of them.

Changes of this process are told at once. Those of other processes are found by when they happened
(`modified_at`), at each poll and hint of changes.py. A transaction may commit long after its changes
happened, and then they appear behind what was looked at. So each look begins some seconds before the previous
one, and twice a minute one begins two minutes before. What was told already is known by its revision. As
often, the revisions of what was told and still runs are compared with the database, whenever it was changed.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from opservice.common.loggers import get_logger
from opservice.domain.errors import (
    OperationNotFound,
    ServerBusy,
    ServerStopping,
    StoreError,
    StoreUnavailable,
    WatchOutdated,
)
from opservice.domain.operation import SECOND, Change, Record
from opservice.store.following import PENDING_BYTES_OF_ALL, Follower, Room

log = get_logger("opservice.changes")

OVERLAP = 10 * SECOND
"""How long before the previous look each look begins."""
LATE = 120 * SECOND
"""The same, of the looks for what was committed late, and of streams that are continued."""
_LATE_EVERY = 30 * SECOND
_STALE_SECONDS = 5
"""How long ago the last look may be when a stream begins. Polls may be rarer, or have failed."""
_AT_ONCE = 20
"""Records that are read together: each may have payloads of megabytes."""
_CHANGES_AT_ONCE = 1_000
"""Changes that are looked at before other calls get their turn."""
_COMPARED_AT_ONCE = 5_000
"""Revisions that one query asks for."""
_FOREVER = 1 << 62

Find = Callable[[str], Awaitable[Record]]
"""Reads an operation, or raises OperationNotFound or a StoreError."""
Read = Callable[[int, int], Awaitable[tuple[int, Sequence[Change]]]]
"""Given how far back to look from the clock, and from which clock at most: the clock, and the changes."""
Revisions = Callable[[Sequence[str]], Awaitable[Mapping[str, int]]]


class Feed:
    """The followers of this process."""

    def __init__(
        self, read: Read, find: Find, revisions: Revisions, resume_window: int = 0
    ) -> None:
        """`resume_window` is as for OperationStore."""
        self._read = read
        self._find = find
        self._revisions = revisions
        self._resume_window = resume_window
        self._followers: set[Follower] = set()
        self._room = Room(PENDING_BYTES_OF_ALL)
        self._by_id: defaultdict[str, set[Follower]] = defaultdict(set)
        self._by_parent: defaultdict[str | None, set[Follower]] = defaultdict(set)
        self._seen: dict[str, tuple[int, int, bool]] = {}
        self._looked_at: float | None = None
        self._late_at = 0.0
        self._looking = asyncio.Lock()
        self._failures = 0
        """Looks for which the database was not available."""
        self._begins_anew = True
        """Nobody has followed for a while: what has changed meanwhile is of no interest to the next look."""
        self._closed = False
        self.clock: int | None = None
        """Of what changed until then, all has been told to the followers, unless it was committed later."""

    @property
    def is_followed(self) -> bool:
        """Whether there is anybody to look for."""
        return bool(self._followers)

    @contextmanager
    def follow(self, follower: Follower) -> Iterator[None]:
        """The follower is told of changes during the block; before it reads what there is, `look` once."""
        follower.room = self._room
        if self._closed:
            follower.end(ServerStopping())
        if not self._followers:
            self._begins_anew = True
        self._followers.add(follower)
        places: list[set[Follower]]
        if follower.ids is None:
            places = [self._by_parent[follower.parent]]
        else:
            places = [self._by_id[id_] for id_ in follower.ids]
        ids = [] if follower.ids is None else [*follower.ids]
        for place in places:
            place.add(follower)
        try:
            yield
        finally:
            self._followers.discard(follower)
            follower.leave()
            for place in places:
                place.discard(follower)
            for id_ in ids:
                if not self._by_id[id_]:
                    del self._by_id[id_]
            if follower.ids is None and not self._by_parent[follower.parent]:
                del self._by_parent[follower.parent]

    def publish(self, record: Record) -> None:
        """Tells of a record that was just committed."""
        for follower in self._followers_of(record.id, record.parent):
            follower.tell(record)

    def publish_gone(self, end: Change) -> None:
        """Tells of an operation that is gone."""
        for follower in self._followers_of(end.id, end.parent):
            follower.tell_gone(end)

    def close(self) -> None:
        """Ends whoever follows now, or will."""
        self._closed = True
        for follower in self._followers:
            follower.end(ServerStopping())

    async def begin(self) -> int:
        """Makes sure that changes are looked for from now on. Returns what the clock said some seconds ago at
        most. Raises a StoreError.
        """
        failures = self._failures
        # A look under way has a later clock than this one, and others were told of what has expired by then.
        async with self._looking:
            if self._is_stale():
                if self._failures != failures:  # while this one waited: each may take seconds
                    raise StoreUnavailable
                await self._look()
        assert self.clock is not None
        return self.clock

    async def has_read(self, follower: Follower) -> None:
        """The follower was told of what there is, or of what has changed since its point.

        Raises a StoreError, or WatchOutdated when that took so long that what was deleted since may have had
        no row any more.
        """
        point = follower.point
        if follower.ids is None and point is not None and self._resume_window:
            clock = await self.begin()
            if clock - point.clock > self._resume_window:
                raise WatchOutdated

    def _is_stale(self) -> bool:
        began = self._looked_at
        return (
            self._begins_anew
            or began is None
            or asyncio.get_running_loop().time() > began + _STALE_SECONDS
        )

    async def look(self) -> None:
        """Looks once for what other processes have changed, if anybody follows."""
        if not self._followers:
            return
        try:
            async with self._looking:
                await self._look()
        except StoreError as error:
            log.warning("changes were not looked for", cause=str(error.__cause__ or error))
        except Exception:  # whatever it is, the next look must come
            log.exception("changes were not looked for")

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        if self._begins_anew:
            self._begins_anew = False
            self._seen.clear()
            self.clock = self._looked_at = None
        before, looked_at = self.clock, self._looked_at
        first = before is None or looked_at is None
        late = first or (began - self._late_at) * SECOND >= _LATE_EVERY
        overlap = LATE if late else OVERLAP
        elapsed = 0 if looked_at is None else int((began - looked_at) * SECOND)
        # Back from the clock, too, which may have been set back: what changed since then has earlier times.
        at_most = _FOREVER if before is None else before - overlap
        try:
            clock, changes = await self._read(elapsed + overlap, at_most)
        except StoreUnavailable:
            self._failures += 1
            raise
        if before is not None:
            self._end_those_who_missed(clock - before)
        for start in range(0, len(changes), _CHANGES_AT_ONCE):
            slice_ = changes[start : start + _CHANGES_AT_ONCE]
            if not first:
                await self._tell(
                    [each for each in slice_ if self._seen.get(each.id) != _state(each)]
                )
            self._seen.update((each.id, _state(each)) for each in slice_)
            await asyncio.sleep(0)
        if late and not first:
            await self._compare()
        if late:
            self._late_at = began
            oldest = clock - LATE - _LATE_EVERY
            self._seen = {id_: each for id_, each in self._seen.items() if each[0] >= oldest}
        self.clock, self._looked_at = clock, began

    def _end_those_who_missed(self, elapsed: int) -> None:
        """Ends streams of parents if operations and their rows may have been deleted since the last look."""
        if self._resume_window and elapsed > max(self._resume_window, OVERLAP):
            for follower in self._followers:
                if follower.ids is None:
                    follower.end(WatchOutdated())

    async def _tell(self, changes: Iterable[Change]) -> None:
        """Tells those who follow what has changed, which is read once for all of them."""
        wanted: list[Change] = []
        for change in changes:
            followers = self._followers_of(change.id, change.parent)
            if change.gone:
                for follower in followers:
                    follower.tell_gone(change)
            elif any(follower.wants(change) for follower in followers):
                wanted.append(change)
        await self._read_and_tell([change.id for change in wanted])

    async def _read_and_tell(self, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), _AT_ONCE):
            slice_ = ids[start : start + _AT_ONCE]
            results = await asyncio.gather(*map(self._find, slice_), return_exceptions=True)
            for id_, found in zip(slice_, results, strict=True):
                if isinstance(found, Record):
                    self.publish(found)
                elif isinstance(found, StoreUnavailable | ServerBusy | CancelledError):
                    raise found
                elif not isinstance(found, OperationNotFound):  # of which the next look tells
                    # It concerns this operation. The others are told of, whatever is wrong with it.
                    log.error("a changed operation cannot be read", id=id_, exc_info=found)
            await asyncio.sleep(0)

    async def _compare(self) -> None:
        """Reads what followers know in another state than the database has it, whenever it was changed."""
        known: dict[str, int] = {}
        for follower in [*self._followers]:
            for id_, revision in follower.running().items():
                known[id_] = min(revision, known.get(id_, revision))
            await asyncio.sleep(0)
        if known:
            ids, revisions = [*known], dict[str, int]()
            for start in range(0, len(ids), _COMPARED_AT_ONCE):
                revisions |= await self._revisions(ids[start : start + _COMPARED_AT_ONCE])
            other = [id_ for id_, revision in known.items() if revisions.get(id_, 0) > revision]
            await self._read_and_tell(other)
            if gone := known.keys() - revisions.keys():
                await self._remove(gone)

    async def _remove(self, ids: set[str]) -> None:
        for follower in [*self._followers]:
            for id_ in follower.running().keys() & ids:
                follower.remove(id_)
            await asyncio.sleep(0)

    def _followers_of(self, operation_id: str, parent: str) -> list[Follower]:
        return [
            *self._by_id.get(operation_id, ()),
            *self._by_parent.get(parent, ()),
            *self._by_parent.get(None, ()),
        ]


def _state(change: Change) -> tuple[int, int, bool]:
    return change.modified_at, change.revision, change.gone
