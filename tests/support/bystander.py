"""A client that means well, beside those of `hostile.py`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count

import grpc

from opservice._proto.opservice.v1.producer_service_pb2 import CompleteRequest, StartRequest
from opservice._proto.opservice.v1.producer_service_pb2_grpc import ProducerServiceStub
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from opservice._proto.yandex.cloud.operation.operation_service_pb2_grpc import OperationServiceStub

INTERVAL = 0.02
"""Seconds from one call to the next."""
ANEW = 50
"""Every how many calls one is made on a connection of its own."""
_DEADLINE = 30


@dataclass
class Bystander:
    """Calls at a steady pace, whether those before were answered or not."""

    address: str
    token: str = ""
    took: list[float] = field(default_factory=list)
    """Seconds from when a call was due until it was answered."""
    failures: list[grpc.RpcError] = field(default_factory=list)
    _id: str = ""

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    async def prepare(self) -> None:
        """To be called before the attack: starts the operation to get, and makes the token known."""
        async with self._connect() as channel:
            self._id = await self._start(channel)

    async def run(self, enough: Callable[[], bool]) -> None:
        """Gets on one connection, and now and then an operation that is started and ended on another."""
        async with self._connect() as channel:
            get = GetOperationRequest(operation_id=self._id)
            stub = OperationServiceStub(channel)
            began = time.monotonic()
            async with asyncio.TaskGroup() as calls:
                for number in count():
                    if enough():
                        break
                    due = began + number * INTERVAL
                    await asyncio.sleep(due - time.monotonic())
                    call = (
                        stub.Get(get, timeout=_DEADLINE, metadata=self._metadata)
                        if number % ANEW
                        else self._anew()
                    )
                    calls.create_task(self._timed(due, call))

    async def _timed(self, due: float, call: Awaitable[object]) -> None:
        try:
            await call
        except grpc.RpcError as error:
            self.failures.append(error)
        else:
            self.took.append(time.monotonic() - due)

    async def _anew(self) -> None:
        async with self._connect() as channel:
            complete = CompleteRequest(operation_id=await self._start(channel))
            stub = ProducerServiceStub(channel)
            done = await stub.Complete(complete, timeout=_DEADLINE, metadata=self._metadata)
            assert done.done

    async def _start(self, channel: grpc.aio.Channel) -> str:
        stub = ProducerServiceStub(channel)
        start = StartRequest()
        started = await stub.Start(start, timeout=_DEADLINE, metadata=self._metadata)
        return started.operation.id

    def _connect(self) -> grpc.aio.Channel:
        own = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.insecure_channel(self.address, own)
