"""The pool of types that reflection shows, and descriptor sets that cannot join it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from opservice._proto.opservice.v1 import producer_service_pb2
from opservice.domain.errors import StartupError
from opservice.fronts.grpc.reflection import build_pool
from support.descriptors import make_descriptor_set

FILES = [producer_service_pb2.DESCRIPTOR]


def test_the_pool_knows_our_types_googles_and_those_of_the_descriptor_sets(tmp_path: Path) -> None:
    pool = build_pool(FILES, [make_descriptor_set(tmp_path)])

    for name in ("opservice.v1.StartRequest", "google.rpc.Help", "google.type.Money"):
        assert pool.FindMessageTypeByName(name).full_name == name
    assert pool.FindMessageTypeByName("far.away.v1.Ship").fields_by_name["name"].number == 1


def test_a_descriptor_set_may_be_given_twice(tmp_path: Path) -> None:
    ships = make_descriptor_set(tmp_path)

    assert build_pool(FILES, [ships, ships]).FindMessageTypeByName("far.away.v1.Ship")


def test_an_empty_descriptor_set_adds_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pb"
    empty.write_bytes(b"")

    assert build_pool(FILES, [empty])


def test_fields_have_their_json_names() -> None:
    file = FileDescriptorProto()
    build_pool(FILES, []).FindFileByName("opservice/v1/producer_service.proto").CopyToProto(file)

    (request,) = [each for each in file.message_type if each.name == "RenewRequest"]
    assert [field.json_name for field in request.field] == [
        "operationId",
        "leaseToken",
        "metadata",
        "progress",
    ]


def missing(directory: Path) -> Path:
    return directory / "none.pb"


def directory_itself(directory: Path) -> Path:
    return directory


def not_protobuf(directory: Path) -> Path:
    path = directory / "broken.pb"
    path.write_bytes(b"\xff\xff not protobuf")
    return path


def without_imports(directory: Path) -> Path:
    return make_descriptor_set(directory, include_imports=False)


def another_operation(directory: Path) -> Path:
    """A file that defines a type of ours anew."""
    file = FileDescriptorProto(name="elsewhere.proto", package="opservice.v1")
    file.message_type.add(name="StartRequest")
    path = directory / "contradiction.pb"
    path.write_bytes(FileDescriptorSet(file=[file]).SerializeToString())
    return path


BROKEN = {
    "missing": (missing, "cannot read the descriptor set"),
    "a directory": (directory_itself, "cannot read the descriptor set"),
    "not a descriptor set": (not_protobuf, "is not a FileDescriptorSet (protoc -o writes one)"),
    "without its imports": (without_imports, "is incomplete (protoc wants --include_imports)"),
    "contradicts ours": (another_operation, "contradicts another"),
}


@pytest.mark.parametrize(("make", "complaint"), BROKEN.values(), ids=BROKEN)
def test_a_broken_descriptor_set_is_refused_by_name(
    tmp_path: Path, make: Callable[[Path], Path], complaint: str
) -> None:
    broken = make(tmp_path)

    with pytest.raises(StartupError) as caught:
        build_pool(FILES, [broken])

    assert complaint in caught.value.message
    assert str(broken) in caught.value.message
