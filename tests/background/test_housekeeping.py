"""Housekeeping by several servers at once, and after their database was away."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code
from grpc import RpcError, StatusCode

from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    GetOperationRecordRequest,
)
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice.background.housekeeping import keep_checkpointing
from opservice.store.engine import open_database
from opservice.store.repository import Repository
from opservice.store.service import OperationStore
from support.client import TOKEN, Client, refusal_from
from support.fixtures import empty_database, execute
from support.postgres import PostgresServer
from support.server import ServerProcess, eventually, serving

QUICK = {"housekeeping_interval": "10ms", "restart_grace": "0s", "resume_window": "0s"}
SHORT = Duration(nanos=200_000_000)
SECOND = Duration(seconds=1)


def record(client: Client, id_: str) -> OperationRecord:
    return client.records.Get(GetOperationRecordRequest(operation_id=id_))


def is_done(client: Client, id_: str) -> bool:
    return client.get(id_).done


def is_gone(client: Client, id_: str) -> bool:
    try:
        client.get(id_)
    except RpcError as error:
        return refusal_from(error).code == StatusCode.NOT_FOUND
    return False


def swept(server: ServerProcess, sweep: str) -> int:
    """How many operations the server says that this sweep changed."""
    lines = server.log(event="swept", sweep=sweep, logger="opservice.housekeeping")
    return sum(line["count"] for line in lines)


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]
)
def replicas(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """Two servers on one database."""
    directory = tmp_path_factory.mktemp("replicas")
    database = empty_database(request, directory)
    with serving(directory, database, **QUICK) as one, serving(directory, database, **QUICK) as two:
        yield one, two


Replicas = tuple[ServerProcess, ServerProcess]


def test_two_servers_that_sweep_one_database_change_each_operation_once(
    replicas: Replicas,
) -> None:
    one, two = replicas
    ids = [
        replicas[number % 2].client.started(timeout=SHORT, lease=SECOND, lease_token=TOKEN)
        for number in range(100)
    ]
    eventually(lambda: all(is_done(two.client, id_) for id_ in ids))

    records = [record(one.client, id_) for id_ in ids]
    assert {each.operation.error.code for each in records} == {Code.DEADLINE_EXCEEDED}
    assert {each.revision for each in records} == {2}
    eventually(lambda: sum(swept(server, "ReachTimeouts") for server in replicas) >= 100)
    assert sum(swept(server, "ReachTimeouts") for server in replicas) == 100
    assert not one.log(event="sweep failed") + two.log(event="sweep failed")


def test_two_servers_delete_each_expired_operation_once(replicas: Replicas) -> None:
    one, two = replicas
    ids = [one.client.complete(one.client.started(retention=SHORT)).id for _ in range(100)]
    kept = one.client.complete(one.client.started()).id

    def deleted() -> int:
        return swept(one, "DeleteExpired") + swept(two, "DeleteExpired")

    eventually(lambda: deleted() >= 100)
    assert deleted() == 100
    assert all(is_gone(two.client, id_) for id_ in ids)
    assert two.client.get(kept).done


@contextmanager
def away(postgres: PostgresServer, database_url: str) -> Iterator[None]:
    """Nobody can reach the database within the block."""
    name = database_url.rpartition("/")[2]
    postgres.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    try:
        postgres.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        yield
    finally:
        postgres.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


def test_housekeeping_goes_on_after_the_database_was_away(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    database_url = postgres.create_database()
    with serving(tmp_path, database_url, **QUICK) as server:
        id_ = server.client.started(timeout=SHORT)
        with away(postgres, database_url):
            failed = eventually(lambda: server.log(event="sweep failed"))

        assert failed[0]["level"] == "warning"
        assert eventually(lambda: ended(server.client, id_)).error.code == Code.DEADLINE_EXCEEDED


def ended(client: Client, id_: str) -> Operation | None:
    """The operation once it is done; what is not reached is asked again."""
    try:
        operation = client.get(id_)
    except RpcError:
        return None
    return operation if operation.done else None


def test_housekeeping_goes_on_after_an_error_that_nobody_expected(
    tmp_path: Path, sqlite_url: str
) -> None:
    with serving(tmp_path, sqlite_url, **QUICK) as server:
        id_ = server.client.started(timeout=SHORT)
        execute(sqlite_url, "ALTER TABLE operations RENAME TO taken_away")
        eventually(lambda: server.log(event="sweep failed"))
        execute(sqlite_url, "ALTER TABLE taken_away RENAME TO operations")

        eventually(lambda: is_done(server.client, id_))


def test_a_lease_may_be_renewed_late_when_there_was_no_server_to_renew_it(
    tmp_path: Path, sqlite_url: str
) -> None:
    with serving(tmp_path, sqlite_url, **{**QUICK, "restart_grace": "1h"}) as server:
        server.client.complete(server.client.started(retention=SECOND))
        timed = server.client.started(timeout=SECOND)
        held = server.client.started(lease=SECOND, lease_token=TOKEN)
        lapses = record(server.client, held).lease_expires_at.ToMicroseconds() / 1e6
        server.kill()
        time.sleep(max(0.0, lapses - time.time()))
        server.start()
        # Once the expired operation is deleted, the lease would have lapsed too.
        eventually(lambda: swept(server, "DeleteExpired"))
        assert not is_done(server.client, timed)

        renewed = server.client.renew(held, lease_token=TOKEN)

        assert not renewed.operation.done
        assert renewed.lease_expires_at.ToMicroseconds() / 1e6 > lapses


def test_a_lease_that_is_not_renewed_lapses_once_the_server_has_been_there_for_long(
    tmp_path: Path, sqlite_url: str
) -> None:
    with serving(tmp_path, sqlite_url, **{**QUICK, "restart_grace": "1500ms"}) as server:
        id_ = server.client.started(lease=SECOND, lease_token=TOKEN)
        eventually(lambda: is_done(server.client, id_))

        operation = server.client.get(id_)
        assert operation.error.code == Code.ABORTED


async def test_checkpoints_go_on_whatever_one_of_them_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = OperationStore(open_database(f"sqlite:///{tmp_path}/operations.db"), Repository())
    tries, again = 0, asyncio.Event()

    async def fail() -> None:
        nonlocal tries
        tries += 1
        if tries == 2:
            again.set()
        raise RuntimeError

    monkeypatch.setattr(store, "checkpoint", fail)
    keeping = asyncio.create_task(keep_checkpointing(store, 0))
    await asyncio.wait_for(again.wait(), 30)
    keeping.cancel()
    await store.close()
