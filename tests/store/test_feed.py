"""What other processes change reaches those who follow many operations, however late it shows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import pytest
from sqlalchemy import Connection

from opservice.domain.errors import ServerStopping, StoreUnavailable, WatchOutdated
from opservice.domain.operation import (
    SECOND,
    Complete,
    Delete,
    Record,
    Removed,
    Renew,
    Start,
    new_id,
)
from opservice.store import feed, repository
from opservice.store.engine import open_database
from opservice.store.feed import LATE, OVERLAP
from opservice.store.following import Event, Follower, ResumePoint
from opservice.store.repository import Repository
from opservice.store.service import OperationStore
from opservice.store.sql import clock_that_says
from store.test_changes import NEVER, SOON, opened, soon, started
from support.fixtures import execute


@asynccontextmanager
async def opened_late(url: str, microseconds: int) -> AsyncIterator[OperationStore]:
    """A store whose changes show so much later than they happened."""
    clock = clock_that_says(lambda: time.time_ns() // 1000 - microseconds)
    store = OperationStore(open_database(url), Repository(clock), NEVER, notify=False)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def following(store: OperationStore) -> AsyncIterator[AsyncGenerator[Event]]:
    """Follows all parents; what there is at first was told."""
    follower = Follower(None, None, lambda _: True, lambda _: True)

    async def nothing(_clock: int) -> AsyncGenerator[None]:
        return
        yield

    events = store.follow_many(follower, nothing)
    try:
        assert (await soon(anext(events))).news is None
        yield events
    finally:
        await events.aclose()


async def told_of(events: AsyncGenerator[Event], id_: str, revision: int) -> None:
    """Waits until that was told. Others may be told of before it."""
    async with asyncio.timeout(30):
        async for event in events:
            news = event.news
            if isinstance(news, Record) and (news.id, news.revision) == (id_, revision):
                return


@pytest.mark.parametrize("late", [0, OVERLAP - 2 * SECOND], ids=["in time", "seconds late"])
async def test_what_another_process_changes_is_told_within_a_poll(
    database_url: str, late: int
) -> None:
    async with (
        opened(database_url, SOON, notify=False) as store,
        opened_late(database_url, late) as other,
        following(store) as events,
    ):
        id_ = await started(other)
        await told_of(events, id_, 1)
        await other.apply(Renew(id_))
        await told_of(events, id_, 2)


async def test_what_shows_more_than_a_minute_late_is_found_by_a_look_further_back(
    database_url: str,
) -> None:
    async with (
        opened(database_url, SOON, notify=False) as store,
        opened_late(database_url, LATE - 30 * SECOND) as other,
        following(store) as events,
    ):
        id_ = await started(other)

        store._feed._late_at = 0  # as after half a minute

        await told_of(events, id_, 1)


async def test_a_change_of_what_runs_is_found_whenever_it_was_made(database_url: str) -> None:
    async with (
        opened(database_url, SOON, notify=False) as store,
        following(store) as events,
    ):
        id_ = await started(store)
        await told_of(events, id_, 1)
        execute(database_url, "UPDATE operations SET revision = 2, modified_at = 7")

        store._feed._late_at = 0

        await told_of(events, id_, 2)


async def test_a_delete_by_another_process_is_told(database_url: str) -> None:
    async with (
        opened(database_url, SOON, notify=False) as store,
        opened(database_url, NEVER, notify=False) as other,
        following(store) as events,
    ):
        id_ = await started(other)
        await other.apply(Complete(id_, b"response"))
        await told_of(events, id_, 2)

        await other.apply(Delete(id_))

        assert (await soon(anext(events))).news == Removed(id_)


@pytest.mark.parametrize("window", [0, 30 * SECOND, 10 * 60 * SECOND])
async def test_whoever_could_not_look_for_longer_than_deleted_rows_stay_begins_anew(
    database_url: str, window: int
) -> None:
    """With 0 nothing is promised, and streams go on."""
    away = 0
    clock = clock_that_says(lambda: time.time_ns() // 1000 + away)
    store = OperationStore(
        open_database(database_url), Repository(clock), NEVER, notify=False, resume_window=window
    )
    try:
        async with following(store) as events:
            id_ = await started(store)
            await store.apply(Complete(id_, b"response"))
            await told_of(events, id_, 2)
            # By others, who keep no row for so long.
            execute(database_url, "DELETE FROM operations")

            away = window + SECOND
            await store._feed.look()

            if window:
                with pytest.raises(WatchOutdated):
                    await soon(anext(events))
            else:
                await told_of(events, await started(store), 1)
    finally:
        await store.close()


async def test_what_expires_unseen_by_any_process_is_told(database_url: str) -> None:
    async with (
        opened(database_url, SOON, notify=False) as store,
        following(store) as events,
    ):
        id_ = (await store.apply(Start(new_id(), SECOND))).record.id
        await store.apply(Complete(id_, b"response"))
        await told_of(events, id_, 2)

        assert (await soon(anext(events))).news == Removed(id_)


async def test_an_operation_that_cannot_be_read_keeps_no_other_from_being_told(
    database_url: str,
) -> None:
    async with (
        opened(database_url, SOON, notify=False) as store,
        opened(database_url, NEVER, notify=False) as other,
        following(store) as events,
    ):
        bad = await started(other)
        await told_of(events, bad, 1)
        execute(database_url, "UPDATE operations SET cancel_policy = 9, revision = 2")

        good = await started(other)

        await told_of(events, good, 1)


async def test_whoever_knows_much_is_asked_once_for_all_that_is_gone(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    running = Follower.running

    def counted(follower: Follower) -> dict[str, int]:
        nonlocal asked
        asked += 1
        return running(follower)

    async with opened(database_url, NEVER, notify=False) as store, following(store) as events:
        ids = [await started(store) for _ in range(5)]
        for id_ in ids:
            await told_of(events, id_, 1)
        execute(database_url, "DELETE FROM operations")
        store._feed._late_at = 0
        monkeypatch.setattr(Follower, "running", counted)

        await store._feed.look()

        assert {(await soon(anext(events))).news for _ in ids} == set(map(Removed, ids))
        assert asked == 2, "to compare, and to remove"


async def test_many_changes_are_read_by_and_by(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "_CHANGES_AT_ONCE", 2)
    async with (
        opened(database_url, NEVER, notify=False) as store,
        opened(database_url, NEVER, notify=False) as other,
        following(store) as events,
    ):
        ids = [await started(other) for _ in range(5)]
        execute(database_url, "UPDATE operations SET modified_at = 7000000000000000")
        asked: list[object] = []
        submit = store._asides.submit

        def counted(question: Callable[[], object]) -> Awaitable[object]:
            asked.append(question)
            return submit(question)

        monkeypatch.setattr(store._asides, "submit", counted)

        await store._feed.look()

        news = [(await soon(anext(events))).news for _ in ids]
        assert sorted(each.id for each in news if isinstance(each, Record)) == sorted(ids)
        assert len(asked) == 5, (
            "the clock, three pages of what has changed, one of what has expired"
        )


async def test_a_stream_that_ends_before_it_has_told_all_does_not_say_that_it_has(
    database_url: str,
) -> None:
    """Whoever continued it from there would never learn of the rest."""
    async with opened(database_url, NEVER, notify=False) as store:
        ids = [await started(store) for _ in range(3)]
        follower = Follower(None, None, lambda _: True, lambda _: True)

        async def read_all(_clock: int) -> AsyncGenerator[None]:
            for id_ in ids:
                follower.tell(await store.get(id_))
                yield
                store.stop_following()

        events = store.follow_many(follower, read_all)
        first = await anext(events)
        assert (first.news and first.news.id, first.point) == (ids[0], None)
        with pytest.raises(ServerStopping):
            await anext(events)


async def test_a_stream_says_that_it_is_caught_up_also_while_only_others_change(
    database_url: str,
) -> None:
    """Else a proxy would end it, and it could not be continued any more."""
    async with opened(database_url, NEVER, notify=False) as store:
        follower = Follower(None, None, lambda _: True, lambda _: False)

        async def nothing(_clock: int) -> AsyncGenerator[None]:
            return
            yield

        async def change() -> None:
            while True:
                await started(store)

        changing = asyncio.create_task(change())
        async with aclosing(store.follow_many(follower, nothing, 0.1)) as events:
            assert [(await soon(anext(events))).news for _ in range(3)] == [None] * 3
        changing.cancel()


@pytest.mark.parametrize("late", [False, True], ids=["in time", "too late"])
async def test_whoever_reads_for_longer_than_deleted_rows_stay_begins_anew(
    database_url: str, *, late: bool
) -> None:
    away, window = 0, 600 * SECOND
    clock = clock_that_says(lambda: time.time_ns() // 1000 + away)
    store = OperationStore(
        open_database(database_url), Repository(clock), NEVER, notify=False, resume_window=window
    )
    point = ResumePoint(time.time_ns() // 1000)

    async def read_all(_clock: int) -> AsyncGenerator[None]:
        nonlocal away
        for _ in range(2):  # with looks between, none of which comes too late
            away += (window + SECOND if late else window - 60 * SECOND) // 2
            await store._feed.look()
        yield

    follower = Follower(None, None, lambda _: True, lambda _: True, point)
    try:
        async with aclosing(store.follow_many(follower, read_all)) as events:
            if late:
                with pytest.raises(WatchOutdated):
                    await soon(anext(events))
            else:
                assert (await soon(anext(events))).news is None
    finally:
        await store.close()


@asynccontextmanager
async def looking(store: OperationStore) -> AsyncIterator[asyncio.Event]:
    """During a look that has read its clock, and what has changed; it ends once the event is set."""
    read, was_read, may_end = store._feed._read, asyncio.Event(), asyncio.Event()

    async def slow(back: int, at_most: int) -> object:
        found = await read(back, at_most)
        was_read.set()
        await may_end.wait()
        return found

    setattr(store._feed, "_read", slow)  # noqa: B010 - mypy would not have it assigned
    look = asyncio.create_task(store._feed.look())
    await soon(was_read.wait())
    yield may_end
    await soon(look)


async def begun(store: OperationStore, look_may_end: asyncio.Event) -> int:
    """The clock of a stream that begins during a look."""
    beginning = asyncio.create_task(store._feed.begin())
    await asyncio.sleep(0)
    look_may_end.set()
    return await soon(beginning)


async def test_a_stream_that_begins_during_a_look_begins_where_that_ends(database_url: str) -> None:
    """What expired before the end of the look is told to others, and to nobody by the next look."""
    async with opened(database_url, NEVER, notify=False) as store, following(store):
        async with looking(store) as may_end:
            began = await begun(store, may_end)

        assert began == store._feed.clock


async def test_the_look_for_a_stream_that_has_ended_is_none_for_the_next(database_url: str) -> None:
    async with opened(database_url, NEVER, notify=False) as store, AsyncExitStack() as ended:
        await ended.enter_async_context(following(store))
        async with looking(store) as may_end:
            await ended.aclose()
            created_at = (await store.get(await started(store))).created_at
            with store._feed.follow(Follower(None, None, lambda _: True, lambda _: True)):
                assert await begun(store, may_end) >= created_at


async def test_a_look_tells_of_nothing_that_has_expired_after_its_clock(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that begins with that clock would not know that it is not told again."""
    ahead = 0
    clock = clock_that_says(lambda: time.time_ns() // 1000 + ahead)
    store = OperationStore(open_database(database_url), Repository(clock), NEVER, notify=False)
    read_now = store._repository.read_now

    def read_and_pause(connection: Connection) -> int:
        nonlocal ahead
        now = read_now(connection)
        ahead = 10 * SECOND
        return now

    follower = Follower(None, None, lambda _: True, lambda _: True)
    try:
        with store._feed.follow(follower):
            await store._feed.begin()
            id_ = (await store.apply(Start(new_id(), 5 * SECOND))).record.id
            await store.apply(Complete(id_, b"response"))
            assert follower.take(None) is not None
            monkeypatch.setattr(store._repository, "read_now", read_and_pause)

            await store._feed.look()
            assert follower.take(None) is None

            await store._feed.look()
            assert follower.take(None) == (id_, Removed(id_))
    finally:
        await store.close()


async def test_streams_that_wait_for_a_look_that_fails_take_none_each(database_url: str) -> None:
    """Each may take seconds, one after another, until the database is found to be away."""
    async with opened(database_url, NEVER, notify=False) as store:
        looks, may_fail = 0, asyncio.Event()

        async def fail(_back: int, _at_most: int) -> object:
            nonlocal looks
            looks += 1
            await may_fail.wait()
            raise StoreUnavailable

        setattr(store._feed, "_read", fail)  # noqa: B010 - mypy would not have it assigned
        streams = [asyncio.create_task(store._feed.begin()) for _ in range(10)]
        await asyncio.sleep(0)
        may_fail.set()
        told = await soon(asyncio.gather(*streams, return_exceptions=True))

        assert [type(each) for each in told] == [StoreUnavailable] * 10
        assert looks == 1
        with pytest.raises(StoreUnavailable):
            await store._feed.begin()
        assert looks == 2, "who comes later asks the database again"


async def test_a_stream_does_not_begin_with_a_look_of_long_ago(database_url: str) -> None:
    """A token that another process gave just now would be from the future."""
    async with (
        opened(database_url, NEVER, notify=False) as store,
        following(store),
    ):
        created_at = (await store.get(await started(store))).created_at
        assert store._feed._looked_at is not None
        store._feed._looked_at -= 10  # as when polls are rare, or have failed

        assert await store._feed.begin() >= created_at


async def test_looks_further_back_go_on_when_the_clock_was_set_back(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_LATE_EVERY", 1)
    back = 0
    clock = clock_that_says(lambda: time.time_ns() // 1000 - back)
    store = OperationStore(open_database(database_url), Repository(clock), NEVER, notify=False)
    try:
        async with following(store) as events:
            back = 3600 * SECOND
            await store._feed.look()
            id_ = await started(store)
            await told_of(events, id_, 1)
            execute(database_url, "UPDATE operations SET revision = 2, modified_at = 7")

            await store._feed.look()

            await told_of(events, id_, 2)
    finally:
        await store.close()


async def test_one_query_looks_for_all_who_follow(database_url: str) -> None:
    async with opened(database_url, NEVER, notify=False) as store:
        async with following(store), following(store), following(store):
            looks = 0
            read = store._feed._read

            async def counted(back: int, at_most: int) -> object:
                nonlocal looks
                looks += 1
                return await read(back, at_most)

            setattr(store._feed, "_read", counted)  # noqa: B010 - mypy would not have it assigned
            await store._feed.look()

        assert looks == 1
        assert not store._feed.is_followed
