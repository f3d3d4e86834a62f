"""Streams that are continued: what they read to find what has changed, and what they tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import pytest

from methods.test_guard import MINE, THEIRS, started
from opservice.auth.authenticator import Authenticator, Caller, Credentials
from opservice.auth.policy import Policy, StaticToken, hash_token
from opservice.domain.filters import ListQuery
from opservice.domain.identity import Identity, Right, parse_grant
from opservice.domain.operation import SECOND, Change, Complete, Delete, Record, Renew
from opservice.methods import catching_up
from opservice.methods.followed import Followed
from opservice.methods.guard import MAX_LISTS_PER_CALLER, GuardedStore
from opservice.store import repository
from opservice.store.engine import open_database
from opservice.store.following import ResumePoint
from opservice.store.listing import Listed
from opservice.store.repository import Repository
from opservice.store.service import OperationStore

PATIENCE = 30.0
SEES = {"everything": "viewer:*", "the parent": f"viewer:{MINE}"}
"""A grant, which is also the token of its holder here."""
WINDOW = 600 * SECOND


class Counting(OperationStore):
    """Which counts the pages that are read of lists, and of all that has changed."""

    pages = 0
    changes_read = 0

    async def page(self, query: ListQuery, caller: str = "") -> Listed:
        self.pages += 1
        return await super().page(query, caller)

    async def changes(
        self, since: int, after: Change | None, caller: str = "", *, expired: bool
    ) -> tuple[Sequence[Change], Change | None]:
        self.changes_read += 1
        return await super().changes(since, after, caller, expired=expired)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Counting]:
    opened = Counting(open_database(database_url), Repository())
    yield opened
    await opened.close()


@pytest.fixture
def guarded(store: Counting) -> GuardedStore:
    tokens = {
        hash_token(grant): StaticToken("ann", (parse_grant(grant),), None)
        for grant in SEES.values()
    }
    return GuardedStore(store, Authenticator(Policy(), tokens))


async def told(
    guarded: GuardedStore, grant: str, parent: str | None, point: ResumePoint | None
) -> tuple[list[tuple[str, int]], ResumePoint]:
    """Ids and revisions (0 of what was removed) until it has caught up, and where it can be continued."""
    identity = Identity("ann", (parse_grant(grant),), "token")
    caller = Caller(identity, Right.SEE, Credentials(grant))
    followed = Followed(None, parent, None, point, WINDOW)
    news: list[tuple[str, int]] = []
    async with (
        asyncio.timeout(PATIENCE),
        aclosing(guarded.follow_many(caller, followed, "")) as events,
    ):
        async for event in events:
            if event.news is None:
                assert event.point is not None
                return news, event.point
            revision = event.news.revision if isinstance(event.news, Record) else 0
            news.append((event.news.id, revision))
    raise AssertionError("it ended")


async def change_some(store: OperationStore, ids: Sequence[str]) -> set[tuple[str, int]]:
    """What a stream is to tell of it that knows the operations, of which the last is kept for 1 µs."""
    await store.apply(Renew(ids[1]))
    for id_ in (ids[2], ids[3], ids[5]):
        await store.apply(Complete(id_, b""))
    await store.apply(Delete(ids[3]))
    new = await started(store, MINE)
    return {(ids[1], 2), (ids[2], 2), (ids[3], 0), (ids[5], 0), (new, 1)}


@pytest.mark.parametrize("grant", SEES.values(), ids=SEES)
async def test_a_continued_stream_of_a_parent_tells_each_change_once(
    store: Counting, guarded: GuardedStore, grant: str
) -> None:
    ids = [await started(store, MINE) for _ in range(5)] + [await started(store, MINE, 1)]
    hidden = await started(store, THEIRS)
    first, point = await told(guarded, grant, MINE, None)
    assert sorted(first) == sorted((id_, 1) for id_ in ids)

    expected = await change_some(store, ids)
    await store.apply(Renew(hidden))
    again, point = await told(guarded, grant, MINE, point)

    assert sorted(again) == sorted(expected)
    kept, _ = await told(guarded, grant, MINE, point)
    assert {id_ for id_, revision in kept if revision} == set()


async def test_a_continued_stream_of_all_parents_tells_each_change_once(
    store: Counting, guarded: GuardedStore
) -> None:
    ids = [await started(store, MINE) for _ in range(5)] + [await started(store, MINE, 1)]
    other = await started(store, THEIRS)
    _, point = await told(guarded, "viewer:*", None, None)

    expected = await change_some(store, ids)
    await store.apply(Renew(other))
    again, _ = await told(guarded, "viewer:*", None, point)

    assert sorted(again) == sorted({*expected, (other, 2)})


async def test_who_sees_everything_reads_what_has_changed_and_no_list(
    store: Counting, guarded: GuardedStore
) -> None:
    id_ = await started(store, MINE)
    _, point = await told(guarded, "viewer:*", MINE, None)
    store.pages = 0
    await store.apply(Renew(id_))

    assert (await told(guarded, "viewer:*", MINE, point))[0] == [(id_, 2)]

    assert store.pages == 0


async def test_who_does_not_see_everything_waits_for_no_changes_of_others(
    store: Counting, guarded: GuardedStore
) -> None:
    """How long it would take to pass over them would tell how many there are."""
    id_ = await started(store, MINE)
    _, point = await told(guarded, f"viewer:{MINE}", MINE, None)
    await store.apply(Renew(id_))

    assert (await told(guarded, f"viewer:{MINE}", MINE, point))[0] == [(id_, 2)]

    assert store.changes_read == 0


@pytest.mark.parametrize("grant", SEES.values(), ids=SEES)
async def test_streams_of_one_caller_that_begin_together_wait_for_each_other(
    store: Counting, guarded: GuardedStore, grant: str
) -> None:
    """As many lists at a time would be refused."""
    id_ = await started(store, MINE)
    many = 3 * MAX_LISTS_PER_CALLER

    async def told_to_each(
        point: ResumePoint | None,
    ) -> list[tuple[list[tuple[str, int]], ResumePoint]]:
        return await asyncio.gather(*(told(guarded, grant, MINE, point) for _ in range(many)))

    first = await told_to_each(None)
    await store.apply(Renew(id_))
    again = await told_to_each(first[0][1])

    assert [news for news, _ in first] == [[(id_, 1)]] * many
    assert [news for news, _ in again] == [[(id_, 2)]] * many


async def test_where_very_much_has_changed_the_parents_operations_are_walked(
    store: Counting, guarded: GuardedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catching_up, "_MOST_PASSED", 4)
    monkeypatch.setattr(repository, "_CHANGES_AT_ONCE", 2)
    others = [await started(store, THEIRS) for _ in range(10)]
    ids = [await started(store, MINE) for _ in range(5)] + [await started(store, MINE, 1)]
    _, point = await told(guarded, "viewer:*", MINE, None)
    for id_ in others:
        await store.apply(Renew(id_))
    expected = await change_some(store, ids)
    store.pages = 0

    again, _ = await told(guarded, "viewer:*", MINE, point)

    assert sorted(again) == sorted(expected)
    assert (store.changes_read, store.pages) == (2, 1)
