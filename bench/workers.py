"""How many more Gets two workers serve than one.

    .venv/bin/python bench/workers.py sqlite:////tmp/workers.db

Serves the database with one worker, then with two, by turns, and has h2load (Debian package nghttp2-client)
ask for one done operation over 16 connections. Prints the rate of each, and what part of one core h2load and
the server used meanwhile: the load is not the limit where h2load leaves most of a core to the workers.
"""

from __future__ import annotations

import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import grpc

from opservice._proto.opservice.v1.producer_service_pb2 import CompleteRequest, StartRequest
from opservice._proto.opservice.v1.producer_service_pb2_grpc import ProducerServiceStub
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from opservice._proto.yandex.cloud.operation.operation_service_pb2_grpc import OperationServiceStub
from opservice.store.engine import open_database
from opservice.store.migrations import migrate
from speed import Server, run

ROUNDS = 3
CALLS = 30_000


def main(url: str) -> None:
    rates: dict[int, list[float]] = {1: [], 2: []}
    for round_ in range(ROUNDS):
        for workers, measured in rates.items():
            serve = ("-m", "opservice", "serve", "--listen", "127.0.0.1:0", "--log-level", "error")
            with run(*serve, "--database", url, "--workers", str(workers)) as server:
                rate, generator, served = load(server)
            measured.append(rate)
            print(
                f"round {round_ + 1}, {workers} worker(s): {rate:,.0f} Gets/s;"
                f" of a core: h2load {generator:.0%}, server {served:.0%}"
            )
    one, two = (median(measured) for measured in rates.values())
    print(f"two workers serve {two / one:.2f} times as many (medians)")


def load(server: Server) -> tuple[float, float, float]:
    """Gets a second, and the parts of one core that h2load and the server used."""
    with grpc.insecure_channel(server.address) as channel, tempfile.TemporaryDirectory() as made:
        id_ = ProducerServiceStub(channel).Start(StartRequest()).operation.id
        ProducerServiceStub(channel).Complete(CompleteRequest(operation_id=id_))
        get = GetOperationRequest(operation_id=id_)
        assert OperationServiceStub(channel).Get(get).done
        frame = Path(made) / "frame"
        message = get.SerializeToString()
        frame.write_bytes(struct.pack(">BI", 0, len(message)) + message)
        cpu, before, started = server.cpu_seconds(), own_children(), time.perf_counter()
        printed = subprocess.run(
            [
                *("h2load", "-n", str(CALLS), "-c", "16", "-m", "4", "-d", str(frame)),
                *("-H", "content-type: application/grpc", "-H", "te: trailers"),
                f"http://{server.address}/yandex.cloud.operation.OperationService/Get",
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        took = time.perf_counter() - started
        found = re.search(r"finished in .*?, ([0-9.]+) req/s", printed)
        assert found is not None, printed
        assert f"{CALLS} succeeded" in printed, printed
        # h2load does not look at grpc-status.
        assert OperationServiceStub(channel).Get(get).done
        return (
            float(found[1]),
            (own_children() - before) / took,
            (server.cpu_seconds() - cpu) / took,
        )


def own_children() -> float:
    """CPU seconds of the programs that this one ran and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    database = open_database(sys.argv[1])
    migrate(database)
    database.close()
    main(sys.argv[1])
