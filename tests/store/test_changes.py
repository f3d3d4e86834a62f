"""Those who follow an operation: woken by whoever changes it, in this process or another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import event

from opservice.auth.authenticator import Caller
from opservice.common import tracing
from opservice.domain.errors import OperationNotFound, ServerStopping, Unauthenticated
from opservice.domain.identity import ANYBODY, Right
from opservice.domain.operation import (
    DAY,
    SECOND,
    Cancel,
    CancelPolicy,
    Command,
    Complete,
    Delete,
    LapseLeases,
    Record,
    Renew,
    Start,
    new_id,
)
from opservice.methods.guard import GuardedStore
from opservice.store.changes import Subscription
from opservice.store.engine import open_database
from opservice.store.repository import Repository
from opservice.store.service import OperationStore
from store.conftest import ABORTED, CANCELLED, Ops
from support.metrics import counted
from support.postgres import PostgresServer

PATIENCE = 30.0
NEVER = 3600 * SECOND
SOON = SECOND // 20

Result = TypeVar("Result")


@asynccontextmanager
async def opened(url: str, poll: int, *, notify: bool = True) -> AsyncIterator[OperationStore]:
    """A store of its own, as another process has it."""
    store = OperationStore(open_database(url), Repository(), poll, notify=notify)
    try:
        yield store
    finally:
        await store.close()


async def soon(awaited: Awaitable[Result]) -> Result:
    return await asyncio.wait_for(awaited, PATIENCE)


async def started(store: OperationStore, **fields: Any) -> str:
    return (await soon(store.apply(Start(new_id(), DAY, **fields)))).record.id


async def until(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not look():  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.01)


def follow(store: OperationStore, operation_id: str) -> asyncio.Queue[Record | None]:
    """The records as they come, then None."""
    arrived: asyncio.Queue[Record | None] = asyncio.Queue()

    async def run() -> None:
        async for record in store.follow(operation_id):
            arrived.put_nowait(record)
        arrived.put_nowait(None)

    arrived.task = asyncio.create_task(run())  # type: ignore[attr-defined] # keeps it alive
    return arrived


async def wait(store: OperationStore, operation_id: str, at_most: int) -> Record:
    """As everybody may, of a server that asks nobody who they are."""
    return await GuardedStore(store, None).wait(Caller(ANYBODY, Right.SEE), operation_id, at_most)


async def waiting(
    store: OperationStore, *operation_ids: str, at_most: int = NEVER
) -> asyncio.Future[list[Record]]:
    """Waits for all of them, each of which has been read once."""
    waits = [asyncio.ensure_future(wait(store, id_, at_most)) for id_ in operation_ids]
    followers = store._changes._subscriptions
    await until(
        lambda: all(
            follower.known
            for id_ in operation_ids
            for follower in followers.get(id_, [Subscription()])
        )
    )
    return asyncio.gather(*waits)


@dataclass(frozen=True)
class Question:
    """A query: for revisions, or for whole records."""

    ids: tuple[str, ...]
    of_records: bool


def questions(store: OperationStore) -> list[Question]:
    """The queries for operations from now on, on connections that are not open yet; and batches read."""
    asked: list[Question] = []

    def collect(_c: object, _u: object, statement: str, parameters: Any, *_: object) -> None:
        if "operations" in statement and "created_by" not in statement:
            # All ids are one parameter.
            (ids,) = parameters.values() if isinstance(parameters, dict) else parameters
            named = json.loads(ids) if isinstance(ids, str) else ids
            asked.append(Question(tuple(named), of_records=False))

    event.listen(store._database.reader, "before_cursor_execute", collect)
    batches = store._reads._batches
    read = batches._results

    async def collect_batch(ids: Sequence[str]) -> Sequence[Record | Exception]:
        asked.append(Question(tuple(ids), of_records=True))
        return await read(ids)

    setattr(batches, "_results", collect_batch)  # noqa: B010 - mypy would not have it assigned
    return asked


@pytest.mark.parametrize("at_most", [0, SECOND // 10], ids=["at once", "after a while"])
async def test_a_wait_that_runs_out_returns_the_operation_as_it_is(
    database_url: str, at_most: int
) -> None:
    async with opened(database_url, NEVER) as store:
        id_ = await started(store)

        record = await soon(wait(store, id_, at_most))

        assert record == await store.get(id_)
        assert not record.done


async def test_a_wait_that_runs_out_has_seen_what_nobody_hinted_at(database_url: str) -> None:
    async with opened(database_url, NEVER, notify=False) as store, opened(database_url, NEVER) as b:
        id_ = await started(store)
        ended = await waiting(store, id_, at_most=SECOND)
        renewed = await soon(b.apply(Renew(id_)))

        assert await soon(ended) == [renewed.record]


@pytest.mark.parametrize("at_most", [0, NEVER], ids=["at once", "waiting"])
async def test_a_wait_for_what_never_was_is_not_found(database_url: str, at_most: int) -> None:
    async with opened(database_url, NEVER) as store:
        with pytest.raises(OperationNotFound):
            await soon(wait(store, "opsneverwas", at_most))


async def test_what_this_process_changes_is_told_without_a_query(database_url: str) -> None:
    async with opened(database_url, NEVER, notify=False) as store:
        asked = questions(store)
        id_ = await started(store, cancel_policy=CancelPolicy.COOPERATIVE)
        arrived = follow(store, id_)
        await soon(arrived.get())
        asked.clear()

        outcomes = [
            await soon(store.apply(command))
            for command in (Renew(id_), Cancel(id_, CANCELLED), Complete(id_, b"response"))
        ]
        records = [await soon(arrived.get()) for _ in outcomes]

        assert records == [outcome.record for outcome in outcomes]
        assert await soon(arrived.get()) is None
        assert asked == []


async def test_what_a_sweep_ends_wakes_who_waits(database_url: str) -> None:
    async with opened(database_url, NEVER, notify=False) as store:
        id_ = await started(store, lease=1)
        ended = await waiting(store, id_)

        await soon(store.sweep(LapseLeases(ABORTED, 10)))

        assert (await soon(ended))[0].error == ABORTED.status


async def test_what_another_process_ends_wakes_who_waits_by_its_hint(database_url: str) -> None:
    async with opened(database_url, NEVER) as store, opened(database_url, NEVER) as other:
        # The first round may owe its wake-up to the beginning of the hints.
        for _ in range(3):
            ids = [await started(other, lease=lease) for lease in (None, None, 1)]
            ended = await waiting(store, *ids)

            completed = (await soon(other.apply(Complete(ids[0], b"response")))).record
            cancelled = (await soon(other.apply(Cancel(ids[1], CANCELLED)))).record
            await soon(other.sweep(LapseLeases(ABORTED, 10)))

            assert await soon(ended) == [completed, cancelled, await other.get(ids[2])]


async def test_a_cooperative_cancel_by_another_process_is_hinted(database_url: str) -> None:
    async with opened(database_url, NEVER) as store, opened(database_url, NEVER) as other:
        id_ = await started(store, cancel_policy=CancelPolicy.COOPERATIVE)
        arrived = follow(store, id_)
        await soon(arrived.get())

        cancelled = await soon(other.apply(Cancel(id_, CANCELLED)))

        assert await soon(arrived.get()) == cancelled.record


async def test_polls_alone_wake_who_follows(database_url: str) -> None:
    async with (
        opened(database_url, SOON, notify=False) as store,
        opened(database_url, SOON, notify=False) as other,
    ):
        id_ = await started(other)
        arrived = follow(store, id_)
        await soon(arrived.get())

        renewed = await soon(other.apply(Renew(id_)))
        assert await soon(arrived.get()) == renewed.record
        completed = await soon(other.apply(Complete(id_, b"response")))
        assert await soon(arrived.get()) == completed.record


async def test_a_follower_learns_that_the_operation_is_gone(database_url: str) -> None:
    """It was ended and deleted between two polls."""
    async with (
        opened(database_url, SOON, notify=False) as store,
        opened(database_url, SOON, notify=False) as other,
    ):
        id_ = await started(other)
        ended = await waiting(store, id_)

        await soon(
            asyncio.gather(other.apply(Complete(id_, b"response")), other.apply(Delete(id_)))
        )

        try:
            assert (await soon(ended))[0].done
        except OperationNotFound:
            return


async def test_a_poll_is_one_query_however_many_operations_are_followed(database_url: str) -> None:
    async with opened(database_url, SOON, notify=False) as store:
        ids = [await started(store) for _ in range(3)]
        many = await asyncio.gather(*[started(store) for _ in range(1500)])
        ended = await waiting(store, *ids, *many)
        asked = questions(store)
        await until(lambda: len(asked) >= 3)

        assert [len(question.ids) for question in asked[:3]] == [1503] * 3
        store.stop_following()
        assert len(await soon(ended)) == 1503


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_what_many_follow_is_read_once_for_all(database_url: str) -> None:
    async with opened(database_url, SOON, notify=False) as store, opened(database_url, NEVER) as b:
        asked = questions(store)
        id_ = await started(store)
        ended = await waiting(store, *[id_] * 1000)
        asked.clear()

        completed = await soon(b.apply(Complete(id_, b"response")))

        assert await soon(ended) == [completed.record] * 1000
        assert {question.ids for question in asked} == {(id_,)}
        assert len([question for question in asked if question.of_records]) == 1


async def test_who_stops_waiting_leaves_nothing_behind(database_url: str) -> None:
    async with opened(database_url, NEVER) as store:
        id_ = await started(store)
        ended = await waiting(store, id_, id_)

        ended.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ended
        await asyncio.sleep(0)

        assert store._changes._subscriptions == {}


async def test_when_following_stops_waits_return_the_operation_as_it_is(database_url: str) -> None:
    async with opened(database_url, NEVER) as store:
        id_ = await started(store)
        ended = await waiting(store, id_)
        renewed = await soon(store.apply(Renew(id_)))

        store.stop_following()

        assert await soon(ended) == [renewed.record]
        assert await soon(wait(store, id_, NEVER)) == renewed.record
        with pytest.raises(ServerStopping):
            await soon(anext(store.follow(id_)))


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_no_waiter_hangs_while_the_listening_connection_is_killed_again_and_again(
    postgres: PostgresServer, database_url: str
) -> None:
    name = database_url.rpartition("/")[2]
    kill = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        f" WHERE datname = '{name}' AND query LIKE 'LISTEN%'"
    )
    killed = 0
    async with opened(database_url, SOON) as store, opened(database_url, SOON) as other:
        while killed < 2:
            ids = await asyncio.gather(*[started(other) for _ in range(10)])
            ended = await waiting(store, *ids)
            ((count,),) = await asyncio.to_thread(postgres.execute, kill)
            assert isinstance(count, int)
            killed += count
            await asyncio.gather(*[other.apply(Complete(id_, b"response")) for id_ in ids])
            assert all(record.done for record in await soon(ended))


def test_a_follower_is_told_nothing_older_than_it_knows(ops: Ops) -> None:
    first = ops.start()
    second = ops.apply(Renew(first.id)).record
    follower = Subscription()

    follower.tell(second)
    follower.tell(first)

    assert follower.known == 2
    assert asyncio.run(soon(follower.next())) == second


def test_a_follower_is_told_the_end_before_what_came_after_it(ops: Ops) -> None:
    first = ops.start()
    follower = Subscription()
    follower.tell(first)
    ended = ops.apply(Complete(first.id, b"response")).record

    follower.tell(ended)
    follower.end(OperationNotFound(first.id))

    assert asyncio.run(soon(follower.next())) == ended


@pytest.mark.parametrize("end_again", [False, True], ids=["running", "done"])
async def test_who_follows_an_operation_learns_that_it_is_gone_though_its_key_came_again(
    database_url: str, end_again: bool
) -> None:
    keyed = Start(new_id(), DAY, request_hash=b"request")
    async with (
        opened(database_url, SOON, notify=False) as store,
        opened(database_url, SOON, notify=False) as other,
    ):
        await soon(other.apply(keyed))
        for _ in range(3):
            await soon(other.apply(Renew(keyed.id)))
        ended = await waiting(store, keyed.id)

        # In one batch, so that no poll sees the end.
        commands: list[Command] = [Complete(keyed.id, b"response"), Delete(keyed.id), keyed]
        if end_again:
            commands.append(Complete(keyed.id, b"another response"))
        await soon(asyncio.gather(*[other.apply(command) for command in commands]))

        with pytest.raises(OperationNotFound):
            await soon(ended)


async def test_followers_are_told_though_whoever_made_the_change_has_left(
    database_url: str,
) -> None:
    async with opened(database_url, NEVER, notify=False) as store:
        id_ = await started(store)
        ended = await waiting(store, id_)
        completing = asyncio.create_task(store.apply(Complete(id_, b"response")))
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.0)  # it is being written

        completing.cancel()

        assert (await soon(ended))[0].done


async def test_who_ends_the_follower_that_he_was_given_ends_the_follow_with_his_error(
    database_url: str,
) -> None:
    async with opened(database_url, NEVER) as store:
        id_ = await started(store)
        attached: list[Subscription] = []
        records = store.follow(id_, attach=attached.append)
        first = await soon(anext(records))
        waiting_for_news = asyncio.ensure_future(anext(records))
        await asyncio.sleep(0)

        (follower,) = attached
        follower.end(Unauthenticated())

        assert not first.done
        with pytest.raises(Unauthenticated):
            await soon(waiting_for_news)


async def test_a_follow_that_is_ended_before_it_began_shows_nothing(database_url: str) -> None:
    async with opened(database_url, NEVER) as store:
        id_ = await started(store)

        with pytest.raises(Unauthenticated):
            await soon(
                anext(store.follow(id_, attach=lambda follower: follower.end(Unauthenticated())))
            )


async def test_a_follow_that_is_ended_leaves_nothing_behind(database_url: str) -> None:
    async with opened(database_url, NEVER) as store:
        id_ = await started(store)
        attached: list[Subscription] = []
        records = store.follow(id_, attach=attached.append)
        await soon(anext(records))
        attached[0].end(Unauthenticated())

        with pytest.raises(Unauthenticated):
            await soon(anext(records))

        assert store._changes._subscriptions == {}


async def test_looks_for_changes_are_for_no_call_and_have_no_span(
    database_url: str, spans: InMemorySpanExporter
) -> None:
    traces = tracing.active()
    assert traces is not None

    def looks() -> float:
        return counted("opservice_batch_items_total", batch="aside")

    async with opened(database_url, SOON) as store:
        id_ = await started(store)
        with traces.call("Watch", ()):
            records = store.follow(id_)
            await soon(anext(records))
        spans.clear()
        enough = looks() + 5
        while looks() < enough:  # noqa: ASYNC110 - a metric tells nobody that it rises
            await asyncio.sleep(0.01)
        await records.aclose()
    assert [span.name for span in spans.get_finished_spans()] == []
