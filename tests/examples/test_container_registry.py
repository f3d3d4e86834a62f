"""examples/container_registry with opservice, driven by the unmodified Yandex Cloud SDK."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from yandex.cloud.containerregistry.v1.image_pb2 import Image
from yandex.cloud.containerregistry.v1.image_service_pb2 import (
    DeleteImageMetadata,
    DeleteImageRequest,
    ListImagesRequest,
)
from yandex.cloud.containerregistry.v1.registry_pb2 import Registry
from yandex.cloud.containerregistry.v1.registry_service_pb2 import (
    CreateRegistryMetadata,
    CreateRegistryRequest,
    DeleteRegistryMetadata,
    DeleteRegistryRequest,
    GetRegistryRequest,
)
from yandex.cloud.containerregistry.v1.scanner_pb2 import ScanResult
from yandex.cloud.containerregistry.v1.scanner_service_pb2 import (
    GetScanResultRequest,
    ScanMetadata,
    ScanRequest,
)
from yandex.cloud.operation.operation_service_pb2 import (
    CancelOperationRequest,
    GetOperationRequest,
)

from examples.conftest import EXAMPLES, ProgramProcess, Setup, User, free_port, set_up, with_key
from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice._proto.opservice.v1.operation_record_service_pb2 import GetOperationRecordRequest
from support.client import packed, refused, unpacked
from support.server import PATIENCE, eventually
from support.tools import require_tool

# The SDK's own waiter is made of a class that the SDK has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*RetryInterceptor:DeprecationWarning")


def images_of(user: User, registry: Registry) -> list[Image]:
    return list(user.images.List(ListImagesRequest(registry_id=registry.id)).images)


def under_way(setup: Setup, operation_id: str) -> OperationRecord:
    """The record of an operation, once its work has reported that it is past its first step."""
    records = setup.records.records
    request = GetOperationRecordRequest(operation_id=operation_id)

    def look() -> OperationRecord | None:
        record = records.Get(request)
        assert not record.operation.done
        return record if record.progress.done else None

    found = eventually(look)
    assert found is not None
    return found


def test_a_registry_is_created_and_waited_for(brisk: Setup) -> None:
    user = brisk.user()

    operation = user.create("created")
    result = user.result(operation, Registry, CreateRegistryMetadata)

    assert not operation.done
    assert operation.description == "Create registry"
    assert result.response.id == result.meta.registry_id
    assert result.response.name == "created"
    assert result.response.status == Registry.ACTIVE
    assert user.registries.Get(GetRegistryRequest(registry_id=result.meta.registry_id)) == (
        result.response
    )
    assert user.get(operation).response == packed(result.response)


@pytest.mark.slow
def test_an_image_is_deleted(brisk: Setup) -> None:
    user = brisk.user()
    image, *others = images_of(user, registry := user.created("with-images"))

    operation = user.images.Delete(DeleteImageRequest(image_id=image.id))
    result = user.result(operation, Empty, DeleteImageMetadata)

    assert result.meta == DeleteImageMetadata(image_id=image.id)
    assert user.get(operation).response == packed(Empty())
    assert images_of(user, registry) == others


@pytest.mark.slow
def test_a_registry_is_deleted_once_its_images_are(brisk: Setup) -> None:
    user = brisk.user()
    registry = user.created("emptied")
    delete = DeleteRegistryRequest(registry_id=registry.id)

    refusal = user.error(user.registries.Delete(delete))
    for image in images_of(user, registry):
        user.result(user.images.Delete(DeleteImageRequest(image_id=image.id)))
    deleted = user.result(user.registries.Delete(delete), Empty, DeleteRegistryMetadata)

    assert refusal.code == Code.FAILED_PRECONDITION
    assert deleted.meta == DeleteRegistryMetadata(registry_id=registry.id)
    with refused() as gone:
        user.registries.Get(GetRegistryRequest(registry_id=registry.id))
    assert gone.code == grpc.StatusCode.NOT_FOUND


@pytest.mark.slow
def test_a_scan_ends_with_its_result(brisk: Setup) -> None:
    user = brisk.user()
    image = images_of(user, user.created("scanned"))[0]

    operation = user.scanner.Scan(ScanRequest(image_id=image.id))
    result = user.result(operation, ScanResult, ScanMetadata)

    assert result.response.id == result.meta.scan_result_id
    assert result.response.image_id == image.id
    assert result.response.status == ScanResult.READY
    found = user.scanner.Get(GetScanResultRequest(scan_result_id=result.response.id))
    assert found == result.response


@pytest.mark.slow
def test_a_scan_cancelled_half_way_is_cleaned_up(slow: Setup) -> None:
    user = slow.user()
    image = images_of(user, user.created("half-scanned"))[0]
    operation = user.scanner.Scan(ScanRequest(image_id=image.id))
    scan = GetScanResultRequest(
        scan_result_id=unpacked(operation.metadata, ScanMetadata).scan_result_id
    )
    progress = under_way(slow, operation.id).progress
    assert (progress.total, progress.unit) == (100, "packages")
    assert user.scanner.Get(scan).status == ScanResult.RUNNING

    cancelling = user.operations.Cancel(CancelOperationRequest(operation_id=operation.id))

    assert not cancelling.done
    assert cancelling.error.code == Code.CANCELLED
    assert user.error(operation).code == Code.CANCELLED
    with refused() as gone:
        user.scanner.Get(scan)
    assert gone.code == grpc.StatusCode.NOT_FOUND


@pytest.mark.slow
def test_a_repeated_create_gets_the_same_operation_and_registry(brisk: Setup) -> None:
    user = brisk.user()

    operation = user.create("repeated", key="repeated")
    meanwhile = user.create("repeated", key="repeated")
    registry = user.wait(operation, Registry)
    afterwards = user.create("repeated", key="repeated")

    assert meanwhile.id == afterwards.id == operation.id
    assert meanwhile.metadata == operation.metadata
    assert afterwards.done
    assert unpacked(afterwards.response, Registry) == registry


@pytest.mark.slow
def test_another_key_or_another_user_is_another_operation(brisk: Setup) -> None:
    first = brisk.user("alice").create("mine", key="first")
    other_key = brisk.user("alice").create("mine", key="second")
    other_user = brisk.user("bob").create("mine", key="first")

    assert len({first.id, other_key.id, other_user.id}) == 3
    assert first.created_by == other_key.created_by != other_user.created_by


@pytest.mark.slow
def test_a_key_is_refused_for_another_request(brisk: Setup) -> None:
    user = brisk.user()
    user.create("this", key="reused")

    with refused() as refusal:
        user.create("that", key="reused")

    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.slow
def test_a_taken_name_fails_the_operation_and_not_the_call(brisk: Setup) -> None:
    user = brisk.user()
    registry = user.created("taken")

    operation = user.create("taken")

    assert not operation.HasField("error")
    error = user.error(operation)
    assert error.code == Code.ALREADY_EXISTS
    assert error.message == "Registry taken already exists"
    assert user.registries.Get(GetRegistryRequest(registry_id=registry.id)) == registry


@pytest.mark.slow
def test_a_repeated_delete_gets_the_same_operation_though_nothing_is_left(brisk: Setup) -> None:
    user = brisk.user()
    request = DeleteImageRequest(image_id=images_of(user, user.created("deleted-twice"))[0].id)

    operation = user.images.Delete(request, metadata=with_key("deleted-twice"))
    user.result(operation)
    again = user.images.Delete(request, metadata=with_key("deleted-twice"))

    assert again == user.get(operation)
    with refused() as refusal:
        user.images.Delete(request)
    assert refusal.code == grpc.StatusCode.NOT_FOUND


@pytest.mark.slow
def test_what_is_wrong_with_a_request_starts_no_operation(brisk: Setup) -> None:
    user = brisk.user()

    with refused() as unknown_registry:
        user.registries.Delete(DeleteRegistryRequest(registry_id="crpunknown"))
    with refused() as unknown_image:
        user.scanner.Scan(ScanRequest(image_id="crdunknown"))
    with refused() as bad_name:
        user.create("No Such Name")
    with refused() as no_folder:
        user.registries.Create(CreateRegistryRequest(name="no-folder"))

    assert unknown_registry.code == unknown_image.code == grpc.StatusCode.NOT_FOUND
    assert unknown_registry.message == "Registry crpunknown not found"
    assert bad_name.code == no_folder.code == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.slow
def test_operations_are_polled_at_the_services_own_address(slow: Setup) -> None:
    operation = slow.user().create("polled")
    request = GetOperationRequest(operation_id=operation.id)

    polled, call = slow.at_the_example.Get.with_call(request)

    assert polled.id == operation.id
    assert polled.metadata == operation.metadata
    assert int(dict(call.initial_metadata() or ())["x-operation-poll-interval"]) >= 1
    eventually(lambda: slow.at_the_example.Get(request).done)


@pytest.mark.slow
def test_an_unknown_operation_is_refused_at_the_services_address_as_at_ours(slow: Setup) -> None:
    request = GetOperationRequest(operation_id="crrunknown")

    with refused() as ours:
        slow.records.get("crrunknown")
    with refused() as theirs:
        slow.at_the_example.Get(request)

    assert theirs.code == grpc.StatusCode.NOT_FOUND
    assert theirs.message == ours.message == "Operation crrunknown not found"
    assert theirs.reason == ours.reason == "OPERATION_NOT_FOUND"


@pytest.mark.slow
def test_an_operation_is_cancelled_at_the_services_own_address(slow: Setup) -> None:
    user = slow.user()
    image = images_of(user, user.created("cancelled-here"))[0]
    operation = user.scanner.Scan(ScanRequest(image_id=image.id))

    cancel = CancelOperationRequest(operation_id=operation.id)
    assert slow.at_the_example.Cancel(cancel).error.code == Code.CANCELLED

    assert user.error(operation).code == Code.CANCELLED


@pytest.mark.slow
def test_work_of_a_killed_service_is_aborted(tmp_path: Path) -> None:
    with set_up(tmp_path, pace=1, lease=2) as setup:
        user = setup.user()
        image = images_of(user, user.created("killed"))[0]
        scan = ScanRequest(image_id=image.id)
        operation = user.scanner.Scan(scan, metadata=with_key("killed"))
        under_way(setup, operation.id)

        setup.example.kill()

        error = user.error(operation)
        assert error.code == Code.ABORTED
        assert unpacked(error.details[0], ErrorInfo).reason == "LEASE_EXPIRED"


@pytest.mark.slow
def test_the_key_of_aborted_work_answers_with_the_aborted_operation(tmp_path: Path) -> None:
    with set_up(tmp_path, pace=3600, lease=1) as setup:
        operation = setup.user().create("tried-again", key="tried-again")
        setup.example.kill()
        setup.user().error(operation)

        setup.start()
        again = setup.user().create("tried-again", key="tried-again")

    assert again.id == operation.id
    assert again.error.code == Code.ABORTED


@pytest.mark.slow
def test_work_of_a_stopped_service_is_aborted_at_once(tmp_path: Path) -> None:
    with set_up(tmp_path, pace=3600, lease=3600, drain=0) as setup:
        operation = setup.user().create("stopped")

        assert setup.example.terminate() == 0

        error = setup.user().error(operation)
        assert error.code == Code.ABORTED
        assert error.message == "The service was stopped"


@pytest.mark.slow
def test_a_stopped_service_ends_the_work_that_it_can(tmp_path: Path) -> None:
    with set_up(tmp_path, pace=0.5, drain=60) as setup:
        operation = setup.user().create("drained")

        assert setup.example.terminate() == 0

        ended = setup.user().get(operation)
        assert ended.done
        assert unpacked(ended.response, Registry).status == Registry.ACTIVE


@pytest.mark.slow
def test_the_readmes_commands_print_what_it_says(tmp_path: Path) -> None:
    require_tool("openssl", "apt-get install openssl")
    directory = tmp_path / "container_registry"
    made_by_hand = shutil.ignore_patterns("*.pem", "*.key", "*.db*")
    shutil.copytree(EXAMPLES / directory.name, directory, ignore=made_by_hand)
    text = (directory / "README.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (expected,) = re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ports = {"50051": str(free_port()), "50052": str(free_port())}
    commands = [
        shlex.split(re.sub("|".join(ports), lambda found: ports[found[0]], line))
        for block in blocks
        for line in block.splitlines()
    ]
    started: list[ProgramProcess] = []

    def run(command: list[str]) -> ProgramProcess:
        started.append(ProgramProcess(command, tmp_path / f"{len(started)}.log", tmp_path))
        return started[-1]

    certificate, opservice, server, client = commands
    try:
        assert run(certificate).wait() == 0
        run(opservice).printed(r"^opservice \S+ serving on (\S+)")
        run(server).printed(r"^container-registry serving on (\S+)$")
        driven = run(client)
        assert driven.wait() == 0, driven.log.read_text()
        printed = driven.log.read_text()
    finally:
        for program in started:
            program.kill()

    def without_ids(output: str) -> str:
        return re.sub(r"\b(cr[rpd])[0-9a-v]{17}\b", r"\1", output)

    assert without_ids(printed) == without_ids(expected)


@pytest.mark.slow
def test_grpcurl_calls_the_example_by_its_reflection(brisk: Setup) -> None:
    grpcurl = require_tool("grpcurl", "go install github.com/fullstorydev/grpcurl/cmd/grpcurl")
    caller = ["-cacert", str(brisk.authority.certificate), "-H", "authorization: Bearer alice"]

    def run(data: dict[str, str], call: str) -> dict[str, Any]:
        command = [grpcurl, *caller, "-d", json.dumps(data), brisk.address, call]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    service = "yandex.cloud.containerregistry.v1.RegistryService"
    operation = run({"folderId": "b1g", "name": "by-grpcurl"}, f"{service}/Create")

    assert operation["metadata"]["@type"].endswith(
        f"/{CreateRegistryMetadata.DESCRIPTOR.full_name}"
    )
    for name in ("", service, "yandex.cloud.operation.OperationService"):
        assert run({"service": name}, "grpc.health.v1.Health/Check") == {"status": "SERVING"}
