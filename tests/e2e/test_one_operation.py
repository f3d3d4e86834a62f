"""google-api-core, grpcurl and the yandexcloud SDK at one and the same operation."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.api_core import exceptions, operation, operations_v1
from google.api_core.future.polling import DEFAULT_POLLING
from google.longrunning.operations_proto_pb2 import Operation as GoogleOperation
from google.protobuf import json_format
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from yandex.cloud.operation.operation_pb2 import Operation as YandexOperation
from yandex.cloud.operation.operation_service_pb2 import (
    CancelOperationRequest,
    GetOperationRequest,
)
from yandex.cloud.operation.operation_service_pb2_grpc import OperationServiceStub
from yandexcloud import SDK  # type: ignore[attr-defined] # it has no __all__
from yandexcloud.operations import OperationError

from opservice._proto.opservice.demo.v1.container_registry_pb2 import (
    CreateRegistryMetadata,
    Registry,
)
from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy
from support.certificates import Authority
from support.client import TOKEN, Client, packed, refused
from support.server import PATIENCE, serving
from support.tools import require_tool

# The SDK's own doing, within its waiter.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated class RetryInterceptor")

PARENT = "folders/b1g"
METADATA = CreateRegistryMetadata(registry_id="crp1")
REGISTRY = Registry(id="crp1", name="images", labels={"team": "a"})
ERROR = Status(
    code=Code.ALREADY_EXISTS,
    message="the name is taken — оно занято",
    details=[packed(ErrorInfo(reason="NAME_TAKEN", domain="registry"))],
)

# Much of google-api-core is untyped.
new_client: Callable[[grpc.Channel], Any] = operations_v1.OperationsClient
from_gapic: Callable[..., Any] = operation.from_gapic
polling: Any = DEFAULT_POLLING.with_delay(initial=0.02, maximum=0.1).with_timeout(PATIENCE)


@dataclass(frozen=True)
class Site:
    """One server, reached by a producer and by three clients over TLS."""

    producer: Client
    google: Any
    sdk: SDK
    grpcurl_command: list[str]
    address: str

    def started(self, **fields: Any) -> str:
        given = {"parent": PARENT, "metadata": packed(METADATA), "lease_token": TOKEN, **fields}
        return self.producer.started(**given)

    @property
    def yandex(self) -> Any:
        return self.sdk.client(OperationServiceStub)

    def future(self, id_: str) -> Any:
        """google-api-core's, of the operation."""
        return from_gapic(
            self.google.get_operation(f"operations/{id_}"),
            self.google,
            Registry,
            metadata_type=CreateRegistryMetadata,
            polling=polling,
        )

    def grpcurl(self, method: str, **request: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.run_grpcurl(method, "-d", json.dumps(request)))
        return answer

    def run_grpcurl(self, what: str, *options: str) -> str:
        done = subprocess.run(
            [*self.grpcurl_command, *options, self.address, *what.split()],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def seen_by_yandex(self, id_: str) -> YandexOperation:
        seen: YandexOperation = self.yandex.Get(GetOperationRequest(operation_id=id_))
        return seen

    def seen_by_google(self, id_: str) -> GoogleOperation:
        seen: GoogleOperation = self.google.get_operation(f"operations/{id_}")
        return seen

    def seen_by_grpcurl(self, id_: str) -> tuple[YandexOperation, GoogleOperation]:
        """Through either service."""
        get = "yandex.cloud.operation.OperationService/Get"
        get_operation = "google.longrunning.Operations/GetOperation"
        return (
            json_format.ParseDict(self.grpcurl(get, operation_id=id_), YandexOperation()),
            json_format.ParseDict(
                self.grpcurl(get_operation, name=f"operations/{id_}"), GoogleOperation()
            ),
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Site]:
    program = require_tool(
        "grpcurl", "go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest"
    )
    directory, pair = tmp_path_factory.mktemp("one-operation"), authority.issue()
    tls: dict[str, Any] = {"tls_cert": pair.certificate, "tls_key": pair.key}
    trusted = authority.certificate.read_bytes()
    with serving(directory, f"sqlite:///{directory}/a.db", **tls) as server:
        yield Site(
            producer=Client(server.channel(root_certificates=trusted)),
            google=new_client(server.channel(root_certificates=trusted)),
            sdk=SDK(iam_token="any", endpoint=server.address, root_certificates=trusted),
            grpcurl_command=[program, "-cacert", str(authority.certificate)],
            address=server.address,
        )


def leave(site: Site, id_: str) -> None:
    """It runs on."""


def complete(site: Site, id_: str) -> None:
    site.producer.complete(id_, lease_token=TOKEN, response=packed(REGISTRY))


def fail(site: Site, id_: str) -> None:
    site.producer.fail(id_, ERROR, lease_token=TOKEN)


def test_grpcurl_finds_the_methods_of_google_by_reflection(site: Site) -> None:
    described = site.run_grpcurl("describe google.longrunning.Operations")

    assert re.findall(r"rpc (\w+)", described) == [
        "CancelOperation",
        "DeleteOperation",
        "GetOperation",
        "ListOperations",
        "WaitOperation",
    ]


@pytest.mark.parametrize("end", [leave, complete, fail], ids=["running", "completed", "failed"])
def test_all_see_the_same_operation(site: Site, end: Callable[[Site, str], None]) -> None:
    id_ = site.started(description="Создать реестр")
    end(site, id_)

    yandex, google = site.seen_by_yandex(id_), site.seen_by_google(id_)

    assert google == GoogleOperation(
        name=f"{PARENT}/operations/{yandex.id}",
        metadata=yandex.metadata if yandex.HasField("metadata") else None,
        done=yandex.done,
        error=yandex.error if yandex.HasField("error") else None,
        response=yandex.response if yandex.HasField("response") else None,
    )
    assert (yandex.id, yandex.metadata) == (id_, packed(METADATA))
    assert site.seen_by_grpcurl(id_) == (yandex, google)


def test_all_get_the_same_response(site: Site) -> None:
    id_ = site.started()
    future, operation = site.future(id_), site.seen_by_yandex(id_)
    assert not future.done()
    assert not operation.done

    complete(site, id_)

    result: Any = site.sdk.wait_operation_and_get_result(
        operation,
        response_type=Registry,
        meta_type=CreateRegistryMetadata,
        timeout=PATIENCE,
    )
    assert result.response == future.result() == REGISTRY
    assert result.meta == future.metadata == METADATA


def test_the_sdk_and_grpcurl_see_what_google_cancelled(site: Site) -> None:
    id_ = site.started()

    assert site.future(id_).cancel()

    with pytest.raises(OperationError, match=f"Error code: {Code.CANCELLED}."):
        site.sdk.wait_operation_and_get_result(site.seen_by_yandex(id_), timeout=PATIENCE)
    assert site.seen_by_grpcurl(id_)[0].error.code == Code.CANCELLED


@pytest.mark.parametrize(
    ("method", "request_of"),
    [
        ("yandex.cloud.operation.OperationService/Cancel", lambda id_: {"operation_id": id_}),
        (
            "google.longrunning.Operations/CancelOperation",
            lambda id_: {"name": f"{PARENT}/operations/{id_}"},
        ),
    ],
    ids=["Cancel", "CancelOperation"],
)
def test_google_and_the_sdk_see_what_grpcurl_cancelled(
    site: Site, method: str, request_of: Callable[[str], dict[str, str]]
) -> None:
    id_ = site.started()
    future = site.future(id_)
    assert not future.cancelled()

    site.grpcurl(method, **request_of(id_))

    assert future.cancelled()
    with pytest.raises(exceptions.Cancelled):
        future.result()
    assert site.seen_by_yandex(id_).error.code == Code.CANCELLED


def test_google_and_grpcurl_see_what_the_sdk_cancelled(site: Site) -> None:
    id_ = site.started()
    future = site.future(id_)

    site.yandex.Cancel(CancelOperationRequest(operation_id=id_))

    assert future.cancelled()
    assert site.seen_by_grpcurl(id_)[1].error.code == Code.CANCELLED


def test_none_takes_a_cancel_that_was_only_asked_for_as_the_end(site: Site) -> None:
    id_ = site.started(cancel_policy=CancelPolicy.COOPERATIVE)
    future = site.future(id_)
    site.yandex.Cancel(CancelOperationRequest(operation_id=id_))
    operation = site.seen_by_yandex(id_)
    assert not operation.done
    assert not future.done()
    assert not future.cancelled()

    complete(site, id_)

    result: Any = site.sdk.wait_operation_and_get_result(
        operation, response_type=Registry, timeout=PATIENCE
    )
    assert result.response == future.result() == REGISTRY
    assert site.seen_by_grpcurl(id_)[1].response == packed(REGISTRY)


def test_none_sees_what_google_deleted(site: Site) -> None:
    id_ = site.started()
    complete(site, id_)

    site.google.delete_operation(f"{PARENT}/operations/{id_}")

    with refused() as refusal:
        site.seen_by_yandex(id_)
    assert refusal.code == StatusCode.NOT_FOUND
    with pytest.raises(exceptions.NotFound):
        site.seen_by_google(id_)
    with pytest.raises(AssertionError, match=f"Operation {id_} not found"):
        site.seen_by_grpcurl(id_)
