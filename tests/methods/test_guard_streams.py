"""Streams of many operations that break off again and again, while two processes write."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from sqlalchemy import Connection

from opservice.auth.authenticator import Authenticator, Caller, Credentials
from opservice.auth.policy import Policy, StaticToken, hash_token
from opservice.domain.errors import OpserviceError
from opservice.domain.filters import ListQuery
from opservice.domain.identity import Identity, Right, parse_grant
from opservice.domain.matching import satisfies
from opservice.domain.operation import (
    DAY,
    SECOND,
    Cancel,
    Change,
    Command,
    Complete,
    Delete,
    Record,
    Renew,
    Start,
    derive_id,
    new_id,
)
from opservice.methods.filtering import parse_filter
from opservice.methods.followed import Followed
from opservice.methods.guard import GuardedStore
from opservice.store.engine import open_database
from opservice.store.following import ResumePoint
from opservice.store.repository import Repository
from opservice.store.service import OperationStore
from store.conftest import CANCELLED
from store.test_changes import PATIENCE, SOON

ROUNDS, SECONDS = 8, 1.5
WINDOW = 600 * SECOND
GRANTS = ("viewer:*", "viewer:p/*", "viewer:p/a")
PARENTS = ("p/a", "p/b", "q")
FILTERS = ("", "done = false", "done = true", 'method = "a"')


class Slow(Repository):
    """In which others change something between two queries of a look."""

    def changes(
        self, connection: Connection, since: int, after: Change | None = None, *, expired: bool
    ) -> tuple[list[Change], Change | None]:
        time.sleep(0.03)
        return super().changes(connection, since, after, expired=expired)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[OperationStore]:
    store = OperationStore(open_database(url), Slow(), SOON, resume_window=WINDOW)
    await store.read_clock()
    try:
        yield store
    finally:
        await store.close()


@dataclass
class Reader:
    """Who follows, and what they know. Each stream is cut after a while, and continued on either process."""

    random: Random
    grant: str
    parent: str | None
    filter_: str
    known: dict[str, Record] = field(default_factory=dict)
    point: ResumePoint | None = None

    def caller(self) -> Caller:
        identity = Identity("ann", (parse_grant(self.grant),), "token")
        return Caller(identity, Right.SEE, Credentials(self.grant))

    async def read(self, guards: Sequence[GuardedStore]) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(
                    self.random.choice((0.05, 0.5, 2)) * self.random.random()
                ):
                    await self.follow(self.random.choice(guards))
            if self.point is None:
                self.known.clear()

    async def follow(self, guard: GuardedStore) -> None:
        followed = Followed(None, self.parent, parse_filter(self.filter_), self.point, WINDOW)
        events = guard.follow_many(self.caller(), followed, self.grant)
        async with aclosing(events):
            async for event in events:
                if isinstance(event.news, Record):
                    before = self.known.get(event.news.id, event.news)
                    assert _version(before) <= _version(event.news), "a revision went back"
                    self.known[event.news.id] = event.news
                elif event.news is not None:
                    self.known.pop(event.news.id, None)
                self.point = event.point

    def knows(self, records: Sequence[Record]) -> bool:
        """Whether they know those of the records that they follow and may see, and no others."""
        identity, condition = self.caller().identity, parse_filter(self.filter_)
        expected = {
            each.id: _version(each)
            for each in records
            if self.parent in (None, each.parent)
            and identity.may(Right.SEE, each.parent, each.created_by)
            and (condition is None or satisfies(each, condition))
        }
        return {id_: _version(each) for id_, each in self.known.items()} == expected


def _version(record: Record) -> tuple[int, int]:
    return record.created_at, record.revision


def any_command(random: Random) -> Command:
    """Any one, of an operation by one of few keys, or of a new one."""
    parent, creator = random.choice(PARENTS), random.choice(("ann", "bob"))
    id_ = derive_id("ops", creator, parent, str(random.randrange(30)))
    start = Start(
        id_,
        random.choice((1, SECOND // 5, SECOND // 2, SECOND, DAY)),
        parent,
        method=random.choice("ab"),
        created_by=creator,
        request_hash=b"1",
    )
    return random.choice(
        (
            start,
            replace(start, id=new_id(), request_hash=None),
            Renew(id_),
            Complete(id_, b""),
            Cancel(id_, CANCELLED),
            Delete(id_),
        )
    )


async def write(stores: Sequence[OperationStore], random: Random) -> None:
    while True:
        with suppress(OpserviceError):
            await random.choice(stores).apply(any_command(random))
        await asyncio.sleep(0.005 * random.random())


async def all_of(store: OperationStore) -> list[Record]:
    records: list[Record] = []
    query = ListQuery(None, 1000)
    while True:
        page = await store.page(query)
        records += page.records
        if page.end is None:
            return records
        query = replace(query, after=page.end)


@pytest.mark.slow
async def test_whoever_breaks_off_again_and_again_knows_all_in_the_end(database_url: str) -> None:
    random = Random(7)
    tokens = {
        hash_token(grant): StaticToken("ann", (parse_grant(grant),), None) for grant in GRANTS
    }
    readers = [
        Reader(Random(random.random()), grant, parent, random.choice(FILTERS))
        for grant in GRANTS
        for parent in (None, *PARENTS)
    ]
    async with AsyncExitStack() as open_:
        stores = [await open_.enter_async_context(opened(database_url)) for _ in range(2)]
        guards = [GuardedStore(store, Authenticator(Policy(), tokens)) for store in stores]
        for _ in range(ROUNDS):
            with suppress(TimeoutError):
                async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as tasks:
                    for each in readers:
                        tasks.create_task(each.read(guards))
                    for _ in range(4):
                        tasks.create_task(write(stores, random))
            last = [asyncio.create_task(each.follow(random.choice(guards))) for each in readers]
            async with asyncio.timeout(PATIENCE):
                for each in readers:
                    while not each.knows(await all_of(stores[0])):
                        await asyncio.sleep(0.1)
                        for stream in last:
                            if stream.done():
                                stream.result()
            for stream in last:
                stream.cancel()
            await asyncio.wait(last)
