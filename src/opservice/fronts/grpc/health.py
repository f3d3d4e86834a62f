"""grpc.health.v1.Health: whether the server serves, for all services alike.

grpcio-health-checking's own asyncio servicer never ends a Watch, so every shutdown would last as long
as it may; and of two who watch, the second is forgotten when the first leaves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import cast

from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from opservice.domain.errors import ServiceUnknown
from opservice.methods.call import Call
from opservice.methods.registry import Method, methods_of
from opservice.methods.serving import ServingState

FILE = cast("FileDescriptor", health_pb2.DESCRIPTOR)


class HealthService:
    """Knows the services that it is given, and "" for the server as a whole."""

    def __init__(self, state: ServingState, services: Iterable[str]) -> None:
        self._state = state
        self._services = frozenset(("", *services))

    async def Check(self, request: HealthCheckRequest, _call: Call) -> HealthCheckResponse:
        """Raises ServiceUnknown."""
        if request.service not in self._services:
            raise ServiceUnknown
        return self._answer()

    async def Watch(
        self, request: HealthCheckRequest, _call: Call
    ) -> AsyncIterator[HealthCheckResponse]:
        """The state as it is, and once more when the server stops; then the stream ends."""
        if request.service in self._services:
            yield self._answer()
        else:
            yield HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        await self._state.stopped()
        yield self._answer()

    def methods(self) -> tuple[Method, ...]:
        """As they are served."""
        return methods_of(FILE.services_by_name["Health"], self)

    def _answer(self) -> HealthCheckResponse:
        if self._state.serving:
            return HealthCheckResponse(status=HealthCheckResponse.SERVING)
        return HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)
