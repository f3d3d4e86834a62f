"""One trace shows the request, the work and its end, with OpenTelemetry in the service and without."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from opservice_client import Failed, Progress, traces
from opservice_client.testing import OperationServer
from support.collector import Collector, attributes, collector
from support.producers import Body, Kind, Steps, WorkLike, raising, returning
from support.server import ServerProcess, eventually, serving

from .conftest import SETTINGS, Connect, Install, ended

CALLERS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Calling:
    """The context of a call with this metadata."""

    def __init__(self, *metadata: tuple[str, Any]) -> None:
        self.metadata = metadata

    def invocation_metadata(self) -> Sequence[tuple[str, Any]]:
        return self.metadata


class Service:
    """The spans of a service with OpenTelemetry."""

    def __init__(self) -> None:
        self._ended = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._ended))
        self.span = provider.get_tracer("service").start_as_current_span

    def ended(self, name: str) -> Any:
        (found,) = [each for each in self._ended.get_finished_spans() if each.name == name]
        return found


class Spans:
    """Those of the server."""

    def __init__(self, collecting: Collector) -> None:
        self._collecting = collecting

    def of(self, work: WorkLike, method: str) -> Span:
        """Of the first such call for the operation, once it has come."""
        return eventually(lambda: self.so_far(work.id, method))[0]

    def so_far(self, operation_id: str, method: str) -> list[Span]:
        return [
            span
            for span in self._collecting.named("/" + method)
            if attributes(span).get("opservice.operation_id") == operation_id
        ]


def parent_of(span: Span) -> str:
    """Without the flags, which OTLP has elsewhere."""
    return f"00-{span.trace_id.hex()}-{span.parent_span_id.hex()}"


def here() -> str:
    """The current span as a `traceparent`."""
    return dict(traces.current())["traceparent"]


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture(scope="module")
def collecting() -> Iterator[Collector]:
    with collector() as running:
        yield running


@pytest.fixture
def spans(collecting: Collector) -> Spans:
    return Spans(collecting)


@pytest.fixture(scope="module")
def server(
    collecting: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("traced")
    url = f"sqlite:///{directory}/operations.db"
    with serving(directory, url, environment=collecting.environment, **SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def memory() -> Iterator[OperationServer]:
    with OperationServer(backend="memory") as running:
        yield running


def test_one_trace_shows_the_request_the_work_and_its_end(
    producer: Kind, server: ServerProcess, service: Service, spans: Spans
) -> None:
    def scan(work: WorkLike) -> Steps:
        with service.span("scan"):
            work.report(Progress(done=1, total=2))
            while not spans.so_far(work.id, "Renew"):
                yield
        return "done"

    with service.span("request"):
        request = here()
        work = producer.start()
        producer.run(work, scan)
    ended(server, work.id)

    assert work.traceparent == request
    assert parent_of(spans.of(work, "Start")) == request[:-3]
    assert service.ended("scan").parent.span_id == service.ended("request").context.span_id
    scanning = service.ended("scan").context
    assert parent_of(spans.of(work, "Renew")) == f"{request[:35]}-{scanning.span_id:016x}"
    assert parent_of(spans.of(work, "Complete")) == request[:-3]


@pytest.mark.parametrize(
    ("body", "method"), [(returning("done"), "Complete"), (raising(Failed(5, "none")), "Fail")]
)
def test_the_trace_of_the_caller_goes_from_the_start_to_the_end(
    producer: Kind, spans: Spans, body: Body, method: str
) -> None:
    work = producer.start(context=Calling(("traceparent", CALLERS)))
    producer.run(work, body)

    assert work.traceparent == CALLERS
    assert parent_of(spans.of(work, "Start")) == CALLERS[:-3]
    assert parent_of(spans.of(work, method)) == CALLERS[:-3]


def test_the_end_of_work_that_is_stopped_is_in_the_trace(producer: Kind, spans: Spans) -> None:
    def wait(work: WorkLike) -> Steps:
        while not work.cancelled.is_set():
            yield

    work = producer.start(context=Calling(("traceparent", CALLERS)))
    producer.run(work, wait)
    producer.close()

    assert parent_of(spans.of(work, "Fail")) == CALLERS[:-3]


def test_a_span_that_the_work_is_in_counts_more_than_the_trace_of_the_start(
    producer: Kind, service: Service, spans: Spans
) -> None:
    def complete(work: WorkLike) -> Steps:
        yield
        work.complete()

    work = producer.start(context=Calling(("traceparent", CALLERS)))
    with service.span("job"):
        job = here()
        producer.block(work, complete)

    end = spans.of(work, "Complete")
    assert parent_of(end) == job[:-3]
    assert [link.trace_id.hex() for link in end.links] == [CALLERS[3:35]]


def test_what_only_keeps_the_lease_is_not_in_the_trace(
    producer: Kind, service: Service, spans: Spans
) -> None:
    def until_renewed(work: WorkLike) -> Steps:
        while not spans.so_far(work.id, "Renew"):
            yield

    with service.span("request"):
        work = producer.start(lease=timedelta(seconds=3))
        producer.run(work, until_renewed)

    for method in ("Watch", "Renew"):
        span = spans.of(work, method)
        assert not span.parent_span_id
        assert [link.trace_id.hex() for link in span.links] == [work.traceparent[3:35]]


def test_another_process_goes_on_in_the_trace(
    connect: Connect, server: ServerProcess, service: Service, spans: Spans
) -> None:
    def scan(_: WorkLike) -> Steps:
        with service.span("scan"):
            yield

    started = connect(server.address).start(context=Calling(("traceparent", CALLERS)))
    other = connect(server.address)
    work = other.resume(started.id, started.lease_token)
    other.run(work, scan)

    assert work.traceparent == CALLERS
    assert parent_of(spans.of(work, "Complete")) == CALLERS[:-3]
    assert f"{service.ended('scan').context.trace_id:032x}" == CALLERS[3:35]


def test_a_trace_in_the_metadata_of_all_calls_is_the_only_one(
    connect: Connect, memory: OperationServer, service: Service
) -> None:
    producer = connect(memory.target, call_metadata=[("traceparent", CALLERS)])
    with service.span("request"):
        assert producer.start().traceparent == CALLERS


@pytest.mark.parametrize(
    "metadata",
    [
        [("traceparent", "nonsense")],
        [("traceparent", CALLERS + "\n")],
        [("traceparent", "\u2603")],
        [("traceparent", b"\xff")],
        [("traceparent", CALLERS), ("traceparent", CALLERS)],
    ],
    ids=str,
)
def test_what_is_no_trace_breaks_no_start(
    connect: Connect, memory: OperationServer, metadata: list[tuple[str, Any]]
) -> None:
    work = connect(memory.target).start(context=Calling(*metadata))

    assert work.traceparent == memory.record(work.id).traceparent == ""


def test_of_a_later_version_what_is_known_is_taken() -> None:
    assert traces.valid(f"01{CALLERS[2:]}-more") == CALLERS
    assert traces.valid(f"{CALLERS}-more") == ""


def test_the_state_of_the_trace_goes_along() -> None:
    trace_ = (("traceparent", CALLERS), ("tracestate", "vendor=x"))

    with traces.entered(trace_):
        assert traces.current() == trace_
        with traces.entered(()):
            assert traces.current() == ()


def test_a_span_of_the_caller_stays_the_current_one(service: Service) -> None:
    with service.span("request") as request, traces.continued(CALLERS):
        assert trace.get_current_span() is request


WITHOUT = f"""
import sys
from opservice_client import Producer
from opservice_client.testing import OperationServer

class Calling:
    def invocation_metadata(self):
        return {{"traceparent": "{CALLERS}"}}

with OperationServer(backend="memory") as server, Producer(server.target) as producer:
    work = producer.start(context=Calling())
    work.run(lambda work: work.traceparent)
    print(server.wait(work.id).WhichOneof("result"), work.traceparent)
print([name for name in sys.modules if "opentelemetry" in name])
"""


def test_a_service_without_opentelemetry_needs_none_of_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=60
    )

    assert (done.stdout.splitlines(), done.stderr) == ([f"response {CALLERS}", "[]"], "")


INSTRUMENTED = f"""
import sys, time
from datetime import timedelta
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient
from opentelemetry.sdk.trace import TracerProvider
GrpcAioInstrumentorClient().instrument(tracer_provider=TracerProvider())
from opservice_client import Producer

class Calling:
    def invocation_metadata(self):
        return (("traceparent", "{CALLERS}"),)

with Producer(sys.argv[1]) as producer:
    work = producer.start(context=Calling(), lease=timedelta(seconds=3))
    with work:
        began = work.operation.modified_at
        while work.operation.modified_at == began:  # until it is renewed
            time.sleep(0.01)
        work.complete()
    print(work.id)
"""


@pytest.mark.slow
def test_what_instruments_grpc_goes_on_in_the_trace(
    install: Install, server: ServerProcess, spans: Spans, tmp_path: Path
) -> None:
    python = install("opentelemetry-instrumentation-grpc", "opentelemetry-sdk")
    program = tmp_path / "program.py"
    program.write_text(INSTRUMENTED)
    done = subprocess.run(
        [python, "-I", program, server.address], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    id_ = done.stdout.strip()

    def trace_of(method: str) -> str:
        return eventually(lambda: spans.so_far(id_, method))[0].trace_id.hex()

    assert trace_of("Start") == trace_of("Complete") == CALLERS[3:35]
    assert trace_of("Renew") != CALLERS[3:35]
