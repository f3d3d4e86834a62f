"""The unmodified yandexcloud SDK follows operations that another process ends."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from yandex.cloud.containerregistry.v1.registry_pb2 import Registry
from yandex.cloud.containerregistry.v1.registry_service_pb2 import (
    CreateRegistryMetadata,
    DeleteRegistryMetadata,
)
from yandex.cloud.operation.operation_pb2 import Operation
from yandex.cloud.operation.operation_service_pb2 import (
    CancelOperationRequest,
    GetOperationRequest,
)
from yandex.cloud.operation.operation_service_pb2_grpc import OperationServiceStub
from yandexcloud import SDK  # type: ignore[attr-defined] # it has no __all__
from yandexcloud.operations import OperationError

from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy
from opservice._proto.opservice.v1.producer_service_pb2 import CompleteRequest, FailRequest
from support.certificates import Authority
from support.client import TOKEN, Client, packed, refused
from support.server import PATIENCE, ServerProcess, clean_environment, eventually, serving

# The SDK's own doing, within its waiter.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated class RetryInterceptor")

METADATA = CreateRegistryMetadata(registry_id="crp1")
REGISTRY = Registry(id="crp1", folder_id="b1g", name="images", labels={"team": "a"})
PRODUCER = "/opservice.v1.ProducerService/"
OPERATIONS = "/yandex.cloud.operation.OperationService/"

# Bytes in, bytes out: it needs no generated code.
_CALL = """
import sys, grpc
address, authority, method, request = sys.argv[1:]
credentials = grpc.ssl_channel_credentials(open(authority, "rb").read())
grpc.secure_channel(address, credentials).unary_unary(method)(bytes.fromhex(request), timeout=60)
"""


@dataclass(frozen=True)
class Site:
    """A server, the SDK that found it, and a producer."""

    server: ServerProcess
    authority: Authority
    sdk: SDK
    threads: ThreadPoolExecutor
    producer: Client

    @property
    def operations(self) -> Any:
        """The SDK's stub on the channel that it discovered."""
        return self.sdk.client(OperationServiceStub)

    def is_reachable(self) -> bool:
        try:
            self.producer.started()
        except grpc.RpcError:
            return False
        return True

    def started(self, metadata: Message = METADATA, **fields: Any) -> Operation:
        id_ = self.producer.started(metadata=packed(metadata), lease_token=TOKEN, **fields)
        operation: Operation = self.operations.Get(GetOperationRequest(operation_id=id_))
        return operation

    def follow(self, operation: Operation, response_type: Any = Registry) -> Future[Any]:
        """The SDK waiting for the operation: it has asked more than once and goes on asking."""
        waiter = self.threads.submit(
            self.sdk.wait_operation_and_get_result,
            operation,
            response_type=response_type,
            meta_type=CreateRegistryMetadata,
            timeout=PATIENCE,
        )
        # One Get is from `started`.
        wanted = {"method": f"{OPERATIONS}Get", "operation_id": operation.id}
        eventually(lambda: len(self.server.log(**wanted)) > 1)
        assert not waiter.done()
        return waiter

    def elsewhere(self, method: str, request: Message) -> None:
        """Another process makes this call."""
        trusted = str(self.authority.certificate)
        arguments = [self.server.address, trusted, method, request.SerializeToString().hex()]
        command = [sys.executable, "-c", _CALL, *arguments]
        subprocess.run(command, env=clean_environment(), check=True, timeout=PATIENCE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Site]:
    directory, pair = tmp_path_factory.mktemp("sdk"), authority.issue()
    tls: dict[str, Any] = {"tls_cert": pair.certificate, "tls_key": pair.key}
    trusted = authority.certificate.read_bytes()
    with (
        serving(directory, f"sqlite:///{directory}/a.db", log_level="debug", **tls) as server,
        ThreadPoolExecutor() as threads,
    ):
        sdk = SDK(iam_token="any", endpoint=server.address, root_certificates=trusted)
        producer = Client(server.channel(root_certificates=trusted))
        yield Site(server, authority, sdk, threads, producer)


def test_an_sdk_with_an_oauth_token_is_told_what_to_give(site: Site) -> None:
    trusted = site.authority.certificate.read_bytes()
    with pytest.deprecated_call():
        sdk = SDK(token="AQAD-any", endpoint=site.server.address, root_certificates=trusted)

    with pytest.raises(
        grpc.RpcError, match=r"issues no IAM tokens: give the SDK a token \(iam_token\)"
    ):
        sdk.client(OperationServiceStub).Get(GetOperationRequest(operation_id="any"))


def test_the_sdk_gets_the_response_and_the_metadata(site: Site) -> None:
    operation = site.started()
    waiter = site.follow(operation)

    request = CompleteRequest(
        operation_id=operation.id, lease_token=TOKEN, response=packed(REGISTRY)
    )
    site.elsewhere(f"{PRODUCER}Complete", request)

    result = waiter.result(PATIENCE)
    assert result.response == REGISTRY
    assert result.meta == METADATA
    assert result.operation.id == operation.id


def test_the_sdk_raises_the_error_of_a_failed_operation(site: Site) -> None:
    operation = site.started()
    waiter = site.follow(operation)

    info = ErrorInfo(reason="NAME_TAKEN", domain="registry")
    error = Status(code=Code.ALREADY_EXISTS, message="the name is taken", details=[packed(info)])
    request = FailRequest(operation_id=operation.id, lease_token=TOKEN, error=error)
    site.elsewhere(f"{PRODUCER}Fail", request)

    with pytest.raises(OperationError, match="the name is taken") as caught:
        waiter.result(PATIENCE)
    assert f"Error code: {Code.ALREADY_EXISTS}." in str(caught.value)
    assert "NAME_TAKEN" in str(caught.value)
    assert caught.value.operation_result.meta == METADATA


def test_the_sdk_raises_when_the_operation_is_cancelled(site: Site) -> None:
    operation = site.started()
    waiter = site.follow(operation)

    site.elsewhere(f"{OPERATIONS}Cancel", CancelOperationRequest(operation_id=operation.id))

    with pytest.raises(OperationError, match=f"Error code: {Code.CANCELLED}."):
        waiter.result(PATIENCE)


def test_the_sdk_goes_on_waiting_while_a_cancel_is_under_way(site: Site) -> None:
    operation = site.started(cancel_policy=CancelPolicy.COOPERATIVE)
    site.operations.Cancel(CancelOperationRequest(operation_id=operation.id))
    waiter = site.follow(operation)

    request = CompleteRequest(
        operation_id=operation.id, lease_token=TOKEN, response=packed(REGISTRY)
    )
    site.elsewhere(f"{PRODUCER}Complete", request)

    assert waiter.result(PATIENCE).response == REGISTRY


def test_the_sdk_takes_an_operation_without_a_response(site: Site) -> None:
    operation = site.started(DeleteRegistryMetadata(registry_id="crp1"))
    site.producer.complete(operation.id, lease_token=TOKEN)

    result: Any = site.sdk.wait_operation_and_get_result(
        operation, response_type=Empty, meta_type=DeleteRegistryMetadata, timeout=PATIENCE
    )

    assert result.response is None
    assert result.meta == DeleteRegistryMetadata(registry_id="crp1")


def test_the_sdk_says_at_once_that_an_operation_is_unknown(site: Site) -> None:
    with refused() as refusal:
        site.sdk.wait_operation_and_get_result(Operation(id="nowhere"), timeout=PATIENCE)

    assert refusal.message == "Operation nowhere not found"


def test_the_sdk_waits_through_a_crash_of_the_server(site: Site) -> None:
    operation = site.started()
    waiter = site.follow(operation)

    site.server.kill()
    site.server.start()
    eventually(site.is_reachable)
    site.producer.complete(operation.id, lease_token=TOKEN, response=packed(REGISTRY))

    assert waiter.result(PATIENCE).response == REGISTRY
