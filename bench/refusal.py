"""What it costs to refuse a call with RESOURCE_EXHAUSTED, as a multiple of answering a bare one.

    .venv/bin/python bench/refusal.py 2> /dev/null

Three grpc.aio servers with the same options take turns: one answers with a message made beforehand, one has
reached gRPC's own `maximum_concurrent_rpcs`, and one refuses as opservice does beyond `--max-calls`, with
its line in the audit log.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from contextlib import AsyncExitStack, ExitStack
from types import SimpleNamespace
from typing import Any

import grpc
import uvloop

from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import (
    DESCRIPTOR,
    GetOperationRequest,
)
from opservice.fronts.backpressure import UnreadResponses
from opservice.fronts.grpc.adapter import Methods
from opservice.fronts.grpc.server import server_options
from opservice.main.server import grpc_options
from opservice.methods.admission import Admission, AdmissionLimits
from opservice.methods.pipeline import Pipeline
from opservice.methods.registry import methods_of
from opservice.runtime.logs import configure_logging
from opservice.runtime.settings import Settings
from opservice.runtime.settings.groups import ConnectionSettings
from speed import Send, Server, connect, get, run

KINDS = {"answered": "OK", "by gRPC": "RESOURCE_EXHAUSTED", "by opservice": "RESOURCE_EXHAUSTED"}
ROUNDS = 5
CALLS = 3_000
STREAMS = 32
FOREVER = "forever"
"""An operation whose Get does not end."""


async def serve(kind: str) -> None:
    """Until the process is ended."""
    limit = 1 if kind == "by gRPC" else None
    server = grpc.aio.server(
        options=server_options(grpc_options(ConnectionSettings())), maximum_concurrent_rpcs=limit
    )
    answer = Operation(id="ops0123456789abcdefg", description="Create registry")

    async def handle(request: GetOperationRequest, _context: object) -> Operation:
        if request.operation_id == FOREVER:
            await asyncio.Event().wait()
        return answer

    service, name = get("")[0][1:].split("/")
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            handle, GetOperationRequest.FromString, Operation.SerializeToString
        )
    }
    if kind == "by opservice":
        settings = Settings()
        configure_logging(settings.logging)
        methods = Methods(
            Pipeline(Admission(AdmissionLimits(), None), 0),
            UnreadResponses(settings.limits.max_unsent_bytes),
        )
        handler = SimpleNamespace(Get=handle, Cancel=handle)
        methods.add(methods_of(DESCRIPTOR.services_by_name["OperationService"], handler))
        server.add_generic_rpc_handlers((methods,))
    else:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"{kind} serving on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


async def load(server: Server, send: Send) -> Counter[str]:
    """The codes of the answers."""
    codes: Counter[str] = Counter()
    left = iter(range(CALLS))

    async def stream() -> None:
        for _ in left:
            try:
                await send(get("ops0123456789abcdefg"))
                codes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                codes[error.code().name] += 1

    cpu = server.cpu_seconds()
    await asyncio.gather(*[stream() for _ in range(STREAMS)])
    server.cpu += server.cpu_seconds() - cpu
    return codes


async def compare() -> None:
    with ExitStack() as started:
        async with AsyncExitStack() as connected:
            servers = {
                kind: started.enter_context(run(__file__, "--serve", kind)) for kind in KINDS
            }
            sends: dict[str, Any] = {
                kind: await connected.enter_async_context(connect(server))
                for kind, server in servers.items()
            }
            held = asyncio.create_task(sends["by gRPC"](get(FOREVER)))
            await asyncio.sleep(1)
            for round_ in range(1 + ROUNDS):
                for kind, expected in KINDS.items():
                    if round_ <= 1:  # the first one warms up
                        servers[kind].forget()
                    codes = await load(servers[kind], sends[kind])
                    assert set(codes) == {expected}, codes
            for kind, server in servers.items():
                cost, bare = (each.cpu / CALLS / ROUNDS for each in (server, servers["answered"]))
                print(f"{kind:>12}: {cost * 1e6:.0f} µs, {cost / bare:.2f} of answering")
            held.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    kind = parser.parse_args().serve
    if kind:
        uvloop.run(serve(kind))
    else:
        asyncio.run(compare())


if __name__ == "__main__":
    main()
