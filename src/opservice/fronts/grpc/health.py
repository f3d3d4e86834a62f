"""grpc.health.v1.Health: whether the server serves, for all services alike; and whether it is ready to.

"" and the services are NOT_SERVING only when the process is of no use any more. READINESS is NOT_SERVING
also while its database does not work, which a restart would not mend.

grpcio-health-checking's own asyncio servicer never ends a Watch, so every shutdown would last as long
as it may; and of two who watch, the second is forgotten when the first leaves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from typing import cast

from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from opservice.domain.errors import ServiceUnknown
from opservice.methods.call import Call
from opservice.methods.readiness import Readiness
from opservice.methods.registry import Method, methods_of
from opservice.methods.serving import ServingState

FILE = cast("FileDescriptor", health_pb2.DESCRIPTOR)

READINESS = "opservice.readiness"
"""The service by whose name clients ask whether the server is ready."""


class HealthService:
    """Knows the services that it is given, "" for the server as a whole, and READINESS."""

    def __init__(self, state: ServingState, readiness: Readiness, services: Iterable[str]) -> None:
        self._state = state
        self._readiness = readiness
        self._services = frozenset(("", *services))

    async def Check(self, request: HealthCheckRequest, _call: Call) -> HealthCheckResponse:
        """Raises ServiceUnknown."""
        if request.service == READINESS:
            return _answer((await self._readiness.check()).ready)
        if request.service not in self._services:
            raise ServiceUnknown
        return _answer(self._state.serving)

    async def Watch(
        self, request: HealthCheckRequest, _call: Call
    ) -> AsyncIterator[HealthCheckResponse]:
        """The state as it is, and again when it changes. The stream ends when the server stops."""
        if request.service == READINESS:
            told = None
            async with aclosing(self._readiness.watch()) as changes:
                async for state in changes:
                    if state.ready is not told:  # else only the reasons have changed
                        told = state.ready
                        yield _answer(told)
            return
        if request.service in self._services:
            yield _answer(self._state.serving)
        else:
            yield HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        await self._state.stopped()
        yield _answer(self._state.serving)

    def methods(self) -> tuple[Method, ...]:
        """As they are served."""
        return methods_of(FILE.services_by_name["Health"], self)


def _answer(serving: bool) -> HealthCheckResponse:
    status = HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
    return HealthCheckResponse(status=status)
