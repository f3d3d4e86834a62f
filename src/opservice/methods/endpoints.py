"""yandex.cloud.endpoint.ApiEndpointService: how Yandex SDKs find this server and its neighbours."""

from __future__ import annotations

from collections.abc import Mapping

from opservice._proto.yandex.cloud.endpoint.api_endpoint_pb2 import ApiEndpoint
from opservice._proto.yandex.cloud.endpoint.api_endpoint_service_pb2 import (
    DESCRIPTOR,
    GetApiEndpointRequest,
    ListApiEndpointsRequest,
    ListApiEndpointsResponse,
)
from opservice.domain.errors import EndpointNotFound
from opservice.methods.call import Call
from opservice.methods.registry import Method, methods_of
from opservice.methods.validation import valid_id

OWN_ENDPOINTS = ("iam", "operation")
"""Served at this server's own address. SDKs want `iam` listed even when they never call it."""


class ApiEndpointService:
    """`endpoints` holds addresses (HOST:PORT) by id."""

    def __init__(self, endpoints: Mapping[str, str]) -> None:
        self._endpoints = dict(sorted(endpoints.items()))

    def methods(self) -> tuple[Method, ...]:
        """As they are served."""
        return methods_of(DESCRIPTOR.services_by_name["ApiEndpointService"], self)

    async def Get(self, request: GetApiEndpointRequest, call: Call) -> ApiEndpoint:
        id_ = valid_id(request.api_endpoint_id, "api_endpoint_id")
        address = self._endpoints.get(id_)
        if address is None:
            raise EndpointNotFound
        return ApiEndpoint(id=id_, address=address)

    async def List(self, request: ListApiEndpointsRequest, call: Call) -> ListApiEndpointsResponse:
        """All on one page: the SDKs read no other."""
        return ListApiEndpointsResponse(
            endpoints=[ApiEndpoint(id=id_, address=at) for id_, at in self._endpoints.items()]
        )
