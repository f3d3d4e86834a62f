"""yandex.cloud.endpoint.ApiEndpointService: how Yandex SDKs find this server and its neighbours."""

from __future__ import annotations

from collections.abc import Mapping

from grpc.aio import ServicerContext

from opservice._proto.yandex.cloud.endpoint.api_endpoint_pb2 import ApiEndpoint
from opservice._proto.yandex.cloud.endpoint.api_endpoint_service_pb2 import (
    GetApiEndpointRequest,
    ListApiEndpointsRequest,
    ListApiEndpointsResponse,
)
from opservice._proto.yandex.cloud.endpoint.api_endpoint_service_pb2_grpc import (
    ApiEndpointServiceServicer,
)
from opservice.domain.errors import EndpointNotFound
from opservice.methods.validation import valid_id

OWN_ENDPOINTS = ("iam", "operation")
"""Served at this server's own address. SDKs want `iam` listed even when they never call it."""


class ApiEndpointService(ApiEndpointServiceServicer):
    """`endpoints` holds addresses (HOST:PORT) by id."""

    def __init__(self, endpoints: Mapping[str, str]) -> None:
        self._endpoints = dict(sorted(endpoints.items()))

    async def Get(
        self,
        request: GetApiEndpointRequest,
        context: ServicerContext[GetApiEndpointRequest, ApiEndpoint],
    ) -> ApiEndpoint:
        id_ = valid_id(request.api_endpoint_id, "api_endpoint_id")
        address = self._endpoints.get(id_)
        if address is None:
            raise EndpointNotFound
        return ApiEndpoint(id=id_, address=address)

    async def List(
        self,
        request: ListApiEndpointsRequest,
        context: ServicerContext[ListApiEndpointsRequest, ListApiEndpointsResponse],
    ) -> ListApiEndpointsResponse:
        """All on one page: the SDKs read no other."""
        return ListApiEndpointsResponse(
            endpoints=[ApiEndpoint(id=id_, address=at) for id_, at in self._endpoints.items()]
        )
