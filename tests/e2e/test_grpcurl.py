"""The real grpcurl, through reflection: nobody gives it a .proto file."""

import base64
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyPb
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo, QuotaFailure
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.demo.v1.container_registry_pb2 import (
    CreateRegistryMetadata,
    Registry,
)
from support.certificates import Authority
from support.client import Client, packed
from support.descriptors import make_descriptor_set, pack_ship
from support.server import PATIENCE, ServerProcess, serving
from support.tools import require_tool

SERVICES = [
    "google.longrunning.Operations",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "opservice.v1.OperationRecordService",
    "opservice.v1.ProducerService",
    "yandex.cloud.endpoint.ApiEndpointService",
    "yandex.cloud.operation.OperationService",
]
GET = "yandex.cloud.operation.OperationService/Get"
CANCEL = "yandex.cloud.operation.OperationService/Cancel"


@dataclass(frozen=True)
class Grpcurl:
    """grpcurl against one server; `security` is how it reaches it."""

    program: str
    security: list[str]
    server: ServerProcess
    client: Client

    def run(self, *arguments: str, data: Any = None) -> subprocess.CompletedProcess[str]:
        """`grpcurl … ADDRESS arguments`."""
        given = [] if data is None else ["-d", json.dumps(data)]
        return subprocess.run(
            [self.program, *self.security, *given, self.server.address, *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def __call__(self, *arguments: str, data: Any = None) -> str:
        process = self.run(*arguments, data=data)
        assert process.returncode == 0, process.stderr
        return process.stdout

    def json(self, method: str, **data: Any) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self(method, data=data))
        return answer


@pytest.fixture(scope="module")
def ships(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_descriptor_set(tmp_path_factory.mktemp("ships"))


@pytest.fixture(scope="module", params=["plaintext", "TLS"])
def grpcurl(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    authority: Authority,
    ships: Path,
) -> Iterator[Grpcurl]:
    program = require_tool(
        "grpcurl", "go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest"
    )
    directory = tmp_path_factory.mktemp("grpcurl")
    settings: dict[str, Any] = {"descriptor_set": [ships]}
    security, trusted = ["-plaintext"], None
    if request.param == "TLS":
        pair = authority.issue()
        settings |= {"tls_cert": pair.certificate, "tls_key": pair.key}
        security = ["-cacert", str(authority.certificate)]
        trusted = authority.certificate.read_bytes()
    with serving(directory, f"sqlite:///{directory}/a.db", **settings) as server:
        client = Client(server.channel(root_certificates=trusted))
        yield Grpcurl(program, security, server, client)


def test_list_names_every_service(grpcurl: Grpcurl) -> None:
    assert grpcurl("list").split() == SERVICES


def test_list_of_a_service_names_its_methods(grpcurl: Grpcurl) -> None:
    assert grpcurl("list", "yandex.cloud.operation.OperationService").split() == [
        "yandex.cloud.operation.OperationService.Cancel",
        "yandex.cloud.operation.OperationService.Get",
    ]


def test_describe_shows_everything(grpcurl: Grpcurl) -> None:
    described = grpcurl("describe")

    for service in SERVICES:
        assert f"{service} is a service" in described


@pytest.mark.parametrize("service", SERVICES)
def test_describe_shows_a_service(grpcurl: Grpcurl, service: str) -> None:
    assert f"service {service.rpartition('.')[2]} {{" in grpcurl("describe", service)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("yandex.cloud.operation.Operation", ".google.protobuf.Any metadata = 7;"),
        ("yandex.cloud.operation.GetOperationRequest", "(.yandex.cloud.required) = true"),
        ("yandex.cloud.operation.OperationService.Get", "/operations/{operation_id}"),
        ("opservice.v1.StartRequest", ".google.protobuf.Duration lease = 7;"),
        ("opservice.v1.CancelPolicy", "COOPERATIVE = 2;"),
        ("opservice.demo.v1.Registry", "string name = 3;"),
        ("google.rpc.ErrorInfo", "string reason = 1;"),
        ("google.longrunning.Operation", "string name = 1;"),
        ("grpc.reflection.v1.ServerReflectionRequest", "string list_services = 7;"),
        ("far.away.v1.Ship", ".far.away.v1.Color color = 2;"),
    ],
)
def test_describe_shows_a_type(grpcurl: Grpcurl, name: str, line: str) -> None:
    assert line in grpcurl("describe", name)


def test_get_prints_an_operation(grpcurl: Grpcurl) -> None:
    id_ = grpcurl.client.started(description="Создать реестр", created_by="ajeuser")

    operation = grpcurl.json(GET, operation_id=id_)

    assert operation["id"] == id_
    assert operation["description"] == "Создать реестр"
    assert operation["createdBy"] == "ajeuser"
    assert operation["createdAt"].endswith("Z")
    assert "done" not in operation


def test_get_prints_known_types_as_json(grpcurl: Grpcurl) -> None:
    metadata = packed(CreateRegistryMetadata(registry_id="crp1"))
    response = packed(Registry(id="crp1", status=Registry.ACTIVE, labels={"team": "a"}))
    id_ = grpcurl.client.started(metadata=metadata)
    grpcurl.client.complete(id_, response=response)

    operation = grpcurl.json(GET, operation_id=id_)

    assert operation["done"]
    assert operation["metadata"] == {
        "@type": "type.googleapis.com/opservice.demo.v1.CreateRegistryMetadata",
        "registryId": "crp1",
    }
    assert operation["response"] == {
        "@type": "type.googleapis.com/opservice.demo.v1.Registry",
        "id": "crp1",
        "status": "ACTIVE",
        "labels": {"team": "a"},
    }


def test_get_prints_googles_types_as_json(grpcurl: Grpcurl) -> None:
    metadata = packed(ErrorInfo(reason="BUSY", domain="registry", metadata={"a": "b"}))
    quota = QuotaFailure(violations=[QuotaFailure.Violation(subject="folder:1")])
    id_ = grpcurl.client.started(metadata=metadata)
    grpcurl.client.fail(id_, Status(code=Code.RESOURCE_EXHAUSTED, details=[packed(quota)]))

    operation = grpcurl.json(GET, operation_id=id_)

    assert operation["metadata"]["metadata"] == {"a": "b"}
    (detail,) = operation["error"]["details"]
    assert detail["violations"] == [{"subject": "folder:1"}]


def test_get_prints_types_of_a_descriptor_set_as_json(grpcurl: Grpcurl, ships: Path) -> None:
    id_ = grpcurl.client.started(metadata=pack_ship(ships, "Beagle"))

    assert grpcurl.json(GET, operation_id=id_)["metadata"] == {
        "@type": "type.googleapis.com/far.away.v1.Ship",
        "name": "Beagle",
        "color": "GREEN",
    }


def test_get_prints_an_operation_even_when_a_type_is_unknown(grpcurl: Grpcurl) -> None:
    payload = AnyPb(type_url="type.googleapis.com/never.heard.Of", value=b"\x0a\x01x")
    id_ = grpcurl.client.started(metadata=payload)

    operation = grpcurl.json(GET, operation_id=id_)

    assert operation["id"] == id_
    assert base64.b64encode(b"\x0a\x01x").decode() in json.dumps(operation["metadata"])


def test_cancel_cancels(grpcurl: Grpcurl) -> None:
    id_ = grpcurl.client.started()

    operation = grpcurl.json(CANCEL, operation_id=id_)

    assert operation["done"]
    assert operation["error"]["code"] == Code.CANCELLED
    assert operation["error"]["details"][0]["reason"] == "OPERATION_CANCELLED"
    assert grpcurl.client.get(id_).error.code == Code.CANCELLED


def test_an_error_is_printed_with_its_details(grpcurl: Grpcurl) -> None:
    process = grpcurl.run(GET, data={"operation_id": "nowhere"})

    assert process.returncode == 64 + Code.NOT_FOUND
    assert "Message: Operation nowhere not found" in process.stderr
    assert '"reason": "OPERATION_NOT_FOUND"' in process.stderr


def test_start_takes_an_any_written_as_json(grpcurl: Grpcurl) -> None:
    metadata = {"@type": "type.googleapis.com/far.away.v1.Ship", "name": "Fram", "age": "60s"}

    started = grpcurl.json(
        "opservice.v1.ProducerService/Start", description="sail", lease=None, metadata=metadata
    )

    assert started["operation"]["metadata"] == metadata


def test_an_incomplete_descriptor_set_is_a_refusal_to_start(
    sqlite_url: str, tmp_path: Path
) -> None:
    incomplete = make_descriptor_set(tmp_path, include_imports=False)
    server = ServerProcess(tmp_path, sqlite_url, descriptor_set=[incomplete])

    assert server.expect_refusal() == 1
    assert f"opservice: the descriptor set {incomplete} is incomplete" in server.stderr
    assert "Traceback" not in server.stderr
