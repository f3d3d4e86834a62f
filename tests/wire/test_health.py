"""grpc.health.v1.Health, while the server serves; how it ends is in e2e/test_lifecycle.py."""

from typing import Any

import pytest
from grpc import StatusCode
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from support.client import Client, refused

SERVICES = [
    "",
    "opservice.readiness",
    "yandex.cloud.operation.OperationService",
    "yandex.cloud.endpoint.ApiEndpointService",
    "google.longrunning.Operations",
    "opservice.v1.ProducerService",
    "opservice.v1.OperationRecordService",
]


def call(client: Client, method: str, service: str) -> Any:
    kind = client.channel.unary_unary if method == "Check" else client.channel.unary_stream
    stub = kind(
        f"/grpc.health.v1.Health/{method}",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    return stub(HealthCheckRequest(service=service))


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_is_serving(client: Client, service: str) -> None:
    assert call(client, "Check", service).status == HealthCheckResponse.SERVING


def test_the_health_of_an_unknown_service_is_not_found(client: Client) -> None:
    with refused() as refusal:
        call(client, "Check", "no.such.Service")

    assert refusal.code == StatusCode.NOT_FOUND
    assert refusal.reason == "SERVICE_UNKNOWN"


def test_who_watches_an_unknown_service_is_told_that_it_is_unknown(client: Client) -> None:
    watch = call(client, "Watch", "no.such.Service")

    assert next(watch).status == HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


def test_one_who_stops_watching_takes_nothing_from_the_others(client: Client) -> None:
    leaving, staying = call(client, "Watch", ""), call(client, "Watch", "")
    assert next(leaving).status == next(staying).status == HealthCheckResponse.SERVING

    leaving.cancel()

    assert call(client, "Check", "").status == HealthCheckResponse.SERVING
    assert staying.is_active()
    staying.cancel()


def test_a_method_of_a_newer_library_is_not_served(client: Client) -> None:
    listing: Any = client.channel.unary_unary(
        "/grpc.health.v1.Health/List", request_serializer=HealthCheckRequest.SerializeToString
    )

    with refused() as refusal:
        listing(HealthCheckRequest())

    assert refusal.code == StatusCode.UNIMPLEMENTED
