"""opservice_client.testing: what a test of a service sees of it, on either server."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo

from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    BatchWatchOperationRecordsRequest,
    WatchOperationRecordRequest,
)
from opservice_client import CancelPolicy, Failed, Producer, Progress, Work, aio, testing
from opservice_client.testing import OperationServer
from support.client import Client, open_channel, refused, unpacked
from support.server import PATIENCE, eventually

PATIENT = timedelta(seconds=PATIENCE)
MINUTE = timedelta(minutes=1)
LEASE = timedelta(minutes=10)


@pytest.fixture(params=["server", "memory"])
def server(request: pytest.FixtureRequest) -> Iterator[OperationServer]:
    with OperationServer(backend=request.param) as running:
        yield running


@pytest.fixture
def producer(server: OperationServer) -> Iterator[Producer]:
    with Producer(server.target) as made:
        yield made


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory that sockets can be in: that of tmp_path may be too long."""
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as made:
        yield Path(made)


def run(program: str, backend: str, directory: Path) -> None:
    """Runs it in a process of its own, which says nothing."""
    # With its own handlers of forks gRPC crashes some children as they are forked.
    variables = {"TMPDIR": str(directory), "GRPC_ENABLE_FORK_SUPPORT": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, backend],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")


def until_cancelled(work: Work) -> None:
    work.cancelled.wait(PATIENCE)
    work.raise_if_cancelled()


def reason(error: object) -> str:
    return unpacked(error.details[0], ErrorInfo).reason  # type: ignore[attr-defined] # any Status


def test_the_result_of_work_is_waited_for(server: OperationServer, producer: Producer) -> None:
    work = producer.start(description="Create")
    work.run(lambda _work: {"name": "made"})

    operation = server.wait(work.id, PATIENT)

    assert unpacked(operation.response, Struct)["name"] == "made"
    assert server.get(work.id) == operation


def test_a_failure_is_waited_for(server: OperationServer, producer: Producer) -> None:
    def fail(_work: Work) -> None:
        raise Failed(grpc.StatusCode.ALREADY_EXISTS, "taken")

    work = producer.start()
    work.run(fail)

    assert server.wait(work.id, PATIENT).error.message == "taken"


def test_waiting_for_what_goes_on_is_a_timeout_that_says_how_far_it_is(
    server: OperationServer, producer: Producer
) -> None:
    with producer.start(description="Scan", cancel_policy=CancelPolicy.COOPERATIVE) as work:
        work.report(Progress(done=1, total=3, unit="layers"))
        eventually(lambda: server.record(work.id).HasField("progress"))
        server.cancel(work.id)

        with pytest.raises(TimeoutError) as raised:
            server.wait(work.id, timedelta(0))

    assert str(raised.value) == (
        f"operation {work.id} (Scan) is not done after 0 s; its progress: 1 of 3 layers;"
        " it was cancelled, and its producer has not ended it yet"
    )


async def test_with_asyncio_the_work_goes_on_while_it_is_waited_for() -> None:
    for backend in ("server", "memory"):
        async with OperationServer(backend=backend) as server, aio.Producer(server.target) as made:

            async def scan(work: aio.Work) -> None:
                await asyncio.sleep(0)

            work = await made.start()
            work.run(scan)
            operation = await server.wait_aio(work.id, PATIENT)
            assert operation.HasField("response")

            waiting = await made.start()
            with pytest.raises(TimeoutError, match=r"is not done after 0\.01 s"):
                await server.wait_aio(waiting.id, timedelta(seconds=0.01))


def test_a_cancel_reaches_the_work(server: OperationServer, producer: Producer) -> None:
    work = producer.start(cancel_policy=CancelPolicy.COOPERATIVE)
    work.run(until_cancelled)

    operation = server.cancel(work.id)

    assert not operation.done
    assert server.wait(work.id, PATIENT).error.code == Code.CANCELLED


def test_the_records_show_what_was_started_newest_first(
    server: OperationServer, producer: Producer
) -> None:
    started = [producer.start(parent=parent).id for parent in ("a", "b", "a")]

    assert {each.operation.id for each in server.records()} == set(started)
    listed = [each.operation.id for each in server.records("a")]
    assert set(listed) == {started[0], started[2]}


def test_more_records_than_a_page_are_all_there(server: OperationServer) -> None:
    with open_channel(server.target) as channel:
        client = Client(channel)
        started = {client.started() for _ in range(101)}

    assert {each.operation.id for each in server.records()} == started


def test_a_lease_expires_when_the_clock_is_moved_past_it(
    server: OperationServer, producer: Producer
) -> None:
    work = producer.start(lease=LEASE)
    work.run(until_cancelled)

    server.advance(LEASE - MINUTE)
    assert not server.get(work.id).done

    server.advance(MINUTE)
    error = server.get(work.id).error
    assert (error.code, reason(error)) == (Code.ABORTED, "LEASE_EXPIRED")
    assert work.cancelled.wait(PATIENCE)


def test_a_timeout_is_reached_before_a_longer_lease_expires_and_after_a_shorter_one(
    server: OperationServer, producer: Producer
) -> None:
    longer = producer.start(lease=2 * LEASE, timeout=LEASE)
    shorter = producer.start(lease=LEASE, timeout=2 * LEASE)

    server.advance(3 * LEASE)

    error = server.get(longer.id).error
    assert (error.code, reason(error)) == (Code.DEADLINE_EXCEEDED, "OPERATION_TIMEOUT")
    assert server.get(shorter.id).error.code == Code.ABORTED


@pytest.mark.parametrize("backend", ["server", "memory"])
def test_a_cancel_that_its_producer_does_not_heed_is_overruled_after_the_grace(
    backend: str,
) -> None:
    grace = timedelta(minutes=5)
    with (
        OperationServer(backend=backend, cancel_grace=grace) as server,  # type: ignore[arg-type] # a literal
        Producer(server.target) as producer,
    ):
        work = producer.start(cancel_policy=CancelPolicy.COOPERATIVE, lease=LEASE)
        server.cancel(work.id)

        server.advance(grace - MINUTE)
        assert not server.get(work.id).done

        server.advance(MINUTE)
        operation = server.get(work.id)
        assert operation.done
        assert reason(operation.error) == "OPERATION_CANCELLED"


@pytest.mark.parametrize("key", ["", "key"])
def test_a_done_operation_is_gone_after_its_retention(server: OperationServer, key: str) -> None:
    with open_channel(server.target) as channel:
        client = Client(channel)
        id_ = client.started(idempotency_key=key, retention=timedelta(days=2))
        client.cancel(id_)
        server.advance(timedelta(days=1))
        assert server.get(id_).done

        server.advance(timedelta(days=1))

        with refused() as refusal:
            server.get(id_)
        assert refusal.code == grpc.StatusCode.NOT_FOUND
        assert not server.records()
        if key:
            assert not client.start(idempotency_key=key).operation.done


def test_time_that_passes_by_itself_counts_too(server: OperationServer) -> None:
    with Producer(server.target) as producer:
        work = producer.start(timeout=timedelta(milliseconds=1), lease=LEASE)

        assert server.wait(work.id, PATIENT).error.code == Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize("by", [timedelta(seconds=-1), timedelta(days=4000)])
def test_the_clock_moves_neither_back_nor_beyond_what_a_timestamp_holds(
    server: OperationServer, by: timedelta
) -> None:
    with pytest.raises(ValueError, match="cannot advance by"):
        server.advance(by)


def test_an_unknown_operation_is_an_error_of_grpc(server: OperationServer) -> None:
    for call in (server.get, server.record, server.cancel, server.wait):
        with refused() as refusal:
            call("nowhere")
        assert refusal.code == grpc.StatusCode.NOT_FOUND
        assert refusal.message == "Operation nowhere not found"


@pytest.mark.parametrize(
    ("method", "request_", "what"),
    [
        ("/google.longrunning.Operations/GetOperation", b"", "GetOperation"),
        ("/yandex.cloud.endpoint.ApiEndpointService/List", b"", "ApiEndpointService"),
        ("/grpc.health.v1.Health/Watch", b"", "Health"),
        ("/opservice.v1.OperationRecordService/List", b"\x22\x04done", "filters"),
    ],
)
def test_what_the_server_in_memory_does_not_have_is_refused_and_says_what_to_do(
    method: str, request_: bytes, what: str
) -> None:
    with OperationServer(backend="memory") as server, open_channel(server.target) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method, bytes, bytes)
        with refused() as refusal:
            call(request_)

    assert refusal.code == grpc.StatusCode.UNIMPLEMENTED
    assert what in refusal.message
    assert "install opservice" in refusal.message


@pytest.mark.parametrize("backend", ["server", "memory"])
def test_closing_ends_calls_in_progress_and_leaves_nothing_behind(
    backend: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    short_path: Path,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))
    before = set(threading.enumerate())
    server = OperationServer(backend=backend).start()  # type: ignore[arg-type] # a literal
    assert list(short_path.iterdir())
    with open_channel(server.target) as channel:
        client = Client(channel)
        watch = client.records.Watch(WatchOperationRecordRequest(operation_id=client.started()))
        many = client.records.BatchWatch(BatchWatchOperationRecordsRequest(parent="folders/a"))
        streams: list[Iterator[object]] = [watch, many]
        for stream in streams:
            next(stream)

        server.close()

        for stream in streams:
            with refused() as refusal:
                next(stream)
            assert refusal.code == grpc.StatusCode.UNAVAILABLE
            assert refusal.reason == "SERVER_STOPPING"
    assert not list(short_path.iterdir())
    left = {each.name for each in threading.enumerate() if each not in before}
    assert not {
        name for name in left if "poll_wrapper" not in name
    }  # that one is of all of grpc.aio
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_programs_random_numbers_are_left_to_it(
    server: OperationServer, producer: Producer
) -> None:
    before = random.getstate()
    work = producer.start(timeout=timedelta(milliseconds=1))
    work.run(until_cancelled)

    server.wait(work.id, PATIENT)  # for the next sweep, and a pause before it

    assert random.getstate() == before


def test_each_server_has_operations_of_its_own(server: OperationServer) -> None:
    with Producer(server.target) as producer:
        producer.start()
        with OperationServer(backend=server.backend) as other:
            assert not other.records()
            assert other.target != server.target


def test_by_default_the_installed_server_is_run() -> None:
    assert OperationServer().backend == "server"


def test_without_it_the_server_in_memory_is_run_and_the_real_one_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(testing, "_SERVER", "opservice_that_is_not_there.main.embedded")

    assert OperationServer().backend == "memory"
    with pytest.raises(RuntimeError, match="pip install opservice"):
        OperationServer(backend="server")


def test_a_package_of_the_same_name_is_not_taken_for_the_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "opservice_protos").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(testing, "_SERVER", "opservice_protos.main.embedded")

    assert OperationServer().backend == "memory"


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="'redis', must be"):
        OperationServer(backend="redis")  # type: ignore[arg-type] # that is the point


@pytest.mark.parametrize("grace", [timedelta(seconds=-1), timedelta.max])
def test_a_grace_that_cannot_be_is_refused(grace: timedelta) -> None:
    with pytest.raises(ValueError, match="cancel_grace is"):
        OperationServer(cancel_grace=grace)


def test_it_is_started_once_and_closed_as_often_as_one_likes() -> None:
    server = OperationServer(backend="memory").start()
    with pytest.raises(RuntimeError, match="started once"):
        server.start()
    server.close()
    server.close()

    with pytest.raises(RuntimeError, match="does not run"):
        server.get("id")
    with pytest.raises(RuntimeError, match="started once"):
        server.start()


@pytest.mark.parametrize("backend", ["server", "memory"])
def test_a_server_that_cannot_start_says_why_and_leaves_nothing(
    backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "socket").write_text("no socket")
    monkeypatch.setattr(testing, "_temporary_directory", lambda: taken)

    with pytest.raises(Exception, match=r"socket|bind|address"):
        OperationServer(backend=backend).start()  # type: ignore[arg-type] # a literal

    assert not taken.exists()
    assert "opservice-testing" not in {each.name for each in threading.enumerate()}


def test_a_directory_that_is_too_long_for_a_socket_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))

    with OperationServer(backend="memory") as server:
        assert server.records() == []
        assert server.target.startswith("unix:/tmp/")
    assert not list(long.iterdir())


FORKING = """
import os, sys
from opservice_client.testing import OperationServer

with OperationServer(backend=sys.argv[1]) as server:
    child = os.fork()
    if child == 0:
        try:
            server.records()
        except RuntimeError:
            server.close()
            sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert server.records() == []
"""


@pytest.mark.parametrize("backend", ["server", "memory"])
def test_a_forked_process_cannot_use_it_and_leaves_it_to_its_parent(
    backend: str, short_path: Path
) -> None:
    run(FORKING, backend, short_path)

    assert not list(short_path.iterdir())


FORGETFUL = """
import sys
from opservice_client import Producer
from opservice_client.testing import OperationServer

server = OperationServer(backend=sys.argv[1]).start()
producer = Producer(server.target)
work = producer.start()
work.run(lambda work: "done")
OperationServer(backend=sys.argv[1]).start()  # to which nobody has a reference
"""


@pytest.mark.parametrize("backend", ["server", "memory"])
def test_what_nobody_closes_is_closed_when_the_interpreter_ends(
    backend: str, short_path: Path
) -> None:
    run(FORGETFUL, backend, short_path)

    assert not list(short_path.iterdir())


def test_it_does_not_import_the_server_nor_pytest() -> None:
    program = "import sys, opservice_client.testing; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", program], text=True).split()

    assert "opservice_client.testing" in loaded
    assert not {"opservice", "sqlalchemy", "structlog", "pytest"} & set(loaded)
