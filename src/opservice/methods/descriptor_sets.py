"""Descriptor sets: files that `protoc -o` writes, with the types of others' payloads."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import DecodeError


def read_descriptor_set(path: Path) -> FileDescriptorSet:
    """Raises ValueError, which says what is wrong, when the file cannot be read, or is none."""
    try:
        return FileDescriptorSet.FromString(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read the descriptor set {path}: {error.strerror}") from error
    except DecodeError as error:
        raise ValueError(f"{path} is not a FileDescriptorSet (protoc -o writes one)") from error
