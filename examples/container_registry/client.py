"""Drives the server with the unmodified Yandex Cloud SDK, and prints what it sees."""

from __future__ import annotations

import argparse
import time
import uuid
from pathlib import Path

from google.protobuf.empty_pb2 import Empty
from yandex.cloud.containerregistry.v1.image_service_pb2 import (
    DeleteImageMetadata,
    DeleteImageRequest,
    ListImagesRequest,
)
from yandex.cloud.containerregistry.v1.image_service_pb2_grpc import ImageServiceStub
from yandex.cloud.containerregistry.v1.registry_pb2 import Registry
from yandex.cloud.containerregistry.v1.registry_service_pb2 import (
    CreateRegistryMetadata,
    CreateRegistryRequest,
)
from yandex.cloud.containerregistry.v1.registry_service_pb2_grpc import RegistryServiceStub
from yandex.cloud.containerregistry.v1.scanner_pb2 import ScanResult
from yandex.cloud.containerregistry.v1.scanner_service_pb2 import ScanMetadata, ScanRequest
from yandex.cloud.containerregistry.v1.scanner_service_pb2_grpc import ScannerServiceStub
from yandex.cloud.operation.operation_service_pb2 import (
    CancelOperationRequest,
    GetOperationRequest,
)
from yandex.cloud.operation.operation_service_pb2_grpc import OperationServiceStub
from yandexcloud import SDK  # type: ignore[attr-defined] # it has no __all__
from yandexcloud.operations import OperationError

TIMEOUT = 120.0
"""Seconds to wait for an operation. Past it the SDK answers with no result, and raises nothing."""


def drive(sdk: SDK, name: str) -> None:
    registries = sdk.client(RegistryServiceStub)
    images = sdk.client(ImageServiceStub)
    operations = sdk.client(OperationServiceStub)
    create = CreateRegistryRequest(folder_id="b1gexample", name=name)
    key = (("idempotency-key", str(uuid.uuid4())),)

    first = registries.Create(create, metadata=key)
    print(f"create: operation {first.id}, done={first.done}")
    made = sdk.wait_operation_and_get_result(
        first, Registry, CreateRegistryMetadata, timeout=TIMEOUT
    )
    assert not isinstance(made, OperationError)  # it is raised, whatever the signature says
    assert made.response is not None
    registry = made.response
    print(f"create: registry {registry.id}, {Registry.Status.Name(registry.status)}")

    again = registries.Create(create, metadata=key)
    print(f"create, the same idempotency key: operation {again.id}, done={again.done}")

    taken = registries.Create(create)
    try:
        sdk.wait_operation_and_get_result(taken, Registry, timeout=TIMEOUT)
    except OperationError:
        error = operations.Get(GetOperationRequest(operation_id=taken.id)).error
        print(f"create, another key: operation {taken.id}, error {error.code}: {error.message}")

    image, other, *_ = images.List(ListImagesRequest(registry_id=registry.id)).images
    deleting = images.Delete(DeleteImageRequest(image_id=image.id))
    sdk.wait_operation_and_get_result(deleting, Empty, DeleteImageMetadata, timeout=TIMEOUT)
    left = images.List(ListImagesRequest(registry_id=registry.id)).images
    print(f"delete image: {image.id} is gone, {len(left)} left")

    scan = sdk.client(ScannerServiceStub).Scan(ScanRequest(image_id=other.id))
    time.sleep(1)
    cancelling = operations.Cancel(CancelOperationRequest(operation_id=scan.id))
    print(f"scan, cancelled: done={cancelling.done}, error {cancelling.error.code}")
    try:
        sdk.wait_operation_and_get_result(scan, ScanResult, ScanMetadata, timeout=TIMEOUT)
    except OperationError:
        error = operations.Get(GetOperationRequest(operation_id=scan.id)).error
        print(f"scan: operation {scan.id}, error {error.code}: {error.message}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Drives the server with the Yandex Cloud SDK.")
    parser.add_argument("--endpoint", default="127.0.0.1:50051", help="opservice, HOST:PORT")
    parser.add_argument("--ca", type=Path, default=Path("server.pem"), help="PEM to trust")
    parser.add_argument("--user", default="alice", help="stands for the IAM token")
    parser.add_argument("--name", default="team-images", help="of the registry")
    options = parser.parse_args()
    sdk = SDK(
        iam_token=options.user,
        endpoint=options.endpoint,
        root_certificates=options.ca.read_bytes(),
    )
    drive(sdk, options.name)


if __name__ == "__main__":
    main()
