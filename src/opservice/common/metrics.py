"""The metrics of this process, for Prometheus. docs/metrics.md explains each of them.

Each room counts what it does. With `--workers N` the numbers are in files that all workers share, one set for
each worker's number: whichever is asked tells the sums of all, a worker that replaces another goes on where
that one ended, and a killed worker takes at most the calls of its last second with it. This is
prometheus-client's multiprocess mode, which the supervisor chooses in the worker's environment.

No label has values that callers choose.
"""

from __future__ import annotations

import asyncio
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, cast
from weakref import WeakSet

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
    values,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""As prometheus-client calls it."""
WORKER_VARIABLE = "OPSERVICE_METRICS_WORKER"

_WORKER = os.environ.get(WORKER_VARIABLE)
_DIRECTORY = os.environ.get(DIRECTORY_VARIABLE)


def _kept_in(worker: str | None, directory: str | None) -> Any:
    """What keeps a number: the files of this worker, or else the memory."""
    if worker is None or directory is None:
        return values.MutexValue
    for path in Path(directory).glob(f"gauge_*_{worker}.db"):
        path.unlink(missing_ok=True)  # what the worker before has held, it holds no more
    return values.MultiProcessValue(lambda: worker)  # type: ignore[no-untyped-call] # it has none


_KEPT_IN = _kept_in(_WORKER, _DIRECTORY)
_making = Lock()


class _Own:
    """A metric whose numbers are kept where this server keeps them.

    DIRECTORY_VARIABLE may be another program's, which runs a server for its tests and has metrics of its own.
    prometheus-client looks at what it says whenever a number is made, so also at each first use of a label.
    """

    def _metric_init(self) -> None:
        with _making:
            theirs, values.ValueClass = values.ValueClass, _KEPT_IN
            try:
                super()._metric_init()  # type: ignore[misc] # of the metric that this is mixed into
            finally:
                values.ValueClass = theirs


class Counter(_Own, prometheus_client.Counter):
    """Rises."""


class Gauge(_Own, prometheus_client.Gauge):
    """Rises and falls."""


class Histogram(_Own, prometheus_client.Histogram):
    """Counts what was observed, by its size."""


REGISTRY = CollectorRegistry()
"""Of this process alone. prometheus-client's own may be that of a program which runs a server for tests."""

CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_QUICK_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15)
_WORK_SECONDS = (1, 5, 15, 60, 300, 900, 3_600, 4 * 3_600, 86_400, 7 * 86_400, 30 * 86_400)

GRPC_HANDLED = Counter(
    "grpc_server_handled_total",
    "Calls by gRPC that have ended, by their code.",
    ("grpc_type", "grpc_service", "grpc_method", "grpc_code"),
    registry=REGISTRY,
)
GRPC_SECONDS = Histogram(
    "grpc_server_handling_seconds",
    "How long calls by gRPC took.",
    ("grpc_type", "grpc_service", "grpc_method"),
    buckets=CALL_SECONDS,
    registry=REGISTRY,
)
HTTP_REQUESTS = Counter(
    "http_requests_total",
    "Requests by HTTP that were answered, by route and status.",
    ("handler", "method", "code"),
    registry=REGISTRY,
)
HTTP_SECONDS = Histogram(
    "http_request_duration_seconds",
    "How long requests by HTTP took.",
    ("handler", "method"),
    buckets=CALL_SECONDS,
    registry=REGISTRY,
)
REFUSALS = Counter(
    "opservice_refusals_total",
    "Calls that ended with an error, by the reason in its ErrorInfo.",
    ("reason",),
    registry=REGISTRY,
)
WAITS = Gauge(
    "opservice_waits",
    "Calls that wait or watch now.",
    ("method",),
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
WAKE_SECONDS = Histogram(
    "opservice_wake_seconds",
    "From the news of a change to the moment when the call that waited for it goes on.",
    buckets=_QUICK_SECONDS,
    registry=REGISTRY,
)
STARTED = Counter("opservice_operations_started_total", "Operations started.", registry=REGISTRY)
ENDED = Counter(
    "opservice_operations_ended_total",
    "Operations that have ended, by how: completed, failed, cancelled, lapsed, timed_out.",
    ("outcome",),
    registry=REGISTRY,
)
OPERATION_SECONDS = Histogram(
    "opservice_operation_duration_seconds",
    "From the start to the end of operations, whatever ended them.",
    ("outcome",),
    buckets=_WORK_SECONDS,
    registry=REGISTRY,
)
DELETED = Counter(
    "opservice_operations_deleted_total",
    "Operations deleted, by why: expired, or asked for by a call.",
    ("reason",),
    registry=REGISTRY,
)
RENEWED = Counter("opservice_leases_renewed_total", "Renewals of leases.", registry=REGISTRY)
RUNNING = Gauge(
    "opservice_operations_running",
    "Operations that ran when they were counted last, at most 100000. Of the whole database: use max().",
    multiprocess_mode="livemax",
    registry=REGISTRY,
)
OLDEST_SECONDS = Gauge(
    "opservice_operations_oldest_running_seconds",
    "The age of the oldest of them. Of the whole database: use max().",
    multiprocess_mode="livemax",
    registry=REGISTRY,
)
BATCH_ITEMS = Counter(
    "opservice_batch_items_total",
    "What batches of the store were made of, by the kind of batch: read, origin, write, sweep, list, aside.",
    ("batch",),
    registry=REGISTRY,
)
BATCH_SECONDS = Histogram(
    "opservice_batch_duration_seconds",
    "How long batches took.",
    ("batch",),
    buckets=_QUICK_SECONDS,
    registry=REGISTRY,
)
BATCH_ERRORS = Counter(
    "opservice_batch_errors_total",
    "Results of batches that are an error of the database, by its kind.",
    ("batch", "error"),
    registry=REGISTRY,
)
CONNECTIONS = Gauge(
    "opservice_database_connections",
    "Connections to the database, of readers and writers.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
CONFLICTS = Counter(
    "opservice_database_conflicts_total",
    "Transactions that were made again because of another one.",
    registry=REGISTRY,
)
BEGIN_SECONDS = Histogram(
    "opservice_database_begin_seconds",
    "How long transactions waited until they began or gave up: on SQLite for the lock.",
    buckets=_QUICK_SECONDS,
    registry=REGISTRY,
)
LOCK_TIMEOUTS = Counter(
    "opservice_database_lock_timeouts_total",
    "Commands that gave up waiting for the lock of a row.",
    registry=REGISTRY,
)
HINTS_SENT = Counter(
    "opservice_hints_sent_total",
    "Operations of whose change other processes were notified.",
    registry=REGISTRY,
)
HINTS_RECEIVED = Counter(
    "opservice_hints_received_total",
    "Operations of whose change another process has notified this one.",
    registry=REGISTRY,
)
HINTS_LOST = Counter(
    "opservice_hints_lost_total",
    "Notifications that could not be sent, and times when none could be received. Polls go on.",
    registry=REGISTRY,
)
BUILD = Gauge(
    "opservice_build_info",
    "Always 1; the label has the version.",
    ("version",),
    multiprocess_mode="livemax",
    registry=REGISTRY,
)

for _outcome in ("completed", "failed", "cancelled", "lapsed", "timed_out"):
    # There from the start: of a counter that comes with its first event Prometheus sees no rise.
    ENDED.labels(_outcome)
for _reason in ("expired", "call"):
    DELETED.labels(_reason)


class CallCounts:
    """What is counted of the calls of one method, in plain numbers until `flush`.

    A metric's own increments take a lock, and with workers write to a file: for each call that would be a
    twentieth of a Get. So they are made once a second for all.
    """

    __slots__ = (
        "__weakref__",
        "_buckets",
        "_codes",
        "_counter_of",
        "_counters",
        "_histogram",
        "_seconds",
    )

    def __init__(self, histogram: Histogram, counter_of: Callable[[int], Counter]) -> None:
        """`counter_of` makes the counter of a code."""
        self._histogram: Any = histogram
        self._counter_of = counter_of
        self._counters: dict[int, Counter] = {}
        self._codes: dict[int, int] = {}
        self._buckets = [0] * (len(CALL_SECONDS) + 1)
        self._seconds = 0.0
        with _flushing:
            _COUNTED.add(self)

    def ended(self, code: int, seconds: float) -> None:
        """A call that took so long has ended with the code."""
        self._codes[code] = self._codes.get(code, 0) + 1
        self._buckets[bisect_left(CALL_SECONDS, seconds)] += 1
        self._seconds += seconds

    def refused(self, code: int) -> None:
        """A call was refused before it was handled."""
        self._codes[code] = self._codes.get(code, 0) + 1

    def flush(self) -> None:
        """Adds what was counted since the last time to the metrics."""
        if not self._codes:
            return
        codes, self._codes = self._codes, {}
        for code, count in codes.items():
            if code not in self._counters:
                self._counters[code] = self._counter_of(code)
            self._counters[code].inc(count)
        # As Histogram.observe does it, for one observation.
        for index, count in enumerate(self._buckets):
            if count:
                self._histogram._buckets[index].inc(count)  # noqa: SLF001 - it has no way for many at once
                self._buckets[index] = 0
        self._histogram._sum.inc(self._seconds)  # noqa: SLF001 - likewise
        self._seconds = 0.0


_COUNTED: WeakSet[CallCounts] = WeakSet()
_flushing = Lock()
FLUSH_SECONDS = 1.0


def flush() -> None:
    """Adds what was counted of calls to the metrics."""
    with _flushing:
        for counts in list(_COUNTED):
            counts.flush()


async def keep_flushing() -> None:
    """Flushes every second, until cancelled: other workers are asked, too."""
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        flush()


def counts_for_all() -> bool:
    """Whether this process counts what is in the database: one of a server's workers does so for all."""
    return _WORKER in {None, "1"}


def own_process() -> None:
    """Leaves out the times when each number was made, which are half of all lines, in the whole process."""
    disable_created_metrics()  # type: ignore[no-untyped-call] # it has none


def exposition(accept: str) -> tuple[bytes, str]:
    """All numbers as Prometheus reads them, and the content type, for a header `Accept`. May block."""
    registry = CollectorRegistry()
    if _DIRECTORY is None or _WORKER is None:
        registry.register(_Together([os.getpid()], REGISTRY))
    else:
        MultiProcessCollector(registry, _DIRECTORY)  # type: ignore[no-untyped-call] # it has none
        registry.register(_Together([os.getppid(), *_children(os.getppid())], None))
    encode, kind = choose_encoder(accept)
    return encode(registry), kind


class _Together(Collector):
    """The metrics of several processes as if they were one, and those of a registry."""

    def __init__(self, pids: list[int], registry: CollectorRegistry | None) -> None:
        self._pids = pids
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        if self._registry is not None:
            yield from self._registry.collect()
        found: dict[str, Metric] = {}
        for pid in self._pids:
            # None of one that has ended meanwhile.
            collector = ProcessCollector(pid=partial(int, pid), registry=None)
            for metric in cast("Collector", collector).collect():
                known = found.setdefault(metric.name, metric)
                if known is not metric:
                    known.samples = list(map(_sum, known.samples, metric.samples))
        yield from found.values()


def _sum(one: Sample, other: Sample) -> Sample:
    value = one.value + other.value
    if one.name == "process_start_time_seconds":
        value = min(one.value, other.value)
    return Sample(one.name, one.labels, value)


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    return []
