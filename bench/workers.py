"""How many more Gets two workers on two cores serve than one on one.

    .venv/bin/python bench/workers.py sqlite:////tmp/workers.db

First how much more two busy loops do on two cores than one on one: what the machine itself allows. Then
serves the database by turns with one worker on one core, two on two, and one on two, since gRPC's own threads
work beside Python; h2load (Debian package nghttp2-client) asks for one done operation over 16 connections.

One worker on one core has h2load on another. Two on two share theirs with it and with whatever else runs,
which the rate misses. So beside it stands how many calls a second of the server's CPU time answers: with
twice as many seconds, two workers serve twice as many calls, less by what each costs more.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import grpc

from opservice._proto.opservice.v1.producer_service_pb2 import CompleteRequest, StartRequest
from opservice._proto.opservice.v1.producer_service_pb2_grpc import ProducerServiceStub
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from opservice._proto.yandex.cloud.operation.operation_service_pb2_grpc import OperationServiceStub
from opservice.store.engine import open_database
from opservice.store.migrations import migrate
from served import SERVE
from speed import Server, run

ROUNDS = 5
CALLS = 20_000
SPIN_SECONDS = 3.0
FIRST, SECOND = sorted(os.sched_getaffinity(0))[:2]


@dataclass(frozen=True)
class Setting:
    workers: int
    cores: frozenset[int]

    def __str__(self) -> str:
        return f"{self.workers} on {len(self.cores)}"


ONE = Setting(1, frozenset({FIRST}))
TWO = Setting(2, frozenset({FIRST, SECOND}))
ONE_ON_TWO = Setting(1, TWO.cores)


@dataclass(frozen=True)
class Load:
    """What came of it; processor time as a part of one core."""

    rate: float
    server: float
    generator: float

    @property
    def calls_per_cpu_second(self) -> float:
        return self.rate / self.server


@contextmanager
def confined(cores: Collection[int]) -> Iterator[None]:
    """What is started within stays on these cores, and so do the threads it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def main(url: str) -> None:
    print(f"two busy loops on two cores do {busy_loops():.2f} times as much as one\n")
    print("| workers on cores | Gets/s | server, of a core | h2load | Gets a CPU second |")
    print("|---|---|---|---|---|")
    measured: dict[Setting, list[Load]] = {ONE: [], TWO: [], ONE_ON_TWO: []}
    for _ in range(ROUNDS):
        for setting, loads in measured.items():
            serve = (*SERVE, "--log-level", "error")
            workers = ("--workers", str(setting.workers))
            with confined(setting.cores):
                server = run(*serve, "--database", url, *workers)
                with server as running, confined({FIRST, SECOND}):
                    loads.append(load(running, {SECOND} if setting == ONE else TWO.cores))
    for setting, loads in measured.items():
        cells = (
            f"{median(each.rate for each in loads):,.0f}",
            f"{median(each.server for each in loads):.0%}",
            f"{median(each.generator for each in loads):.0%}",
            f"{median(each.calls_per_cpu_second for each in loads):,.0f}",
        )
        print(f"| {setting} | {' | '.join(cells)} |")
    pairs = list(zip(measured[TWO], measured[ONE], strict=True))
    rate = median(two.rate / one.rate for two, one in pairs)
    work = median(two.calls_per_cpu_second / one.calls_per_cpu_second for two, one in pairs)
    print(
        f"\ntwo workers on two cores serve {rate:.2f} times what one on one does;"
        f" with all of both cores it would be {2 * work:.2f} times"
    )


def busy_loops() -> float:
    """How much more two of them do than one: less than 2 where the cores share anything."""

    def done(cores: Collection[int]) -> float:
        with multiprocessing.Pool(len(cores)) as pool:
            return sum(pool.map(spin, cores))

    ratios = [done((FIRST, SECOND)) / done((FIRST,)) for _ in range(3)]
    return median(ratios)


def spin(core: int) -> float:
    """Turns in a second of the processor's time: of the clock's, others may take some."""
    os.sched_setaffinity(0, {core})
    turns, began = 0, time.process_time()
    until = time.perf_counter() + SPIN_SECONDS
    while time.perf_counter() < until:
        turns += 1
    return turns / (time.process_time() - began)


def load(server: Server, cores: Collection[int]) -> Load:
    """Has h2load, on these cores, ask the server."""
    with grpc.insecure_channel(server.address) as channel, tempfile.TemporaryDirectory() as made:
        id_ = ProducerServiceStub(channel).Start(StartRequest()).operation.id
        ProducerServiceStub(channel).Complete(CompleteRequest(operation_id=id_))
        get = GetOperationRequest(operation_id=id_)
        assert OperationServiceStub(channel).Get(get).done
        frame = Path(made) / "frame"
        message = get.SerializeToString()
        frame.write_bytes(struct.pack(">BI", 0, len(message)) + message)
        cpu, before, started = server.cpu_seconds(), own_children(), time.perf_counter()
        h2load = (
            *("h2load", "-n", str(CALLS), "-c", "16", "-m", "4", "-d", str(frame)),
            *("-H", "content-type: application/grpc", "-H", "te: trailers"),
            f"http://{server.address}/yandex.cloud.operation.OperationService/Get",
        )
        with confined(cores):
            printed = subprocess.run(h2load, check=True, capture_output=True, text=True).stdout
        took = time.perf_counter() - started
        found = re.search(r"finished in .*?, ([0-9.]+) req/s", printed)
        assert found is not None, printed
        assert f"{CALLS} succeeded" in printed, printed
        # h2load does not look at grpc-status.
        assert OperationServiceStub(channel).Get(get).done
        served, generated = server.cpu_seconds() - cpu, own_children() - before
        return Load(float(found[1]), served / took, generated / took)


def own_children() -> float:
    """CPU seconds of the programs that this one ran and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    database = open_database(sys.argv[1])
    migrate(database)
    database.close()
    main(sys.argv[1])
