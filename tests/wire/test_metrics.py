"""Metrics, as Prometheus reads them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import requests
from grpc import StatusCode
from prometheus_client.parser import text_string_to_metric_families

from opservice._proto.opservice.v1.operation_record_service_pb2 import WatchOperationRecordRequest
from support.batch_watch import Stream
from support.client import Client, refused
from support.server import ServerProcess, eventually, serving
from support.tools import require_tool

SERVICE = "yandex.cloud.operation.OperationService"


@pytest.fixture(scope="module")
def metered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("metered")
    with serving(directory, f"sqlite:///{directory}/o.db", http_listen="127.0.0.1:0") as server:
        yield server


class Numbers:
    """What a server counts, and how it changes."""

    def __init__(self, url: str) -> None:
        self._url = url

    def text(self) -> str:
        answer = requests.get(f"{self._url}/metrics", timeout=60)
        assert answer.status_code == 200
        return answer.text

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@pytest.fixture
def numbers(metered: ServerProcess) -> Numbers:
    return Numbers(metered.http_url)


@pytest.fixture
def client(metered: ServerProcess) -> Client:
    return metered.client


def test_calls_by_grpc_are_counted_by_code(numbers: Numbers, client: Client) -> None:
    labels = {"grpc_service": SERVICE, "grpc_method": "Get", "grpc_type": "unary"}
    with refused() as refusal:
        client.get("nothing")
    assert refusal.code is StatusCode.NOT_FOUND
    client.get(client.started())
    total = "grpc_server_handled_total"
    assert numbers.value(total, grpc_code="NotFound", **labels) == 1
    assert numbers.value(total, grpc_code="OK", **labels) == 1
    assert numbers.value("grpc_server_handling_seconds_count", **labels) == 2
    assert numbers.value("opservice_refusals_total", reason="OPERATION_NOT_FOUND") >= 1


def test_requests_by_http_are_counted_by_route(numbers: Numbers, metered: ServerProcess) -> None:
    for path in ("/operations/a", "/operations/b", "/elsewhere"):
        requests.get(metered.http_url + path, timeout=60)
    total = "http_requests_total"
    assert numbers.value(total, handler="/operations/{operation_id}", code="404") == 2
    assert numbers.value(total, handler="none", method="GET", code="404") == 1
    assert "elsewhere" not in numbers.text()


def test_operations_are_counted_by_their_end(numbers: Numbers, client: Client) -> None:
    before = numbers.value("opservice_operations_started_total")
    client.cancel(client.started())
    client.cancel(client.started())
    assert numbers.value("opservice_operations_started_total") == before + 2
    assert numbers.value("opservice_operations_ended_total", outcome="cancelled") == 2
    seconds = "opservice_operation_duration_seconds_count"
    assert numbers.value(seconds, outcome="cancelled") == 2


def test_a_wait_is_counted_while_it_waits(numbers: Numbers, client: Client) -> None:
    id_ = client.started()
    watching = client.records.Watch(WatchOperationRecordRequest(operation_id=id_))
    next(watching)
    woken = numbers.value("opservice_wake_seconds_count")
    method = "/opservice.v1.OperationRecordService/Watch"
    assert numbers.value("opservice_waits", method=method) == 1
    client.cancel(id_)
    assert [record.operation.done for record in watching] == [True]
    assert numbers.value("opservice_wake_seconds_count") == woken + 1
    eventually(lambda: numbers.value("opservice_waits", method=method) == 0)


def test_a_stream_of_many_that_is_woken_is_counted(numbers: Numbers, client: Client) -> None:
    id_ = client.started()
    stream = Stream(client, operation_ids=[id_])
    stream.first()
    woken = numbers.value("opservice_wake_seconds_count")
    client.cancel(id_)
    assert stream.record().operation.done
    assert numbers.value("opservice_wake_seconds_count") == woken + 1


def test_a_client_that_leaves_waits_no_longer(
    numbers: Numbers, metered: ServerProcess, client: Client
) -> None:
    id_ = client.started()
    labels = {"method": f"/{SERVICE}/Get"}
    with closing(HTTPConnection(metered.http_url.removeprefix("http://"))) as connection:
        connection.request("GET", f"/operations/{id_}", headers={"prefer": "wait=50"})
        eventually(lambda: numbers.value("opservice_waits", **labels) == 1)
    eventually(lambda: numbers.value("opservice_waits", **labels) == 0, seconds=30)


def test_promtool_has_nothing_against_them(numbers: Numbers) -> None:
    promtool = require_tool("promtool", "it is in the Debian package prometheus")
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=numbers.text(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_who_may_connect_from_elsewhere_is_told_nothing_unasked(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"http_listen": "0.0.0.0:0", "allow_anonymous": True}
    with serving(tmp_path, f"sqlite:///{tmp_path}/o.db", **settings) as server:
        port = server.http_url.rpartition(":")[2]
        answer = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=60)
        assert answer.status_code == 403
        assert "--metrics-listen" in answer.text
