"""What was acknowledged is there after kill -9, of the server and of its database."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode

from opservice._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from opservice._proto.yandex.cloud.operation.operation_service_pb2_grpc import OperationServiceStub
from support.client import Client, refused
from support.load import Load
from support.postgres import PostgresServer
from support.server import ServerProcess, eventually, serving

ENOUGH = 200


def loaded(server: ServerProcess) -> Load:
    """A load that is under way."""
    load = Load(lambda: Client(server.channel()))
    load.start()
    eventually(lambda: len(load.acknowledged) > ENOUGH)
    return load


def answers(client: Client) -> bool:
    try:
        client.start(description="after the crash")
    except grpc.RpcError:
        return False
    return True


def test_no_acknowledged_write_is_lost_when_the_server_is_killed(
    tmp_path: Path, database_url: str
) -> None:
    with serving(tmp_path, database_url) as server:
        load = loaded(server)
        server.kill()
        load.join()
        server.start()
        eventually(lambda: answers(server.client))

        assert load.count_lost(server.client) == 0


@pytest.fixture
def fragile_postgres() -> Iterator[PostgresServer]:
    """One that no other test uses."""
    server = PostgresServer()
    yield server
    server.remove()


def test_a_crash_of_postgresql_is_an_outage_and_no_loss(
    tmp_path: Path, fragile_postgres: PostgresServer
) -> None:
    with serving(tmp_path, fragile_postgres.create_database()) as server:
        load = loaded(server)
        pid = server.pid
        fragile_postgres.kill()
        load.join()

        assert {refusal.code for refusal in load.refusals} == {StatusCode.UNAVAILABLE}
        assert {refusal.reason for refusal in load.refusals} == {"STORE_UNAVAILABLE"}
        for call in (server.client.get, server.client.cancel, server.client.complete):
            with refused() as refusal:
                call(next(iter(load.acknowledged)))
            assert refusal.code == StatusCode.UNAVAILABLE
            assert refusal.reason == "STORE_UNAVAILABLE"
            assert refusal.retry_seconds > 0

        fragile_postgres.start()
        eventually(lambda: answers(server.client))

        assert server.pid == pid
        assert load.count_lost(server.client) == 0


@pytest.mark.slow
async def test_ten_thousand_gets_in_one_burst_are_all_answered(server: ServerProcess) -> None:
    id_ = server.client.started(description="popular")
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(server.address, options) as channel:
        stub = OperationServiceStub(channel)
        request = GetOperationRequest(operation_id=id_)
        calls = [stub.Get(request, timeout=60) for _ in range(10_000)]
        answers = await asyncio.gather(*calls, return_exceptions=True)

    failed = [answer for answer in answers if isinstance(answer, BaseException)]
    assert failed == []
    assert {answer.id for answer in answers if not isinstance(answer, BaseException)} == {id_}
