"""What each call costs, as a multiple of a bare handler's.

    .venv/bin/python bench/speed.py sqlite:////tmp/speed.db
    .venv/bin/python bench/speed.py postgresql://... --streams 1,32,256

Fills the database (a new one) with 100,000 running operations and serves it; beside it serves a bare
grpc.aio server with the same messages and options, that answers every call with the same message. Then
calls the two by turns, in one run, with so many calls at a time (streams) over four connections.

Prints for each call the server's CPU time (user and system, of all its processes) as a multiple of the bare
server's: that holds still where the machine is shared, which the latencies and rates beside it do not.
Every answer is checked to be OK. The load comes from this process, so rates are bounded by it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import uvloop
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from sqlalchemy import insert

from machine import describe_machine, describe_versions
from opservice._proto.opservice.v1 import producer_service_pb2 as producer_pb
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import (
    CancelOperationRequest,
    GetOperationRequest,
)
from opservice.domain.operation import DAY, SECOND, CancelPolicy, hash_lease_token, new_id
from opservice.fronts.grpc.server import server_options
from opservice.main.server import grpc_options
from opservice.methods.convert import payload_to_bytes
from opservice.runtime.settings.groups import ConnectionSettings
from opservice.store.engine import Database, open_database
from opservice.store.migrations import migrate
from opservice.store.schema import operations
from served import NULLS, SERVE, cpu_seconds

ROWS = 100_000
RESERVE = 150_000
"""More running operations, for the calls that end them."""
CONNECTIONS = 4
ROUNDS = 5
CALLS = 4_000
"""Of one kind to one server in one round."""
TOKEN = "the-token-of-the-benchmark"  # noqa: S105 - a secret to nobody

WITH_HEADER = "(a bare Get that sends the poll header)"
HEADER_PATH = "/bare.Bare/GetWithHeader"
"""What no server can save that tells clients when to ask again: gRPC sends headers by themselves."""

_YANDEX = "/yandex.cloud.operation.OperationService/"
_PRODUCER = "/opservice.v1.ProducerService/"


@dataclass(frozen=True)
class Method:
    path: str
    request: type[Message]
    response: type[Message]


METHODS = {
    "Get": Method(_YANDEX + "Get", GetOperationRequest, Operation),
    "Cancel": Method(_YANDEX + "Cancel", CancelOperationRequest, Operation),
    "Start": Method(_PRODUCER + "Start", producer_pb.StartRequest, producer_pb.StartResponse),
    "Renew": Method(_PRODUCER + "Renew", producer_pb.RenewRequest, producer_pb.RenewResponse),
    "Complete": Method(_PRODUCER + "Complete", producer_pb.CompleteRequest, Operation),
}
Call = tuple[str, bytes]
"""The path of a method, and a request."""

Send = Callable[[Call], Awaitable[bytes]]


class Ids:
    """The operations of the filled database: some to read and renew, others to end, each of them once."""

    def __init__(self, ids: Sequence[str], reserve: Sequence[str]) -> None:
        self._ids = ids
        self._unused = iter(reserve)
        self.done = ""

    def any(self) -> str:
        return random.choice(self._ids)

    def next(self) -> str:
        return next(self._unused)


def request(name: str, **fields: Any) -> Call:
    method = METHODS[name]
    return method.path, method.request(**fields).SerializeToString()


def start() -> Call:
    return request(
        "Start",
        description="Create registry",
        parent="folders/b1g0123456789abcdefg",
        method="yandex.cloud.containerregistry.v1.RegistryService.Create",
        created_by="aje0123456789abcdefg",
        lease=Duration(seconds=60),
        lease_token=TOKEN,
    )


def complete(ids: Ids) -> Call:
    return request("Complete", operation_id=ids.next(), lease_token=TOKEN)


def get(id_: str) -> Call:
    return request("Get", operation_id=id_)


def mixed(ids: Ids) -> Call:
    chance = random.random()
    if chance < 0.05:
        return start()
    return complete(ids) if chance < 0.1 else get(ids.any())


KINDS: dict[str, Callable[[Ids], Call]] = {
    "Get, done": lambda ids: get(ids.done),
    f"Get, running, of {ROWS:,}": lambda ids: get(ids.any()),
    "Start": lambda ids: start(),
    "Renew": lambda ids: request("Renew", operation_id=ids.any(), lease_token=TOKEN),
    "Cancel": lambda ids: request("Cancel", operation_id=ids.next()),
    "Complete": complete,
    "90 % Get, 5 % Start, 5 % Complete": mixed,
    WITH_HEADER: lambda ids: get(ids.any()),
}


def fill(database: Database, rows: int = ROWS) -> list[str]:
    """Inserts running operations; returns their ids in random order."""
    now = time.time_ns() // 1000
    metadata = payload_to_bytes(_packed(Empty()))
    ids = [new_id() for _ in range(rows)]
    for start_at in range(0, rows, 1000):
        batch = [
            {
                **NULLS,
                "id": id_,
                "parent": "folders/b1g0123456789abcdefg",
                "method": "yandex.cloud.containerregistry.v1.RegistryService.Create",
                "description": "Create registry",
                "created_by": "aje0123456789abcdefg",
                "created_at": now,
                "modified_at": now,
                "revision": 1,
                "done": False,
                "metadata": metadata,
                "cancel_policy": CancelPolicy.IMMEDIATE,
                "lease": 3600 * SECOND,
                "lease_token_hash": hash_lease_token(id_, TOKEN),
                "lease_expires_at": now + DAY,
                "retention": 30 * DAY,
            }
            for id_ in ids[start_at : start_at + 1000]
        ]
        with database.writer.begin() as connection:
            connection.execute(insert(operations), batch)
    return ids


def _packed(message: Message) -> Any:
    packed = producer_pb.CompleteRequest().response
    packed.Pack(message)
    return packed


@dataclass
class Server:
    """A running server, and what was measured of it."""

    address: str
    pid: int
    cpu: float = 0
    elapsed: float = 0
    took: list[float] = field(default_factory=list)

    def forget(self) -> None:
        self.cpu = self.elapsed = 0
        self.took = []

    def cpu_seconds(self) -> float:
        """User and system time of the process and those that it started."""
        return cpu_seconds(self.pid)


@contextmanager
def run(*command: str) -> Iterator[Server]:
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().split(" serving on ")[1].split()[0]
            yield Server(address, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[Send]:
    """Makes calls over several connections by turns; answers in bytes."""
    async with AsyncExitStack() as stack:
        own = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(server.address, own))
            for _ in range(CONNECTIONS)
        ]
        paths = [HEADER_PATH, *(method.path for method in METHODS.values())]
        methods: Iterator[dict[str, Any]] = itertools.cycle(
            [{p: each.unary_unary(p) for p in paths} for each in channels]
        )

        async def send(call: Call) -> bytes:
            path, request_bytes = call
            answer: bytes = await next(methods)[path](request_bytes)
            return answer

        yield send


async def load(server: Server, send: Send, calls: Sequence[Call], streams: int) -> None:
    """Makes the calls, so many at a time, and adds to what was measured."""
    left = iter(calls)

    async def stream() -> None:
        for call in left:
            before = time.perf_counter()
            await send(call)
            server.took.append(time.perf_counter() - before)

    cpu, started = server.cpu_seconds(), time.perf_counter()
    await asyncio.gather(*[stream() for _ in range(streams)])
    server.elapsed += time.perf_counter() - started
    server.cpu += server.cpu_seconds() - cpu


async def samples(send: Send, ids: Ids) -> dict[str, str]:
    """The real server's answer to each method, for the bare one to give."""
    id_ = ids.next()
    ids.done = id_
    calls = {
        "Start": start(),
        "Renew": request("Renew", operation_id=id_, lease_token=TOKEN),
        "Complete": request("Complete", operation_id=id_, lease_token=TOKEN),
        "Cancel": request("Cancel", operation_id=ids.next()),
        "Get": get(ids.any()),
    }
    return {METHODS[name].path: (await send(call)).hex() for name, call in calls.items()}


async def compare(
    server: Server, ids: Ids, streams: Sequence[int], only: str, rounds: int
) -> list[dict[str, Any]]:
    """Prints the figures of each call as they are known, and returns them."""
    measured: list[dict[str, Any]] = []
    async with connect(server) as send:
        answers = await samples(send, ids)
        with run(__file__, "--bare", json.dumps(answers)) as bare:
            async with connect(bare) as send_bare:

                def send_header(call: Call) -> Awaitable[bytes]:
                    return send_bare((HEADER_PATH, call[1]))

                print(HEAD)
                for (name, kind), at_once in itertools.product(KINDS.items(), streams):
                    if only.lower() not in name.lower():
                        continue
                    rivals = ((bare, send_bare), (server, send))
                    if name == WITH_HEADER:
                        rivals = ((bare, send_bare), (Server(bare.address, bare.pid), send_header))
                    for round_ in range(1 + rounds):
                        calls = [kind(ids) for _ in range(CALLS if round_ else CALLS // 10)]
                        for each, send_to in rivals:
                            if round_ <= 1:  # the first one warms up
                                each.forget()
                            await load(each, send_to, calls, at_once)
                    measured.append(figures(name, at_once, *(each for each, _ in rivals)))
                    print(line(measured[-1]), flush=True)
    return measured


HEAD = (
    "| call | streams | CPU a call | **of bare** | calls/s | of bare | p50 ms | p99 ms | bare p50 | p99 |"
    "\n|---|---|---|---|---|---|---|---|---|---|"
)


def figures(name: str, streams: int, bare: Server, server: Server) -> dict[str, Any]:
    """CPU in microseconds a call, rates in calls a second, latencies in milliseconds."""

    def ms(each: Server, part: float) -> float:
        return sorted(each.took)[int(len(each.took) * part)] * 1000

    cpu, bare_cpu = (each.cpu / len(each.took) * 1e6 for each in (server, bare))
    return {
        "call": name,
        "streams": streams,
        "cpu": cpu,
        "bare_cpu": bare_cpu,
        "rate": len(server.took) / server.elapsed,
        "bare_rate": len(bare.took) / bare.elapsed,
        "p50": ms(server, 0.5),
        "p99": ms(server, 0.99),
        "bare_p50": ms(bare, 0.5),
        "bare_p99": ms(bare, 0.99),
    }


def line(of: dict[str, Any]) -> str:
    cells = (
        of["call"],
        str(of["streams"]),
        f"{of['cpu']:.0f} µs",
        f"**{of['cpu'] / of['bare_cpu']:.2f}**",
        f"{of['rate']:,.0f}",
        f"{of['rate'] / of['bare_rate']:.2f}",
        *(f"{of[each]:.2f}" for each in ("p50", "p99", "bare_p50", "bare_p99")),
    )
    return "| " + " | ".join(cells) + " |"


async def serve_bare(answers: dict[str, str]) -> None:
    """Until SIGTERM."""
    server = grpc.aio.server(options=server_options(grpc_options(ConnectionSettings())))
    for method in METHODS.values():
        answer = method.response.FromString(bytes.fromhex(answers[method.path]))

        async def handle(_request: Message, _context: object, answer: Message = answer) -> Message:
            return answer

        service, name = method.path[1:].split("/")
        handler = grpc.unary_unary_rpc_method_handler(
            handle, method.request.FromString, method.response.SerializeToString
        )
        server.add_registered_method_handlers(service, {name: handler})
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {name: handler}),)
        )
    get_method = METHODS["Get"]
    running = get_method.response.FromString(bytes.fromhex(answers[get_method.path]))

    async def handle_with_header(_request: Message, context: Any) -> Message:
        await context.send_initial_metadata((("x-operation-poll-interval", "1"),))
        return running

    service, name = HEADER_PATH[1:].split("/")
    handler = grpc.unary_unary_rpc_method_handler(
        handle_with_header, get_method.request.FromString, get_method.response.SerializeToString
    )
    server.add_registered_method_handlers(service, {name: handler})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"bare serving on 127.0.0.1:{port}", flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("database", nargs="?", help="URL of a new database")
    parser.add_argument("--streams", default="32", help="calls at a time, such as 1,32,256")
    parser.add_argument("--only", default="", help="only the calls whose name has this in it")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="in which the two take turns")
    parser.add_argument("--save", type=Path, help="a JSON file for the figures, for plot.py")
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        uvloop.run(serve_bare(json.loads(arguments.bare)))
        return
    database = open_database(arguments.database)
    migrate(database)
    filled = fill(database, ROWS + RESERVE)
    ids = Ids(filled[:ROWS], filled[ROWS:])
    versions = describe_versions(database)
    database.close()
    serve = (*SERVE, "--log-level", "warning")
    with run(*serve, "--database", arguments.database) as server:
        streams = [int(each) for each in arguments.streams.split(",")]
        compared = compare(server, ids, streams, arguments.only, arguments.rounds)
        measured = asyncio.run(compared)
    if arguments.save:
        known = {
            "date": datetime.now(UTC).date().isoformat(),
            "database": "SQLite" if database.url.is_sqlite else "PostgreSQL",
            "machine": describe_machine(),
            "versions": versions,
            "figures": measured,
        }
        arguments.save.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
