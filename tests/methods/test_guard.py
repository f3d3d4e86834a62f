"""The store as one caller may use it, asked without a server around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from opservice.auth.authenticator import Authenticator, Caller
from opservice.auth.policy import Policy
from opservice.domain.errors import (
    OperationNotFound,
    PermissionDenied,
    StoreError,
    TooManyLists,
    Unauthenticated,
)
from opservice.domain.filters import ListQuery
from opservice.domain.identity import ANYBODY, NOBODY, Identity, Right, parse_grant
from opservice.domain.operation import (
    DAY,
    Cancel,
    Complete,
    Delete,
    Origin,
    Record,
    Start,
    derive_id,
    new_id,
)
from opservice.methods.guard import MAX_LISTS_PER_CALLER, GuardedStore
from opservice.store.engine import open_database
from opservice.store.repository import Repository
from opservice.store.service import OperationStore
from store.conftest import CANCELLED
from support.fixtures import without_column

MINE, THEIRS = "folders/mine", "folders/theirs"
KEYED = derive_id("ops", "caller", MINE, "key")


class Interrupted(OperationStore):
    """In which others do something after it was read whose an operation is."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def origin(self, operation_id: str, *, remembered: bool = True) -> Record | Origin:
        origin = await super().origin(operation_id, remembered=remembered)
        if self.meanwhile is not None:
            await self.meanwhile()
        return origin


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Interrupted]:
    opened = Interrupted(open_database(database_url), Repository())
    yield opened
    await opened.close()


@pytest.fixture
def guarded(store: Interrupted) -> GuardedStore:
    return GuardedStore(store, Authenticator(Policy(), {}))


def ann(right: Right, *grants: str) -> Caller:
    """Who makes a call that requires this right, and has these grants."""
    return Caller(Identity("ann", tuple(map(parse_grant, grants))), right)


def anybody(right: Right = Right.SEE) -> Caller:
    """Who makes a call of a server without authentication."""
    return Caller(ANYBODY, right)


async def started(store: OperationStore, parent: str, retention: int = DAY) -> str:
    return (await store.apply(Start(new_id(), retention, parent=parent))).record.id


async def test_who_may_see_an_operation_gets_it(store: Interrupted, guarded: GuardedStore) -> None:
    id_ = await started(store, MINE)
    caller = ann(Right.SEE, f"viewer:{MINE}")

    assert (await guarded.get(caller, id_)).id == id_


async def test_an_id_that_came_again_as_an_operation_that_may_not_be_seen_is_not_found(
    store: Interrupted, guarded: GuardedStore
) -> None:
    def keyed(parent: str) -> Start:
        return Start(KEYED, DAY, parent=parent, request_hash=b"request")

    async def comes_again() -> None:
        await store.apply(Complete(KEYED, b"response"))
        await store.apply(Delete(KEYED))
        await store.apply(keyed(THEIRS))

    await store.apply(keyed(MINE))
    caller = ann(Right.SEE, f"viewer:{MINE}")
    store.meanwhile = comes_again

    with pytest.raises(OperationNotFound):
        await guarded.get(caller, KEYED)


async def test_of_what_is_hidden_nothing_is_answered_from_memory(
    store: Interrupted, guarded: GuardedStore, database_url: str
) -> None:
    """That would take less time than an answer for an operation that does not exist."""
    id_ = await started(store, THEIRS)
    await store.apply(Complete(id_, b"response"))
    await store.read_clock()
    await store.get(id_)
    caller = ann(Right.SEE, f"viewer:{MINE}")

    with without_column(database_url, "parent"):
        assert (await store.get(id_)).id == id_, "it is in memory"
        for each in (new_id(), id_):
            with pytest.raises(StoreError):
                await guarded.get(caller, each)


async def test_what_may_be_seen_and_not_cancelled_is_denied(
    store: Interrupted, guarded: GuardedStore
) -> None:
    id_ = await started(store, MINE)
    caller = ann(Right.CANCEL, f"viewer:{MINE}", f"editor:{THEIRS}")

    with pytest.raises(PermissionDenied):
        await guarded.apply(caller, Cancel(id_, CANCELLED))


async def test_what_has_expired_is_not_found_by_whoever_might_only_have_seen_it(
    store: Interrupted, guarded: GuardedStore
) -> None:
    id_ = await started(store, MINE, retention=1)
    await store.apply(Complete(id_, b"response"))
    caller = ann(Right.CANCEL, f"viewer:{MINE}", f"editor:{THEIRS}")

    with pytest.raises(OperationNotFound):
        await guarded.apply(caller, Cancel(id_, CANCELLED))


async def test_lists_of_one_address_keep_no_other_from_its_own(store: Interrupted) -> None:
    guarded = GuardedStore(store, None)
    query = ListQuery(MINE, 10)
    ours = [asyncio.create_task(guarded.page(anybody(), query, "ours")) for _ in range(60)]
    theirs = asyncio.create_task(guarded.page(anybody(), query, "theirs"))

    ended = await asyncio.gather(*ours, return_exceptions=True)

    assert sum(isinstance(each, TooManyLists) for each in ended) == 60 - MAX_LISTS_PER_CALLER
    assert (await theirs).records == ()


async def test_who_sees_everything_asks_once(store: Interrupted, guarded: GuardedStore) -> None:
    id_ = await started(store, THEIRS)
    caller = ann(Right.SEE, "viewer:*")

    async def fails() -> None:
        raise AssertionError

    store.meanwhile = fails

    assert (await guarded.get(caller, id_)).id == id_


USES: list[Callable[..., Awaitable[object]]] = [
    lambda guarded, *caller, id_: guarded.get(*caller, id_),
    lambda guarded, *caller, id_: guarded.page(*caller, ListQuery(None, 10), "somebody"),
    lambda guarded, *caller, id_: guarded.apply(*caller, Start(new_id(), DAY)),
    lambda guarded, *caller, id_: guarded.apply(*caller, Cancel(id_, CANCELLED)),
    lambda guarded, *caller, id_: anext(guarded.follow(*caller, id_)),
    lambda guarded, *caller, id_: guarded.wait(*caller, id_, 1),
]
each_use = pytest.mark.parametrize(
    "use", USES, ids=["get", "page", "start", "cancel", "follow", "wait"]
)


@each_use
@pytest.mark.parametrize("identity", [NOBODY, ANYBODY], ids=["nobody", "anybody"])
async def test_with_authentication_nothing_is_done_for_who_was_not_authenticated(
    store: Interrupted,
    guarded: GuardedStore,
    use: Callable[..., Awaitable[object]],
    identity: Identity,
) -> None:
    """Whatever front forgot it, and whatever was granted to who was not asked."""
    id_ = await started(store, MINE)

    with pytest.raises(Unauthenticated):
        await use(guarded, Caller(identity, Right.CANCEL), id_=id_)
    assert (await store.get(id_)).revision == 1


@each_use
async def test_nothing_can_be_done_without_a_caller(
    store: Interrupted, guarded: GuardedStore, use: Callable[..., Awaitable[object]]
) -> None:
    with pytest.raises(TypeError):
        await use(guarded, id_=await started(store, MINE))


async def test_without_authentication_everything_is_done_for_anybody(store: Interrupted) -> None:
    guarded = GuardedStore(store, None)
    start = Start(new_id(), DAY, parent=MINE)
    id_ = (await guarded.apply(anybody(Right.PRODUCE), start)).record.id

    assert (await guarded.get(anybody(), id_)).id == id_


async def test_without_authentication_a_caller_without_grants_sees_nothing(
    store: Interrupted,
) -> None:
    guarded = GuardedStore(store, None)
    id_ = await started(store, MINE)

    with pytest.raises(OperationNotFound):
        await guarded.get(Caller(NOBODY, Right.SEE), id_)
