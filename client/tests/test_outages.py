"""What becomes of work when the server, the connection or the producer is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from grpc import StatusCode

from opservice._proto.opservice.demo.v1.container_registry_pb2 import ScanResult
from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    GetOperationRecordRequest,
)
from opservice_client import CancelPolicy, Failed, Progress
from support.client import refused, unpacked
from support.fixtures import execute
from support.producers import Body, Kind, Steps, WorkLike, raising, returning
from support.server import ServerProcess, eventually, serving

from .conftest import SETTINGS, Connect, ended
from .cutting import CuttingProxy

pytestmark = pytest.mark.slow

RESULT = ScanResult(id="s1")
FAILED = Failed(StatusCode.ALREADY_EXISTS, "it is taken")
LONG = timedelta(seconds=60)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that the test may kill."""
    with serving(tmp_path, f"sqlite:///{tmp_path}/operations.db", **SETTINGS) as running:
        yield running


def restart(server: ServerProcess) -> None:
    server.kill()
    server.start()


def test_work_ends_with_its_true_result_though_the_server_was_killed_meanwhile(
    connect: Connect, own_server: ServerProcess
) -> None:
    def body(work: WorkLike) -> Steps:
        while not restarted:
            yield
        work.report(Progress(done=7, total=10))
        while server.client.records.Get(record).progress.done != 7:
            yield
        return RESULT

    restarted: list[bool] = []
    server, producer = own_server, connect(own_server.address)
    work = producer.start()
    record = GetOperationRecordRequest(operation_id=work.id)
    producer.run(work, body)
    restart(server)
    restarted.append(True)

    assert unpacked(ended(server, work.id).response, ScanResult) == RESULT


def test_a_result_waits_for_a_server_that_is_away(
    connect: Connect, own_server: ServerProcess
) -> None:
    def body(work: WorkLike) -> Steps:
        while not killed:
            yield
        finished.append(True)
        return RESULT

    killed: list[bool] = []
    finished: list[bool] = []
    producer = connect(own_server.address)
    work = producer.start()
    producer.run(work, body)
    own_server.kill()
    killed.append(True)
    eventually(lambda: finished)
    own_server.start()

    assert unpacked(ended(own_server, work.id).response, ScanResult) == RESULT


@pytest.mark.parametrize("body", [returning(RESULT), raising(FAILED)], ids=["Complete", "Fail"])
def test_a_result_is_sent_again_after_an_internal_error(
    connect: Connect, own_server: ServerProcess, body: Body
) -> None:
    producer = connect(own_server.address)
    work = producer.start()
    execute(own_server.database, "ALTER TABLE operations RENAME TO taken_away")
    producer.run(work, body)
    eventually(
        lambda: (
            calls_logged(own_server, "Complete", code="INTERNAL")
            or calls_logged(own_server, "Fail", code="INTERNAL")
        )
    )
    execute(own_server.database, "ALTER TABLE taken_away RENAME TO operations")

    operation = ended(own_server, work.id)
    if operation.HasField("error"):
        assert operation.error == FAILED.status
    else:
        assert unpacked(operation.response, ScanResult) == RESULT


def test_a_cancel_is_noticed_after_a_restart(connect: Connect, own_server: ServerProcess) -> None:
    def body(work: WorkLike) -> Steps:
        while True:
            work.raise_if_cancelled()
            yield

    producer = connect(own_server.address)
    work = producer.start(cancel_policy=CancelPolicy.COOPERATIVE)
    producer.run(work, body)
    restart(own_server)
    own_server.client.cancel(work.id)

    assert ended(own_server, work.id).error.code == Code.CANCELLED


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[CuttingProxy]:
    with CuttingProxy(server.address) as proxy:
        yield proxy


def calls_logged(server: ServerProcess, method: str, **wanted: Any) -> list[dict[str, Any]]:
    return server.log(method=f"/opservice.v1.ProducerService/{method}", **wanted)


def test_a_result_whose_answer_is_lost_is_sent_again_and_counts_once(
    connect: Connect, server: ServerProcess, proxy: CuttingProxy
) -> None:
    producer = connect(proxy.address)
    work = producer.start()
    proxy.lose_answer_when(
        lambda: calls_logged(server, "Complete", operation_id=work.id, code="OK") != []
    )
    producer.run(work, returning(RESULT))
    producer.close(LONG)

    assert proxy.lost == 1
    assert unpacked(work.operation.response, ScanResult) == RESULT
    assert work.operation == server.client.get(work.id)
    completes = calls_logged(server, "Complete", operation_id=work.id)
    assert [call["code"] for call in completes] == ["OK", "OK"]


def test_a_start_whose_answer_is_lost_is_sent_again_and_makes_one_operation(
    connect: Connect, server: ServerProcess, proxy: CuttingProxy
) -> None:
    producer = connect(proxy.address)
    producer.start()  # so that it is connected
    before = len(calls_logged(server, "Start", code="OK"))
    proxy.lose_answer_when(lambda: len(calls_logged(server, "Start", code="OK")) > before)
    work = producer.start()

    assert proxy.lost == 1
    assert work.owned
    assert len(calls_logged(server, "Start", code="OK")) == before + 2
    assert work.operation == server.client.get(work.id)


DOOMED = """
import sys, time
from datetime import timedelta
from opservice_client import Producer

producer = Producer(sys.argv[1])
work = producer.start(lease=timedelta(seconds=1))
with work:
    print(work.id, work._work._token, flush=True)
    time.sleep(3600)
"""


@pytest.fixture(scope="module")
def orphan(server: ServerProcess) -> tuple[str, str]:
    """The id and the token of an operation whose producer was killed in mid-work."""
    process = subprocess.Popen(
        [sys.executable, "-c", DOOMED, server.address], stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            id_, token = process.stdout.readline().split()
            # Renewed at least once: it is the killing that ends it.
            eventually(lambda: calls_logged(server, "Renew", operation_id=id_))
            assert not server.client.get(id_).done
        finally:
            process.send_signal(signal.SIGKILL)
    return id_, token


def test_the_operation_of_a_producer_that_was_killed_is_aborted(
    server: ServerProcess, orphan: tuple[str, str]
) -> None:
    error = ended(server, orphan[0]).error

    assert error.code == Code.ABORTED
    assert unpacked(error.details[0], ErrorInfo).reason == "LEASE_EXPIRED"


def test_a_late_result_of_a_producer_that_was_killed_is_refused(
    server: ServerProcess, orphan: tuple[str, str]
) -> None:
    id_, token = orphan
    aborted = ended(server, id_)

    with refused() as refusal:
        server.client.complete(id_, lease_token=token)

    assert refusal.code == StatusCode.FAILED_PRECONDITION
    assert refusal.reason == "OPERATION_DONE"
    assert server.client.get(id_) == aborted


def test_closing_gives_up_on_a_server_that_stays_away(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opservice_client.work._CLEANUP_SECONDS", 0.2)
    monkeypatch.setattr("opservice_client.work._FAREWELL_SECONDS", 0.2)
    with serving(tmp_path, f"sqlite:///{tmp_path}/operations.db") as server:
        producer: Kind = connect(server.address)
        work = producer.start()
        server.kill()
        producer.run(work, returning(RESULT))
        producer.close()

        assert not server.start().client.get(work.id).done
