"""Traces, by OpenTelemetry. docs/traces.md says how to have them.

They are on when the environment asks for them, in OpenTelemetry's own variables, and cost nothing otherwise.
Each process starts its own, after it was forked, and keeps a bounded number of spans while no collector
takes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context as ContextOfTask
from typing import TYPE_CHECKING, Any, cast

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from opservice.common.loggers import get_logger
from opservice.domain.errors import StartupError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

MOST_LINKS = 128
"""Of a span: those of a batch's callers beyond are left out. OpenTelemetry has the same limit."""

_EXPORTER = "OTEL_TRACES_EXPORTER"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_NAME = "OTEL_SERVICE_NAME"
_FLUSH_MILLISECONDS = 3_000
_W3C = TraceContextTextMapPropagator()

log = get_logger("opservice.traces")


def is_asked_for(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment asks for traces: for an exporter, or with the address of a collector."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get(_EXPORTER, "").strip()
    if exporter:
        return exporter != "none"
    return any(environment.get(name, "").strip() for name in _ENDPOINTS)


def _set_default(name: str, value: str) -> None:
    """Sets a variable of the environment that is not set, or empty, which is the same for OpenTelemetry."""
    if not os.environ.get(name, "").strip():
        os.environ[name] = value


class Traces:
    """Makes spans. `start` makes one, when traces are asked for."""

    def __init__(self, tracer: Tracer, provider: TracerProvider) -> None:
        """Raises ValueError when OTEL_PROPAGATORS has one that is not installed."""
        # Not before, as it reads that variable: a server without traces has no use for it.
        from opentelemetry.propagate import extract

        self._tracer = tracer
        self._provider = provider
        self._extract = extract

    @classmethod
    def start(cls, version: str) -> Traces:
        """Starts traces in this process, as the environment says.

        Raises StartupError when OpenTelemetry's SDK or the exporter is not installed, or the environment is
        wrong.
        """
        _set_default(_EXPORTER, "otlp")
        given = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")
        if not any(attribute.strip().startswith("service.name=") for attribute in given):
            _set_default(_NAME, "opservice")
        try:
            from opentelemetry.sdk._configuration import _OTelSDKConfigurator

            class Configurator(_OTelSDKConfigurator):
                """As OpenTelemetry's documentation asks for."""

            configurator: Any = cast("Any", Configurator)()
            configurator.configure(resource_attributes={"service.version": version})
            provider: Any = trace.get_tracer_provider()
            return cls(provider.get_tracer("opservice", version), provider)
        except ImportError as error:
            raise StartupError(
                "traces are asked for by the environment (OTEL_…), and OpenTelemetry's SDK is not"
                " installed: pip install 'opservice[otel]', or set OTEL_SDK_DISABLED=true"
            ) from error
        except Exception as error:
            # Such as an exporter that there is not. The SDK has no class for what it raises.
            raise StartupError(f"traces cannot be started: {error}") from error

    def stop(self) -> None:
        """Sends what was not sent yet, for a few seconds at most. May block."""
        self._provider.force_flush(_FLUSH_MILLISECONDS)

    @contextmanager
    def call(self, name: str, headers: Sequence[tuple[str, Any]], **known: Any) -> Iterator[Span]:
        """The span of a call during the block, in the trace that the caller's headers name.

        `known` are its attributes, with `__` for dots.
        """
        carrier = {key: value for key, value in headers if isinstance(value, str)}
        attributes = {key.replace("__", "."): value for key, value in known.items()}
        with self._tracer.start_as_current_span(
            name,
            self._extract(carrier),
            SpanKind.SERVER,
            attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span

    @contextmanager
    def batch(self, kind: str, size: int, callers: Sequence[SpanContext]) -> Iterator[None]:
        """The span of a batch during the block. It belongs to no call, and is linked to those it is for."""
        links = [Link(each) for each in callers[:MOST_LINKS]]
        with self._tracer.start_as_current_span(
            f"store.{kind}",
            Context(),
            attributes={"opservice.batch.size": size},
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        ):
            yield


_active: list[Traces] = []


def active() -> Traces | None:
    """The traces of this process; None when there are none."""
    return _active[0] if _active else None


def start(version: str) -> Traces | None:
    """Starts traces for this process, if the environment asks for them. Raises StartupError."""
    if not is_asked_for():
        return None
    if not _active:
        _active.append(Traces.start(version))
        log.info("traces are on")
    return _active[0]


def end_call(span: Span, code: int, message: str, operation_id: str, traceparent: str) -> None:
    """Says how a call has ended: with a google.rpc.Code, for which operation, and the trace of its start."""
    span.set_attribute("rpc.grpc.status_code", code)
    if code:
        # What callers are told. Of a call that was refused the caller is at fault, and the server is not.
        span.set_attribute("opservice.error", message)
        if code in _SERVER_FAULTS:
            span.set_status(StatusCode.ERROR, message)
    if operation_id:
        span.set_attribute("opservice.operation_id", operation_id)
    if traceparent:
        other = trace.get_current_span(_W3C.extract({"traceparent": traceparent}))
        known = span.get_span_context()
        if other.get_span_context().trace_id not in {0, known.trace_id}:
            span.add_link(other.get_span_context())


_SERVER_FAULTS = {2, 4, 12, 13, 14, 15}
"""UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS: as OpenTelemetry has it."""


def of_no_call() -> ContextOfTask:
    """The context of a task that works for many calls, and not only for the one that has begun it."""
    return ContextOfTask()


def current() -> SpanContext | None:
    """Where in a trace the caller is; None when they are in none."""
    context = trace.get_current_span().get_span_context()
    return context if context.is_valid else None
