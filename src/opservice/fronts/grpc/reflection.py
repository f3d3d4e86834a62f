"""Server reflection, v1 and v1alpha, over a pool of every type that may stand inside an `Any`.

grpcio-reflection has v1alpha only. The two versions are the same on the wire but for the package's
name, so v1 is v1alpha under the other name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import SERVICE_NAME
from grpc_reflection.v1alpha.reflection import aio as reflection_aio

from opservice.domain.errors import StartupError
from opservice.methods.descriptor_sets import read_descriptor_set
from opservice.methods.registry import Method, methods_of

_FILE = cast("FileDescriptor", reflection_pb2.DESCRIPTOR)
_V1ALPHA, _V1 = "grpc.reflection.v1alpha", "grpc.reflection.v1"
V1_SERVICE_NAME = SERVICE_NAME.replace(_V1ALPHA, _V1)

_PUBLIC_PACKAGES = (
    "google.api",
    "google.logging.type",
    "google.longrunning",
    "google.protobuf",
    "google.rpc",
    "google.rpc.context",
    "google.type",
)


def build_pool(files: Iterable[FileDescriptor], descriptor_sets: Iterable[Path]) -> DescriptorPool:
    """A pool of these files, the public Google types, and what the descriptor sets add.

    Raises StartupError when a set cannot be read, is incomplete, or contradicts what is there.
    """
    pool = DescriptorPool()
    known: set[str] = set()
    for file in (*files, *_public_files(), _FILE):
        _add(pool, file, known)
    pool.AddSerializedFile(_v1_file().SerializeToString())
    for path in descriptor_sets:
        _add_descriptor_set(pool, path, known)
    return pool


def reflection_methods(services: Iterable[str], pool: DescriptorPool) -> tuple[Method, ...]:
    """Both versions of reflection for these services, and for itself."""
    servicer = _ReflectionServicer([*services, SERVICE_NAME, V1_SERVICE_NAME], pool)
    service = _FILE.services_by_name["ServerReflection"]
    return (
        *methods_of(service, servicer),
        *methods_of(service, servicer, served_as=V1_SERVICE_NAME),
    )


class _ReflectionServicer(reflection_aio.ReflectionServicer):
    """Finds methods too: grpcurl asks for them by name, and protobuf's pools do not know them so."""

    def __init__(self, services: Iterable[str], pool: DescriptorPool) -> None:
        super().__init__(services, pool)
        self._types = pool

    def _file_containing_symbol(
        self, request: reflection_pb2.ServerReflectionRequest, fully_qualified_name: str
    ) -> reflection_pb2.ServerReflectionResponse:
        service, _, method = fully_qualified_name.rpartition(".")
        try:
            is_method = method in self._types.FindServiceByName(service).methods_by_name
        except KeyError:
            is_method = False
        symbol = service if is_method else fully_qualified_name
        return super()._file_containing_symbol(request, symbol)  # type: ignore[misc,no-any-return] # not in its stubs


def _public_files() -> Iterable[FileDescriptor]:
    for package_name in _PUBLIC_PACKAGES:
        package = importlib.import_module(package_name)
        for module in pkgutil.iter_modules(package.__path__):
            if module.name.endswith("_pb2"):
                file = importlib.import_module(f"{package_name}.{module.name}").DESCRIPTOR
                assert isinstance(file, FileDescriptor)
                yield file


def _add(pool: DescriptorPool, file: FileDescriptor, known: set[str]) -> None:
    if file.name not in known:
        known.add(file.name)
        for dependency in file.dependencies:
            _add(pool, dependency, known)
        pool.AddSerializedFile(_with_json_names(file).SerializeToString())


def _with_json_names(file: FileDescriptor) -> FileDescriptorProto:
    """The file as protoc knows it: generated code has lost the names that fields have in JSON."""
    copied = FileDescriptorProto()
    file.CopyToProto(copied)
    messages = [(proto, file.message_types_by_name[proto.name]) for proto in copied.message_type]
    for proto, descriptor in messages:  # grows with what is nested
        for field in proto.field:
            field.json_name = descriptor.fields_by_name[field.name].json_name
        messages += [
            (each, descriptor.nested_types_by_name[each.name]) for each in proto.nested_type
        ]
    return copied


def _v1_file() -> FileDescriptorProto:
    file = _with_json_names(_FILE)
    file.name, file.package = "grpc/reflection/v1/reflection.proto", _V1
    for message in file.message_type:
        for field in message.field:
            if field.HasField("type_name"):
                field.type_name = field.type_name.replace(_V1ALPHA, _V1)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(_V1ALPHA, _V1)
            method.output_type = method.output_type.replace(_V1ALPHA, _V1)
    return file


def _add_descriptor_set(pool: DescriptorPool, path: Path, known: set[str]) -> None:
    try:
        descriptor_set = read_descriptor_set(path)
    except ValueError as error:
        raise StartupError(str(error)) from error
    added = [file for file in descriptor_set.file if file.name not in known]
    try:
        for file in added:
            known.add(file.name)
            pool.AddSerializedFile(file.SerializeToString())
        for file in added:
            pool.FindFileByName(file.name)
    except (KeyError, TypeError) as error:
        raise StartupError(
            f"the descriptor set {path} is incomplete (protoc wants --include_imports) or"
            f" contradicts another: {error}"
        ) from error
