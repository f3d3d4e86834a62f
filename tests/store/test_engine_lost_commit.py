"""A connection that breaks at COMMIT: whether it happened is found out, and it happens once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from opservice.domain.errors import StoreUnavailable
from opservice.domain.operation import (
    DAY,
    SECOND,
    Cancel,
    CancelPolicy,
    Command,
    Complete,
    Delete,
    Fail,
    Failure,
    LapseLeases,
    Outcome,
    Progress,
    Record,
    Renew,
    Start,
    derive_id,
    new_id,
)
from opservice.store.engine import Database, open_database
from opservice.store.repository import Repository
from opservice.store.service import OperationStore
from opservice.store.sql import database_clock
from support.postgres import PostgresServer
from support.proxy import CommitLosingProxy, Loss
from support.replicas import apply, apply_one, find, sweep
from support.server import eventually

TOKEN = b"the hash of a token"
FAILED, CANCELLED = Failure(13, b"failed"), Failure(1, b"cancelled")
IN_AN_HOUR = Repository(database_clock() + 3600 * SECOND)

COMMANDS: dict[str, Callable[[str], Command]] = {
    "Complete": lambda id_: Complete(id_, b"answer", TOKEN),
    "Fail": lambda id_: Fail(id_, FAILED, TOKEN),
    "Cancel": lambda id_: Cancel(id_, CANCELLED),
}

LOSSES = pytest.mark.parametrize("loss", ["request", "answer"])


@pytest.fixture
def backend() -> str:
    return "postgresql"


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[CommitLosingProxy]:
    with CommitLosingProxy(postgres.port) as proxy:
        yield proxy


@pytest.fixture
def unlucky(
    database_url: str, postgres: PostgresServer, proxy: CommitLosingProxy
) -> Iterator[Database]:
    """The database, reached through the proxy."""
    database = open_database(database_url.replace(f":{postgres.port}", f":{proxy.port}"))
    apply(database)  # connects
    yield database
    database.close()


@LOSSES
@pytest.mark.parametrize("request_hash", [None, b"request"], ids=["random id", "derived id"])
@pytest.mark.parametrize("token", [None, TOKEN], ids=["no token", "token"])
def test_a_start_whose_commit_is_lost_starts_one_operation_that_its_caller_owns(
    unlucky: Database,
    database: Database,
    proxy: CommitLosingProxy,
    loss: Loss,
    request_hash: bytes | None,
    token: bytes | None,
) -> None:
    id_ = derive_id("ops", "caller", "", "key") if request_hash else new_id()
    proxy.lose_next(loss)
    outcome = apply_one(unlucky, Start(id_, DAY, lease_token_hash=token, request_hash=request_hash))
    assert proxy.lost == 1
    assert outcome.owned
    assert outcome.changed == (loss == "request")
    assert find(database, id_) == outcome.record


@LOSSES
@pytest.mark.parametrize("policy", [CancelPolicy.IMMEDIATE, CancelPolicy.COOPERATIVE])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_transition_whose_commit_is_lost_happens_once_and_succeeds(
    unlucky: Database,
    database: Database,
    proxy: CommitLosingProxy,
    loss: Loss,
    policy: CancelPolicy,
    command: str,
) -> None:
    start = Start(new_id(), DAY, lease_token_hash=TOKEN, cancel_policy=policy)
    before = apply_one(database, start).record
    proxy.lose_next(loss)
    outcome = apply_one(unlucky, COMMANDS[command](before.id))
    assert proxy.lost == 1
    assert outcome.record.revision == before.revision + 1
    assert outcome.changed == (loss == "request")
    assert find(database, before.id) == outcome.record


@LOSSES
def test_a_renewal_whose_commit_is_lost_succeeds(
    unlucky: Database, database: Database, proxy: CommitLosingProxy, loss: Loss
) -> None:
    start = Start(new_id(), DAY, lease=60 * SECOND, lease_token_hash=TOKEN)
    before = apply_one(database, start).record
    proxy.lose_next(loss)
    outcome = apply_one(unlucky, Renew(before.id, TOKEN, progress=Progress(1, 2)))
    assert proxy.lost == 1
    assert outcome.record.progress == Progress(1, 2)
    assert find(database, before.id) == outcome.record


@LOSSES
def test_a_batch_whose_commit_is_lost_is_applied_whole(
    unlucky: Database, database: Database, proxy: CommitLosingProxy, loss: Loss
) -> None:
    ids = [new_id() for _ in range(20)]
    proxy.lose_next(loss)
    outcomes = apply(unlucky, *(Start(id_, DAY) for id_ in ids))
    assert proxy.lost == 1
    found = database.read(lambda connection: Repository().find(connection, ids))
    assert [found[id_] for id_ in ids] == [getattr(outcome, "record", None) for outcome in outcomes]


@LOSSES
def test_a_sweep_whose_commit_is_lost_ends_each_operation_once(
    unlucky: Database, database: Database, proxy: CommitLosingProxy, loss: Loss
) -> None:
    before = apply_one(database, Start(new_id(), DAY, lease=SECOND)).record
    proxy.lose_next(loss)
    sweep(unlucky, LapseLeases(FAILED, 10), IN_AN_HOUR)
    assert proxy.lost == 1

    def ended() -> Record | None:
        """A sweep passes over what the lost transaction has locked, until PostgreSQL notices the loss."""
        found = find(database, before.id)
        if found is not None and found.done:
            return found
        sweep(unlucky, LapseLeases(FAILED, 10), IN_AN_HOUR)
        return None

    after = eventually(ended)
    assert after.revision == before.revision + 1


@LOSSES
async def test_a_delete_whose_commit_is_lost_succeeds(
    unlucky: Database, database: Database, proxy: CommitLosingProxy, loss: Loss
) -> None:
    id_ = new_id()
    apply(database, Start(id_, DAY))
    apply(database, Complete(id_, b"answer"))
    store = OperationStore(unlucky, Repository())
    proxy.lose_next(loss)
    outcome = await store.apply(Delete(id_))
    await store.close()
    assert proxy.lost == 1
    assert outcome.record.id == id_
    assert find(database, id_) is None


async def test_a_renewal_that_may_have_happened_is_not_refused_for_what_came_after_it(
    unlucky: Database, database: Database, proxy: CommitLosingProxy
) -> None:
    id_ = new_id()
    apply(database, Start(id_, DAY))
    store = OperationStore(unlucky, Repository())
    proxy.lose_next("answer")
    renewed, cancelled = await asyncio.gather(
        store.apply(Renew(id_)), store.apply(Cancel(id_, CANCELLED)), return_exceptions=True
    )
    await store.close()
    assert proxy.lost == 1
    assert isinstance(renewed, StoreUnavailable)
    assert isinstance(cancelled, Outcome)
    after = find(database, id_)
    assert after == cancelled.record
    assert after.revision == 3
