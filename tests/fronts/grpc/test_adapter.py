"""Calls by grpc.aio, with handlers of the tests' own, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from opservice._proto.opservice.v1 import operation_record_service_pb2 as records_pb
from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice.fronts.backpressure import UnreadResponses
from opservice.fronts.grpc.adapter import Methods
from opservice.methods.admission import Admission, AdmissionLimits
from opservice.methods.pipeline import Pipeline
from opservice.methods.registry import Handler, Method
from support.logs import capture_logs

SERVICE = records_pb.DESCRIPTOR.services_by_name["OperationRecordService"]
REQUEST = records_pb.WatchOperationRecordRequest(operation_id="ops1").SerializeToString()
LARGE = OperationRecord(method="x" * (1 << 20))


@asynccontextmanager
async def serving(name: str, handler: Handler) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server that has this method of the records, handled so."""
    kinds = {"Get": records_pb.GetOperationRecordRequest}
    request = kinds.get(name, records_pb.WatchOperationRecordRequest)
    method = SERVICE.methods_by_name[name]
    served = Methods(Pipeline(Admission(AdmissionLimits(), None), 100), UnreadResponses(64 << 20))
    served.add([Method(SERVICE.full_name, name, request, OperationRecord, handler, method)])
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((served,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    own = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", own) as channel:
            yield channel
    finally:
        await server.stop(None)


@pytest.mark.parametrize("how", ["cancels", "disconnects"])
async def test_a_stream_ends_when_its_client_leaves_while_a_response_is_written(how: str) -> None:
    """And that is no error."""
    written, closed = 0, asyncio.Event()

    async def without_end(_request: Any, _call: Any) -> AsyncIterator[OperationRecord]:
        nonlocal written
        try:
            while True:
                written += 1
                yield LARGE
        finally:
            closed.set()

    with capture_logs() as lines:
        async with serving("Watch", without_end) as channel:
            watch: Any = channel.unary_stream(f"/{SERVICE.full_name}/Watch")
            call = watch(REQUEST)
            await call.read()
            before = 0
            while before < written:  # until the server waits for the client to read
                before = written
                await asyncio.sleep(0.2)
            if how == "cancels":
                call.cancel()
            else:
                await channel.close()

            await closed.wait()

    assert [line for line in lines if line["log_level"] in ("warning", "error")] == []


async def test_headers_and_the_response_of_a_call_arrive() -> None:
    async def answer(_request: Any, call: Any) -> OperationRecord:
        await call.send_headers((("x-operation-poll-interval", "7"),))
        return OperationRecord(revision=3)

    async with serving("Get", answer) as channel:
        get: Any = channel.unary_unary(f"/{SERVICE.full_name}/Get")
        call = get(b"", metadata=(("x-request-id", "a-read"),))

        assert OperationRecord.FromString(await call).revision == 3
        assert ("x-operation-poll-interval", "7") in tuple(await call.initial_metadata())
        assert ("x-request-id", "a-read") in tuple(await call.trailing_metadata())


async def test_a_call_knows_its_deadline_and_its_peer() -> None:
    async def answer(_request: Any, call: Any) -> OperationRecord:
        assert 0 < call.seconds_left() < 70  # gRPC rounds up
        assert call.certificate() is None
        return OperationRecord(method=call.peer)

    async with serving("Get", answer) as channel:
        get: Any = channel.unary_unary(f"/{SERVICE.full_name}/Get")

        peer = OperationRecord.FromString(await get(b"", timeout=60)).method
    assert peer.startswith("ipv4:127.0.0.1:")
