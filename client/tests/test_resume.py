"""Work that one process starts and another does; and operations that a service reads and cancels."""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest
from google.rpc.code_pb2 import Code

from opservice_client import CallFailed, CancelPolicy
from opservice_client.aio import Producer
from support.producers import Body, Kind, Steps, WorkLike, returning
from support.server import ServerProcess

from .conftest import Connect, ended


@pytest.fixture
def web(connect: Connect, server: ServerProcess) -> Kind:
    """Where the operation is started, which `producer` resumes."""
    return connect(server.address)


def completing(response: str) -> Body:
    def body(work: WorkLike) -> Steps:
        yield
        work.raise_if_cancelled()
        work.complete(response)

    return body


def test_another_producer_does_the_work_in_a_block(
    web: Kind, producer: Kind, server: ServerProcess
) -> None:
    started = web.start(description="of a queue")
    work = producer.resume(started.id, started.lease_token)
    assert work.owned
    assert work.operation.description == "of a queue"
    producer.block(work, completing("done"))

    assert ended(server, started.id).HasField("response")


def test_another_producer_runs_the_work_and_is_told_of_a_cancel(
    web: Kind, producer: Kind, server: ServerProcess
) -> None:
    def wait(work: WorkLike) -> Steps:
        while not work.cancelled.is_set():
            yield
        work.raise_if_cancelled()

    started = web.start(cancel_policy=CancelPolicy.COOPERATIVE)
    producer.run(producer.resume(started.id, started.lease_token), wait)
    server.client.cancel(started.id)

    assert ended(server, started.id).error.code == Code.CANCELLED


def test_who_comes_after_a_worker_that_died_goes_on(
    web: Kind, producer: Kind, server: ServerProcess
) -> None:
    started = web.start()
    for _ in range(2):  # the first of these dies
        work = producer.resume(started.id, started.lease_token)
    producer.run(work, returning("done"))

    assert ended(server, started.id).HasField("response")


@pytest.mark.parametrize("policy", [CancelPolicy.IMMEDIATE, CancelPolicy.COOPERATIVE])
def test_work_that_was_cancelled_before_it_is_resumed_is_not_done(
    web: Kind, producer: Kind, server: ServerProcess, policy: CancelPolicy.ValueType
) -> None:
    started = web.start(cancel_policy=policy)
    server.client.cancel(started.id)
    work = producer.resume(started.id, started.lease_token)
    assert work.cancelled.is_set()
    producer.block(work, completing("done"))

    assert ended(server, started.id).error.code == Code.CANCELLED


def test_what_is_done_is_resumed_as_it_ended(web: Kind, producer: Kind) -> None:
    started = web.start()
    web.block(started, completing("the first"))
    work = producer.resume(started.id, started.lease_token)
    producer.block(work, completing("the second"))

    assert work.operation.done
    assert producer.get(started.id).response == started.operation.response


def test_only_who_has_the_token_resumes(web: Kind, producer: Kind) -> None:
    started = web.start()

    with pytest.raises(CallFailed, match="PERMISSION_DENIED") as refused:
        producer.resume(started.id, "another-token-of-many-characters")
    assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED


async def test_the_lease_of_what_is_resumed_is_renewed_in_its_own_length(
    server: ServerProcess,
) -> None:
    async with Producer(server.address) as producer:
        started = await producer.start(lease=timedelta(seconds=90))
        work = await producer.resume(started.id, started.lease_token)

        assert work._lease.total_seconds() == pytest.approx(90, abs=0.1)


def test_a_service_reads_and_cancels_what_its_clients_ask_for(producer: Kind) -> None:
    work = producer.start(description="Scan", cancel_policy=CancelPolicy.IMMEDIATE)

    assert producer.get(work.id).description == "Scan"
    assert producer.cancel(work.id).error.code == Code.CANCELLED
    assert producer.get(work.id).done


def test_a_refusal_says_what_the_server_says(producer: Kind) -> None:
    work = producer.start(cancel_policy=CancelPolicy.UNSUPPORTED)

    with pytest.raises(CallFailed, match="NOT_FOUND") as unknown:
        producer.get("opsnosuchoperation00")
    with pytest.raises(CallFailed) as refused:
        producer.cancel(work.id)
    assert unknown.value.details == "Operation opsnosuchoperation00 not found"
    assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION


def test_a_server_that_is_not_reached_is_said_after_a_while(
    connect: Connect, unused_port: int
) -> None:
    producer = connect(f"127.0.0.1:{unused_port}", start_timeout=timedelta(seconds=0.5))

    with pytest.raises(CallFailed, match=r"UNAVAILABLE: .*\(tried \d times"):
        producer.get("x")
