"""The traces that calls belong to: https://www.w3.org/TR/trace-context/.

Where in one the caller is, OpenTelemetry says, if the application uses it. It is not needed, and never
imported for this: an application that has not imported it has no spans.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias, cast

TRACEPARENT = "traceparent"
_TRACESTATE = "tracestate"
_TRACEPARENT = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})"
    r"(?P<known>-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(?P<unknown>-.*)?"
)

Trace: TypeAlias = "tuple[tuple[str, str], ...]"
"""A place in a trace, as the metadata of a call say it; empty for a call that belongs to none."""


def traceparent_of(metadata: Any) -> str:
    """The caller's, in version 00; empty when there is no valid one, or more than one."""
    if isinstance(metadata, Mapping):
        metadata = tuple(cast("Mapping[str, object]", metadata).items())
    given = [value for name, value in metadata or () if name == TRACEPARENT]
    return valid(given[0]) if len(given) == 1 else ""


def valid(traceparent: object) -> str:
    """The same in version 00, which any server takes; empty when it is none."""
    found = _TRACEPARENT.fullmatch(traceparent) if isinstance(traceparent, str) else None
    # Of a later version what this one knows is taken, and nothing else.
    if found is None or (found["version"] == "00" and found["unknown"] is not None):
        return ""
    return "00" + found["known"]


def current() -> Trace:
    """That of OpenTelemetry's current span; empty when there is none."""
    api = _opentelemetry()
    if api is None:
        return ()
    span = api.get_current_span().get_span_context()
    if not span.is_valid:
        return ()
    here = f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
    state = span.trace_state.to_header()
    return ((TRACEPARENT, here), (_TRACESTATE, state)) if state else ((TRACEPARENT, here),)


def current_or(traceparent: str) -> Trace:
    """That of the current span, else the given one."""
    return current() or (((TRACEPARENT, traceparent),) if traceparent else ())


def entered(trace: Trace) -> AbstractContextManager[Any]:
    """Makes it OpenTelemetry's current one in the block, for what makes spans there. Empty is none."""
    api = _opentelemetry()
    if api is None or trace == current():
        return nullcontext()
    span = _remote_span(api, trace) if trace else api.INVALID_SPAN
    entering: AbstractContextManager[Any] = api.use_span(span)
    return entering


def continued(traceparent: str) -> AbstractContextManager[Any]:
    """Makes that the current one in the block, unless there is one."""
    return entered(current_or(traceparent))


def _remote_span(api: Any, trace: Trace) -> Any:
    headers = dict(trace)
    _, trace_id, span_id, flags = headers[TRACEPARENT].split("-")
    context = api.SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=True,
        trace_flags=api.TraceFlags(int(flags, 16)),
        trace_state=api.TraceState.from_header([headers.get(_TRACESTATE, "")]),
    )
    return api.NonRecordingSpan(context)


def _opentelemetry() -> Any:
    """The module opentelemetry.trace; None when the application has not imported it."""
    api = sys.modules.get("opentelemetry.trace")
    return api if hasattr(api, "use_span") else None  # without, another thread is importing it
