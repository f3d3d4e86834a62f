"""What a stream of many operations is told until it has caught up: what there is, or what has changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypeAlias

from opservice.domain.filters import ListQuery
from opservice.domain.operation import Change, Record
from opservice.methods.followed import Followed
from opservice.store.following import Follower
from opservice.store.listing import Listed

AT_ONCE = 20
"""Operations of a batch that are read together: each may have payloads of megabytes."""
_PAGE = 500
"""Operations of a parent that are read at a time."""
_MOST_PASSED = 10_000
"""Changes that are looked at before a parent's operations are walked instead: a twentieth of a second."""

Find: TypeAlias = Callable[[str], Awaitable[Record | None]]
"""Reads an operation; None when it is not there for the caller."""
Page: TypeAlias = Callable[[ListQuery], Awaitable[Listed]]
"""Reads a page of what the caller may see."""
Changes: TypeAlias = Callable[
    [int, Change | None, bool], Awaitable[tuple[Sequence[Change], Change | None]]
]
"""Reads a page of what has changed since a time, after a change, or of what has expired since then."""


class CatchingUp:
    """Tells a follower, by what its caller may read.

    `changes` is given only for a caller who sees everything: how long it takes to pass over changes tells how
    much has changed, also of what others may not see.
    """

    def __init__(
        self,
        followed: Followed,
        follower: Follower,
        find: Find,
        page: Page,
        changes: Changes | None,
    ) -> None:
        self._followed = followed
        self._follower = follower
        self._find = find
        self._page = page
        self._changes = changes

    async def tell(self, clock: int) -> AsyncGenerator[None]:
        """Tells all that there is, or that has changed since the follower was told; yields after each part.

        `clock` is the database's, in microseconds. Raises WatchOutdated when it is not known any more what
        has changed.
        """
        since = self._followed.since(clock)
        if self._followed.ids is not None:
            telling = self._tell_ids(self._followed.ids, since)
        elif since is not None and self._changes is not None:
            telling = self._tell_changed(self._changes, clock, since)
        else:
            telling = self._tell_parent(clock, since)
        async with aclosing(telling):
            async for _ in telling:
                yield

    async def _tell_ids(self, ids: Sequence[str], since: int | None) -> AsyncGenerator[None]:
        """Tells of the operations with these ids as they are; `since` is as in was_told."""
        for start in range(0, len(ids), AT_ONCE):
            slice_ = ids[start : start + AT_ONCE]
            for id_, record in zip(slice_, await self._find_each(slice_), strict=True):
                if record is None:
                    self._follower.remove(id_)
                elif since is None or not self._follower.was_told(record, since):
                    self._follower.tell(record)
            yield

    async def _tell_parent(self, clock: int, since: int | None) -> AsyncGenerator[None]:
        """The same of a parent's operations, of which `since` says which may have changed."""
        query = ListQuery(
            self._followed.parent,
            _PAGE,
            self._followed.condition if since is None else None,
            changed_since=since,
        )

        def tell(records: Sequence[Record]) -> None:
            for record in records:
                if record.expires_at is not None and record.expires_at <= clock:
                    self._follower.tell_gone(Change.end_of(record))
                elif since is None or not self._follower.was_told(record, since):
                    self._follower.tell(record)

        while True:
            page = await self._page(query)
            tell(page.records)
            end = page.end
            del page  # it may be large, and its reader slow
            yield
            if end is None:
                return
            query = replace(query, after=end)

    async def _tell_changed(self, changes: Changes, clock: int, since: int) -> AsyncGenerator[None]:
        """The same of those that have changed since then, which are found by when they changed.

        When very much has changed, the parent's operations are walked after all, which may be few.
        """
        passed = 0
        for expired in (False, True):
            after: Change | None = None
            while True:
                page, after = await changes(since, after, expired)
                wanted = [change for change in page if self._follower.wants(change)]
                for change in wanted:
                    if change.gone:
                        self._follower.tell_gone(change)
                yield
                ids = [change.id for change in wanted if not change.gone]
                for start in range(0, len(ids), AT_ONCE):
                    for record in await self._find_each(ids[start : start + AT_ONCE]):
                        if record is not None:  # else the feed tells of what became of it meanwhile
                            self._follower.tell(record)
                    yield
                if after is None:
                    break
                passed += len(page)
                if passed >= _MOST_PASSED and self._followed.parent is not None:
                    walk = self._tell_parent(clock, since)
                    async with aclosing(walk):
                        async for _ in walk:
                            yield
                    return

    async def _find_each(self, ids: Sequence[str]) -> Sequence[Record | None]:
        return await asyncio.gather(*map(self._find, ids))
