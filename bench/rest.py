"""What a Get costs the server by REST, beside one by gRPC: CPU time for each call.

    .venv/bin/python bench/rest.py

h2load (Debian package nghttp2-client) asks for one running and one done operation, by turns by gRPC and by
HTTP/1.1, on 8 connections. `/livez` shows what of it is uvicorn and Starlette.
"""

from __future__ import annotations

import re
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
from speed import Server

ROUNDS = 5
CALLS = 10_000
GET = "/yandex.cloud.operation.OperationService/Get"


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        command = (
            *(sys.executable, "-m", "opservice", "serve", "--log-level", "error"),
            *("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"),
            *("--database", f"sqlite:///{made}/operations.db"),
        )
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                found = re.search(r"serving on (\S+) .*(http://\S+)", line)
                assert found is not None, line
                measure(Server(found[1], process.pid), found[2], Path(made))
            finally:
                process.terminate()


def measure(server: Server, url: str, made: Path) -> None:
    costs: dict[tuple[str, str], list[float]] = {}
    ids = operations(server)
    for _ in range(ROUNDS):
        for state, id_ in ids.items():
            frame = made / state
            message = GetOperationRequest(operation_id=id_).SerializeToString()
            frame.write_bytes(struct.pack(">BI", 0, len(message)) + message)
            by_grpc = (
                *("-m", "4", "-d", str(frame)),
                *("-H", "content-type: application/grpc", "-H", "te: trailers"),
                f"http://{server.address}{GET}",
            )
            costs.setdefault((state, "gRPC"), []).append(cost(server, by_grpc))
            by_rest = ("--h1", f"{url}/operations/{id_}")
            costs.setdefault((state, "REST"), []).append(cost(server, by_rest))
        costs.setdefault(("", "/livez"), []).append(cost(server, ("--h1", f"{url}/livez")))
    print("| Get of an operation | by | CPU a call, µs |")
    print("|---|---|---|")
    for (state, by), each in costs.items():
        print(f"| {state or '(a probe)'} | {by} | {median(each):.0f} |")
    for state in ids:
        pairs = zip(costs[state, "REST"], costs[state, "gRPC"], strict=True)
        ratio = median(rest / by_grpc for rest, by_grpc in pairs)
        print(f"\n{state}: a Get by REST costs {ratio:.2f} times one by gRPC")


def operations(server: Server) -> dict[str, str]:
    with grpc.insecure_channel(server.address) as channel:
        producer = ProducerServiceStub(channel)
        running = producer.Start(StartRequest(description="runs")).operation.id
        done = producer.Start(StartRequest(description="done")).operation.id
        producer.Complete(CompleteRequest(operation_id=done))
    return {"running": running, "done": done}


def cost(server: Server, load: tuple[str, ...]) -> float:
    """Microseconds of the server's CPU time for each call."""
    before = server.cpu_seconds()
    line = ("h2load", "-n", str(CALLS), "-c", "8", *load)
    told = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    time.sleep(0.1)
    assert f"{CALLS} succeeded" in told, told
    return (server.cpu_seconds() - before) / CALLS * 1e6


if __name__ == "__main__":
    main()
