"""Work that is to stop: cancelled, timed out, or because its service is."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo

from opservice._proto.opservice.demo.v1.container_registry_pb2 import ScanResult
from opservice_client import CancelPolicy
from support.client import unpacked
from support.producers import Kind, Steps, WorkLike
from support.server import ServerProcess, eventually, serving

from .conftest import Connect, ended

COOPERATIVE = CancelPolicy.COOPERATIVE
RESULT = ScanResult(id="s1")
LONG = timedelta(seconds=60)


def until_cancelled_then_raises(work: WorkLike) -> Steps:
    while True:
        work.raise_if_cancelled()
        yield


def until_cancelled_then_returns(work: WorkLike) -> Steps:
    while not work.cancelled.is_set():
        yield
    return RESULT


def test_work_that_lets_the_cancel_pass_ends_as_cancelled(
    producer: Kind, server: ServerProcess
) -> None:
    work = producer.start(cancel_policy=COOPERATIVE)
    producer.run(work, until_cancelled_then_raises)
    error = server.client.cancel(work.id).error

    assert error.code == Code.CANCELLED
    assert unpacked(error.details[0], ErrorInfo).reason == "OPERATION_CANCELLED"
    assert ended(server, work.id).error == error


def test_a_block_that_lets_the_cancel_pass_ends_as_cancelled(
    producer: Kind, server: ServerProcess
) -> None:
    work = producer.start(cancel_policy=COOPERATIVE)
    error = server.client.cancel(work.id).error
    producer.block(work, until_cancelled_then_raises)

    assert error.code == Code.CANCELLED
    assert server.client.get(work.id).error == error


def test_work_ends_as_cancelled_where_the_server_hides_that_until_then(
    connect: Connect, tmp_path: Path
) -> None:
    database = f"sqlite:///{tmp_path}/operations.db"
    with serving(tmp_path, database, hide_error_until_done=True) as server:
        producer = connect(server.address)
        work = producer.start(cancel_policy=COOPERATIVE)
        producer.run(work, until_cancelled_then_raises)
        server.client.cancel(work.id)

        error = ended(server, work.id).error
        producer.close()

    assert error.code == Code.CANCELLED
    assert unpacked(error.details[0], ErrorInfo).reason == "OPERATION_CANCELLED"


def test_a_result_given_after_a_cooperative_cancel_still_wins(
    producer: Kind, server: ServerProcess
) -> None:
    work = producer.start(cancel_policy=COOPERATIVE)
    producer.run(work, until_cancelled_then_returns)
    assert not server.client.cancel(work.id).done

    assert unpacked(ended(server, work.id).response, ScanResult) == RESULT


@pytest.mark.parametrize(
    ("options", "code"),
    [({}, Code.CANCELLED), ({"timeout": timedelta(milliseconds=100)}, Code.DEADLINE_EXCEEDED)],
    ids=["cancel", "timeout"],
)
def test_work_is_told_when_its_operation_ends_without_it(
    producer: Kind, server: ServerProcess, options: dict[str, timedelta], code: int
) -> None:
    work = producer.start(**options)
    producer.run(work, until_cancelled_then_returns)
    if not options:
        server.client.cancel(work.id)

    assert eventually(work.cancelled.is_set)
    eventually(lambda: work.operation.done)
    assert work.operation == server.client.get(work.id)
    assert work.operation.error.code == code


def test_work_is_told_at_once_however_much_other_work_there_is(
    producer: Kind, server: ServerProcess
) -> None:
    """A server lets 100 calls be in progress on a connection; renewals tell as well, every 30 s."""
    works = [producer.start(lease=timedelta(hours=1)) for _ in range(105)]
    for work in works:
        producer.run(work, until_cancelled_then_returns)
    server.client.cancel(works[-1].id)

    assert eventually(works[-1].cancelled.is_set, seconds=20)


def test_work_notices_nothing_of_the_cancel_of_another(
    producer: Kind, server: ServerProcess
) -> None:
    work, other = producer.start(), producer.start()
    producer.run(work, until_cancelled_then_returns)
    producer.run(other, until_cancelled_then_returns)
    server.client.cancel(other.id)

    eventually(other.cancelled.is_set)
    assert not work.cancelled.is_set()


def test_closing_fails_what_is_left_with_aborted(producer: Kind, server: ServerProcess) -> None:
    work = producer.start()
    producer.run(work, until_cancelled_then_raises)
    producer.close()

    assert server.client.get(work.id).error.code == Code.ABORTED


def test_closing_waits_for_work_that_ends_within_the_grace(
    producer: Kind, server: ServerProcess
) -> None:
    def body(work: WorkLike) -> Steps:
        # Not before closing has begun: by then it waits for us, or has not waited at all.
        while not closing:
            yield
        for _ in range(10):
            yield
        return RESULT

    closing: list[bool] = []
    work = producer.start()
    producer.run(work, body)
    closing.append(True)
    producer.close(LONG)

    assert server.client.get(work.id).HasField("response")


def test_closing_twice_does_no_harm(producer: Kind) -> None:
    producer.close()
    producer.close()
