"""The command line and the client through a real nginx, which resets streams that are quiet."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from google.rpc.code_pb2 import Code

from cli.processes import running
from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy
from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    WatchOperationRecordRequest,
)
from support.client import Client
from support.nginx import Nginx, nginx
from support.producers import KINDS, Steps, WorkLike
from support.server import PATIENCE, ServerProcess, eventually, serving

WATCH = "opservice.v1.OperationRecordService/Watch"
WAIT = "opservice.v1.OperationRecordService/Wait"
COMMAND_LINE, CLIENT = "grpc-python", "grpc-python-asyncio"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("server")
    with serving(directory, f"sqlite:///{directory}/operations.db") as running_server:
        yield running_server


def until_cancelled(work: WorkLike) -> Steps:
    while True:
        yield
        work.raise_if_cancelled()


def follow(
    server: ServerProcess, proxy: Nginx, meanwhile: Callable[[], object], reconnect: str = "1m"
) -> None:
    """A quiet operation is watched and waited for, and one is worked on until it is cancelled."""
    quiet = server.client.started()
    through = ("--server", proxy.address, "--format", "json", "--reconnect", reconnect)
    producer = KINDS["threads"](proxy.address)
    try:
        # Its first renewal is in 30 seconds: what tells of a Cancel before is a Watch.
        work = producer.start(cancel_policy=CancelPolicy.COOPERATIVE, lease=timedelta(minutes=2))
        producer.run(work, until_cancelled)
        with (
            running(server, "watch", quiet, *through) as watch,
            running(server, "wait", quiet, *through) as wait,
        ):
            meanwhile()
            assert watch.poll() is None
            assert wait.poll() is None
            assert not server.client.get(work.id).done
            server.client.complete(quiet)
            server.client.cancel(work.id)
            watched, watch_error = watch.communicate(timeout=PATIENCE)
            waited, wait_error = wait.communicate(timeout=PATIENCE)
        assert (watch.returncode, watch_error) == (0, "")
        assert (wait.returncode, wait_error) == (0, "")
        eventually(lambda: server.client.get(work.id).done)
    finally:
        producer.close()

    assert [json.loads(line)["revision"] for line in watched.splitlines()] == ["1", "2"]
    assert json.loads(waited)["operation"]["done"]
    assert server.client.get(work.id).error.code == Code.CANCELLED


@pytest.mark.slow
def test_resets_end_nothing(server: ServerProcess, tmp_path: Path) -> None:
    with nginx(tmp_path, server.address, "grpc_read_timeout 1s") as proxy:

        def were_reset() -> bool:
            watched, waited = proxy.calls(WATCH, COMMAND_LINE), proxy.calls(WAIT, COMMAND_LINE)
            return min(watched, proxy.calls(WATCH, CLIENT)) >= 2 and waited >= 6

        follow(server, proxy, meanwhile=lambda: eventually(were_reset), reconnect="2s")


@pytest.mark.slow
def test_a_quiet_watch_is_not_cut(tmp_path: Path) -> None:
    """Also that of a client that does not go on after it."""
    database = f"sqlite:///{tmp_path}/operations.db"
    with (
        serving(tmp_path, database, watch_repeat="200ms") as server,
        nginx(tmp_path, server.address, "grpc_read_timeout 2s") as proxy,
        grpc.insecure_channel(proxy.address) as channel,
    ):
        id_ = server.client.started()
        records = Client(channel).records.Watch(WatchOperationRecordRequest(operation_id=id_))
        revisions = [next(records).revision for _ in range(15)]  # takes 3 seconds
        server.client.complete(id_)

        assert revisions == [1] * 15
        assert [record.revision for record in records][-1] == 2


@pytest.mark.slow
def test_three_minutes_behind_the_defaults_of_nginx(server: ServerProcess, tmp_path: Path) -> None:
    with nginx(tmp_path, server.address) as proxy:
        follow(server, proxy, meanwhile=lambda: time.sleep(180))


def test_a_result_that_nginx_finds_too_large_ends_the_operation(
    server: ServerProcess, tmp_path: Path
) -> None:
    def too_large(work: WorkLike) -> Steps:
        yield
        return BytesValue(value=bytes((1 << 20) - 100))

    with nginx(tmp_path, server.address) as proxy:
        producer = KINDS["threads"](proxy.address)
        try:
            work = producer.start()
            producer.run(work, too_large)
            eventually(lambda: server.client.get(work.id).done)
        finally:
            producer.close()

    assert server.client.get(work.id).error.code == Code.INTERNAL
