"""Traces: one shows the request, the work and its end, in a collector that a real server sends to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    GetOperationRecordRequest,
    WatchOperationRecordRequest,
)
from opservice._proto.opservice.v1.producer_service_pb2 import CompleteRequest, StartRequest
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import (
    CancelOperationRequest,
    GetOperationRequest,
)
from support.client import TOKEN, refused
from support.collector import Collector, attributes, collector
from support.server import ServerProcess, eventually, run_opservice, serving

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
OTHER = "00-11111111111111111111111111111111-2222222222222222-01"


@pytest.fixture(scope="module")
def collecting() -> Iterator[Collector]:
    with collector() as running:
        yield running


@pytest.fixture(scope="module")
def traced(
    collecting: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("traced")
    environment = {
        **collecting.environment,
        # An empty variable is as good as none.
        "OTEL_TRACES_EXPORTER": "",
        "OTEL_SERVICE_NAME": "",
        "OTEL_RESOURCE_ATTRIBUTES": "peer.service.name=other",
    }
    url = f"sqlite:///{directory}/o.db"
    with serving(directory, url, environment=environment, http_listen="127.0.0.1:0") as server:
        yield server


def test_one_trace_shows_the_request_and_the_end(
    traced: ServerProcess, collecting: Collector
) -> None:
    client = traced.client
    started = client.producer.Start(
        StartRequest(lease_token=TOKEN), metadata=(("traceparent", PARENT),)
    )
    id_ = started.operation.id
    record = client.records.Get(GetOperationRecordRequest(operation_id=id_))
    assert record.traceparent == PARENT
    client.producer.Complete(
        CompleteRequest(operation_id=id_, lease_token=TOKEN),
        metadata=(("traceparent", record.traceparent),),
    )
    (start,) = eventually(lambda: collecting.named("ProducerService/Start"))
    (end,) = eventually(lambda: collecting.named("ProducerService/Complete"))
    assert start.trace_id.hex() == end.trace_id.hex() == TRACE
    assert start.parent_span_id.hex() == "b7ad6b7169203331"
    assert attributes(end) == {
        "rpc.system": "grpc",
        "rpc.service": "opservice.v1.ProducerService",
        "rpc.method": "Complete",
        "rpc.grpc.status_code": 0,
        "opservice.front": "grpc",
        "opservice.operation_id": id_,
    }
    assert collecting.resource["service.name"] == "opservice"
    assert TOKEN not in str(collecting.spans)


def test_a_call_in_another_trace_leads_to_that_of_the_start(
    traced: ServerProcess, collecting: Collector
) -> None:
    client = traced.client
    request = StartRequest(description="cancelled from elsewhere")
    id_ = client.producer.Start(request, metadata=(("traceparent", PARENT),)).operation.id
    cancel = CancelOperationRequest(operation_id=id_)
    client.operations.Cancel(cancel, metadata=(("traceparent", OTHER),))
    (span,) = eventually(lambda: collecting.named("OperationService/Cancel"))
    assert [link.trace_id.hex() for link in span.links] == [TRACE]


def test_a_watch_leads_to_the_trace_of_the_start(
    traced: ServerProcess, collecting: Collector
) -> None:
    client = traced.client
    request = StartRequest(lease_token=TOKEN)
    id_ = client.producer.Start(request, metadata=(("traceparent", PARENT),)).operation.id
    client.producer.Complete(CompleteRequest(operation_id=id_, lease_token=TOKEN))
    list(client.records.Watch(WatchOperationRecordRequest(operation_id=id_)))
    (span,) = eventually(lambda: collecting.named("OperationRecordService/Watch"))
    assert [link.trace_id.hex() for link in span.links] == [TRACE]


def test_a_batch_of_the_store_is_linked_to_its_calls(
    traced: ServerProcess, collecting: Collector
) -> None:
    traced.client.producer.Start(StartRequest(), metadata=(("traceparent", OTHER),))
    calls = eventually(
        lambda: [s for s in collecting.named("/Start") if s.trace_id.hex() == OTHER[3:35]]
    )

    def linked() -> bool:
        batches = collecting.named("store.write")
        return any(link.span_id == calls[0].span_id for each in batches for link in each.links)

    eventually(linked)


def test_a_refusal_is_told_and_no_fault_of_the_server(
    traced: ServerProcess, collecting: Collector
) -> None:
    request = GetOperationRequest(operation_id="nothing")
    with refused():
        traced.client.operations.Get(request, metadata=(("traceparent", OTHER),))
    (span,) = eventually(lambda: collecting.named("OperationService/Get"))
    assert attributes(span)["rpc.grpc.status_code"] == 5
    assert attributes(span)["opservice.error"] == "Operation nothing not found"
    assert attributes(span)["opservice.operation_id"] == "nothing"
    assert span.status.code == 0


def test_a_request_by_http_has_a_span(traced: ServerProcess, collecting: Collector) -> None:
    headers = {"traceparent": f"00-{'3' * 32}-{'4' * 16}-01"}
    requests.get(f"{traced.http_url}/operations/x", headers=headers, timeout=60)
    (span,) = eventually(
        lambda: [span for span in collecting.spans if span.trace_id.hex() == "3" * 32]
    )
    assert attributes(span)["opservice.front"] == "http"


@pytest.mark.slow
def test_a_collector_that_is_away_costs_nobody_anything(tmp_path: Path, sqlite_url: str) -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    server = ServerProcess(tmp_path, sqlite_url, environment=environment).start()
    try:
        for _ in range(50):
            server.client.started()
        server.send_signal(15)
        assert server.wait() == 0
        assert len([line for line in server.stderr.splitlines() if "127.0.0.1:9" in line]) < 10
    finally:
        server.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [
        {"OTEL_TRACES_EXPORTER": "nothing"},
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_PROPAGATORS": "nothing"},
    ],
    ids=str,
)
def test_traces_that_cannot_be_had_are_a_refusal_to_start(
    sqlite_url: str, wrong: dict[str, str]
) -> None:
    wrong = {**wrong, "OPSERVICE_DATABASE": sqlite_url}
    result = run_opservice("serve", environment=wrong, listen="127.0.0.1:0", http_listen="off")
    assert result.returncode != 0
    assert "traces cannot be started" in result.stderr
    assert "Traceback" not in result.stderr
    assert sys.executable not in result.stderr
