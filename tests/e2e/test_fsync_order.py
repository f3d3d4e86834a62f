"""A write is acknowledged only after its fsync, as the kernel was asked to do it.

strace stops a thread at the beginning and at the end of a system call until it has written that down,
so what stands earlier in its file happened earlier.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from opservice._proto.opservice.v1.producer_service_pb2 import StartRequest
from support.client import TOKEN, Client, packed
from support.server import PATIENCE, eventually, serving
from support.tools import require_tool

ALONE = 10
AT_ONCE = 256
CALLS = "fdatasync,fsync,write,pwrite64,writev,pwritev,sendmsg,sendto"
LONGEST = 1 << 20
"""Bytes of a call's data that are shown: more than any call has."""
SLOW_DISK = "fsync,fdatasync:delay_exit=50000"
"""Microseconds by which each fsync is made longer, so that it is the disk that writers wait for."""

_LINE = re.compile(r"(?P<thread>\d+) +(?P<resumed><\.\.\. )?(?P<call>\w+)(?P<rest>.*)")
_MARK = re.compile(r"(?:start|complete)-\d{5}")


@dataclass
class Trace:
    """What was written, synced and sent; writes and answers are known by the marks in their data."""

    acknowledged: set[str] = field(default_factory=set)
    too_early: set[str] = field(default_factory=set)
    """Acknowledged while no fsync that began after the write had ended."""
    synced_by: dict[str, int] = field(default_factory=dict)
    """The first fsync, by number, that ended with this written."""


def read_trace(lines: Iterable[str]) -> Trace:
    trace, fsyncs = Trace(), 0
    written: set[str] = set()
    syncing: dict[str, set[str]] = {}
    for line in lines:
        if not (found := _LINE.match(line)):
            continue
        thread, call, rest = found["thread"], found["call"], found["rest"]
        if call in ("fsync", "fdatasync"):
            if not found["resumed"] and ".db-wal>" in rest:
                syncing[thread] = set(written)
            if "unfinished ..." not in rest and thread in syncing:
                assert re.search(r"\) += 0\b", rest), line
                for mark in syncing.pop(thread):
                    trace.synced_by.setdefault(mark, fsyncs)
                fsyncs += 1
            continue
        marks = set(_MARK.findall(rest))
        if call.startswith("send"):
            trace.too_early |= marks - trace.synced_by.keys()
            trace.acknowledged |= marks
        elif ".db-wal>" in rest:
            written |= marks
    return trace


@contextmanager
def traced(pid: int, into: Path) -> Iterator[None]:
    """Traces the process. Skips the test where that is forbidden."""
    strace = require_tool("strace", "apt-get install strace")
    show = ["-f", "-y", "-s", str(LONGEST), "-e", f"trace={CALLS}", "-e", f"inject={SLOW_DISK}"]
    command = [strace, *show, "-o", str(into), "-p", str(pid)]
    said = into.with_suffix(".stderr")
    with (
        said.open("wb") as stderr,
        subprocess.Popen(command, stderr=stderr) as tracer,
    ):
        try:
            eventually(lambda: "attached" in said.read_text() or tracer.poll() is not None)
            if tracer.poll() is not None:
                pytest.skip(f"processes cannot be traced here: {said.read_text()}")
            yield
        finally:
            tracer.terminate()
            tracer.wait(PATIENCE)


TraceOf = Callable[[Callable[[Client], object]], Trace]


@pytest.fixture
def trace_of(tmp_path: Path) -> TraceOf:
    """What a server on SQLite does while it is called."""

    def trace(calls: Callable[[Client], object]) -> Trace:
        file = tmp_path / "trace"
        with serving(tmp_path, f"sqlite:///{tmp_path}/operations.db") as server:
            server.client.start(description="before the trace")
            with traced(server.pid, file):
                calls(server.client)
        with file.open(errors="replace") as lines:
            return read_trace(line.rstrip("\n") for line in lines)

    return trace


def starts(count: int) -> list[str]:
    return [f"start-{number:05}" for number in range(count)]


def start_at_once(client: Client) -> None:
    requests = [StartRequest(description=mark) for mark in starts(AT_ONCE)]
    for call in [client.producer.Start.future(request) for request in requests]:
        call.result()


def test_one_write_after_another_is_acknowledged_after_its_fsync(trace_of: TraceOf) -> None:
    completes = [mark.replace("start", "complete") for mark in starts(ALONE)]

    def start_and_complete(client: Client) -> None:
        for start, complete in zip(starts(ALONE), completes, strict=True):
            id_ = client.started(description=start, lease_token=TOKEN)
            response = packed(StringValue(value=complete))
            client.complete(id_, lease_token=TOKEN, response=response)

    trace = trace_of(start_and_complete)

    assert trace.acknowledged == {*starts(ALONE), *completes}
    assert trace.too_early == set()


def test_concurrent_writes_are_acknowledged_after_the_fsync_that_they_share(
    trace_of: TraceOf,
) -> None:
    trace = trace_of(start_at_once)

    assert trace.acknowledged == set(starts(AT_ONCE))
    assert trace.too_early == set()
    assert len(set(trace.synced_by.values())) < AT_ONCE / 2
