"""grpc.health.v1.Health: serving until the server stops or loses its database file, for all services alike.

grpcio-health-checking's own asyncio servicer never ends a Watch, so every shutdown would last as long
as it may; and of two who watch, the second is forgotten when the first leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from grpc.aio import ServicerContext
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from opservice.errors import ServiceUnknown


class HealthService(HealthServicer):
    """Knows the services that it is given, and "" for the server as a whole."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(("", *services))
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """NOT_SERVING from now on; whoever watches is told, and his stream ends."""
        self._stopping.set()

    async def Check(
        self,
        request: HealthCheckRequest,
        context: ServicerContext[HealthCheckRequest, HealthCheckResponse],
    ) -> HealthCheckResponse:
        if request.service not in self._services:
            raise ServiceUnknown
        return self._answer()

    async def Watch(
        self,
        request: HealthCheckRequest,
        context: ServicerContext[HealthCheckRequest, HealthCheckResponse],
    ) -> AsyncIterator[HealthCheckResponse]:
        if request.service in self._services:
            yield self._answer()
        else:
            yield HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        await self._stopping.wait()
        yield self._answer()

    def _answer(self) -> HealthCheckResponse:
        if self._stopping.is_set():
            return HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)
        return HealthCheckResponse(status=HealthCheckResponse.SERVING)
