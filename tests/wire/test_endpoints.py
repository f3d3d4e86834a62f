"""yandex.cloud.endpoint.ApiEndpointService: what the Yandex SDKs find the server by."""

from pathlib import Path
from typing import Any

import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc import StatusCode

from opservice._proto.yandex.cloud.endpoint.api_endpoint_service_pb2 import (
    GetApiEndpointRequest,
    ListApiEndpointsRequest,
)
from support.client import Client, refused
from support.server import ServerProcess, serving


def listed(client: Client) -> dict[str, str]:
    answer = client.endpoints.List(ListApiEndpointsRequest())
    assert answer.next_page_token == ""
    return {endpoint.id: endpoint.address for endpoint in answer.endpoints}


def test_the_server_lists_itself_at_the_address_that_it_listens_on(server: ServerProcess) -> None:
    assert listed(server.client) == {"iam": server.address, "operation": server.address}


def test_a_small_page_is_asked_for_and_everything_is_given(client: Client) -> None:
    """The SDKs read one page only."""
    assert len(client.endpoints.List(ListApiEndpointsRequest(page_size=1)).endpoints) == 2


def test_get_gives_the_endpoint(server: ServerProcess) -> None:
    request = GetApiEndpointRequest(api_endpoint_id="operation")

    endpoint = server.client.endpoints.Get(request)

    assert (endpoint.id, endpoint.address) == ("operation", server.address)


def test_get_of_an_unknown_endpoint_is_not_found(client: Client) -> None:
    with refused() as refusal:
        client.endpoints.Get(GetApiEndpointRequest(api_endpoint_id="compute"))

    assert refusal.code == StatusCode.NOT_FOUND
    assert refusal.reason == "ENDPOINT_NOT_FOUND"
    assert refusal.one(ErrorInfo).domain == "opservice"


@pytest.mark.parametrize("id_", ["", "x" * 129, "a\nb"])
def test_get_of_a_bad_endpoint_id_is_an_invalid_argument(client: Client, id_: str) -> None:
    with refused() as refusal:
        client.endpoints.Get(GetApiEndpointRequest(api_endpoint_id=id_))

    assert refusal.code == StatusCode.INVALID_ARGUMENT
    assert refusal.fields == ["api_endpoint_id"]


def test_configured_endpoints_are_listed_and_the_advertised_address_given(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "advertise": "operations.example.com:443",
        "endpoint": ["container-registry=10.0.0.7:443", "iam=iam.example.com:443"],
    }
    with serving(tmp_path, f"sqlite:///{tmp_path}/a.db", **settings) as server:
        assert listed(server.client) == {
            "container-registry": "10.0.0.7:443",
            "iam": "iam.example.com:443",
            "operation": "operations.example.com:443",
        }


def test_an_address_that_leads_nowhere_is_warned_of(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    with serving(tmp_path, url, listen="0.0.0.0:0", allow_anonymous=True) as server:
        warned = [line["event"] for line in server.log(level="warning")]

        assert [event for event in warned if event.startswith("set --advertise")]
