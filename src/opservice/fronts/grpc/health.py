"""grpc.health.v1.Health: serving until the server stops or loses its database file, for all services alike.

grpcio-health-checking's own asyncio servicer never ends a Watch, so every shutdown would last as long
as it may; and of two who watch, the second is forgotten when the first leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc
from grpc.aio import Server, ServicerContext
from grpc_health.v1.health import SERVICE_NAME
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from opservice.domain.errors import ServiceUnknown
from opservice.methods.policies import methods_of


class HealthService:
    """Knows the services that it is given, and "" for the server as a whole."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(("", *services))
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """NOT_SERVING from now on; whoever watches is told, and their stream ends."""
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


def add_health(server: Server, health: HealthService) -> None:
    """Serves the methods of Health that are in the table; newer versions of the library have more."""
    kinds = {
        "Check": grpc.unary_unary_rpc_method_handler,
        "Watch": grpc.unary_stream_rpc_method_handler,
    }
    handlers = {
        name: kinds[name](
            getattr(health, name),
            HealthCheckRequest.FromString,
            HealthCheckResponse.SerializeToString,
        )
        for name in methods_of(SERVICE_NAME)
    }
    server.add_registered_method_handlers(SERVICE_NAME, handlers)
