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

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from grpc.aio import Server
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import SERVICE_NAME
from grpc_reflection.v1alpha.reflection import aio as reflection_aio

from opservice.errors import StartupError

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
    for file in (*files, *_public_files(), cast("FileDescriptor", reflection_pb2.DESCRIPTOR)):
        _add(pool, file, known)
    pool.AddSerializedFile(_v1_file().SerializeToString())
    for path in descriptor_sets:
        _add_descriptor_set(pool, path, known)
    return pool


def add_reflection(server: Server, services: Iterable[str], pool: DescriptorPool) -> None:
    """Serves both versions of reflection for these services, and for itself."""
    servicer = reflection_aio.ReflectionServicer([*services, SERVICE_NAME, V1_SERVICE_NAME], pool)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in (SERVICE_NAME, V1_SERVICE_NAME):
        methods = {"ServerReflectionInfo": handler}
        generic = grpc.method_handlers_generic_handler(name, methods)
        server.add_generic_rpc_handlers((generic,))


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
        pool.AddSerializedFile(file.serialized_pb)


def _v1_file() -> FileDescriptorProto:
    text = reflection_pb2.DESCRIPTOR.serialized_pb
    file = FileDescriptorProto.FromString(text)
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
        descriptor_set = FileDescriptorSet.FromString(path.read_bytes())
        added = [file for file in descriptor_set.file if file.name not in known]
        for file in added:
            known.add(file.name)
            pool.AddSerializedFile(file.SerializeToString())
        for file in added:
            pool.FindFileByName(file.name)
    except OSError as error:
        raise StartupError(f"cannot read the descriptor set {path}: {error.strerror}") from error
    except DecodeError as error:
        raise StartupError(f"{path} is not a FileDescriptorSet (protoc -o writes one)") from error
    except (KeyError, TypeError) as error:
        raise StartupError(
            f"the descriptor set {path} is incomplete (protoc wants --include_imports) or"
            f" contradicts another: {error}"
        ) from error
