"""The comments of .proto files, which generated code does not have: by the full names of what they describe."""

from __future__ import annotations

import re
import tempfile
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.rpc import status_pb2
from grpc_tools import protoc  # type: ignore[import-untyped] # ships no types

ROOT = Path(__file__).parents[1]
_INCLUDED = (
    ROOT / "proto",
    Path(status_pb2.__file__).parents[2],  # googleapis-common-protos has its .proto files there
    Path(str(files("grpc_tools"))) / "_proto",
)

_LINK = re.compile(r"\[([^\]]+)\]\[[^\]]+\]|\[(\w+\.\w+)\](?!\()")
_FIELD = re.compile(r"`([a-z]+(?:_[a-z0-9]+)+)`")


def comments_of(protos: Iterable[str]) -> Mapping[str, str]:
    """The comments in the .proto files of these names, and in those that they import, as Markdown."""
    found: dict[str, str] = {}
    for file in described(protos).file:
        names = dict(_names(file))
        for location in file.source_code_info.location:
            name = names.get(tuple(location.path))
            if name is not None and location.leading_comments:
                found[name] = _markdown(location.leading_comments)
    return found


def in_json(text: str) -> str:
    """A comment that names fields, with their names in JSON."""
    return _FIELD.sub(lambda name: f"`{to_camel(name[1])}`", text)


def to_camel(name: str) -> str:
    """The name of a field in JSON."""
    first, *others = name.split("_")
    return first + "".join(each.title() for each in others)


def described(protos: Iterable[str]) -> FileDescriptorSet:
    """The files of these names and those that they import, with their comments."""
    with tempfile.NamedTemporaryFile(suffix=".pb") as made:
        roots = [f"-I{each}" for each in _INCLUDED]
        options = [
            "--include_imports",
            "--include_source_info",
            f"--descriptor_set_out={made.name}",
        ]
        if protoc.main(["protoc", *roots, *options, *map(_on_disk, protos)]) != 0:
            raise SystemExit("protoc failed")
        return FileDescriptorSet.FromString(Path(made.name).read_bytes())


def _on_disk(proto: str) -> str:
    """What a file is called: googleapis-common-protos ships one under another name than it is known by."""
    is_there = any((root / proto).exists() for root in _INCLUDED)
    return proto if is_there else proto.replace(".proto", "_proto.proto")


def _names(file: FileDescriptorProto) -> Iterable[tuple[Sequence[int], str]]:
    """The full names of a file's services, methods, messages, fields, and enums, by their paths in it.

    The numbers are those of the fields of descriptor.proto.
    """
    for at, service in enumerate(file.service):
        yield (6, at), f"{file.package}.{service.name}"
        for inner, method in enumerate(service.method):
            yield (6, at, 2, inner), f"{file.package}.{service.name}.{method.name}"
    for at, message in enumerate(file.message_type):
        yield (4, at), f"{file.package}.{message.name}"
        for inner, field in enumerate(message.field):
            yield (4, at, 2, inner), f"{file.package}.{message.name}.{field.name}"
    for at, enum in enumerate(file.enum_type):
        yield (5, at), f"{file.package}.{enum.name}"
        for inner, value in enumerate(enum.value):
            yield (5, at, 2, inner), f"{file.package}.{enum.name}.{value.name}"


def _markdown(comment: str) -> str:
    """Paragraphs on one line each. What is indented, such as a table, stays as it is."""
    parts: list[str] = []
    flowing: list[str] = []
    for line in [*textwrap.dedent(comment).rstrip().split("\n"), ""]:
        text = _LINK.sub(lambda link: f"`{link[1] or link[2]}`", line)
        if text.strip() and not text.startswith("  "):
            flowing.append(text.strip())
            continue
        if flowing:
            parts.append(" ".join(flowing))
            flowing = []
        if text.strip():
            follows = bool(parts) and parts[-1].startswith("    ")
            parts[len(parts) - follows :] = [
                (parts[-1] + "\n" if follows else "") + "    " + text.removeprefix("  ")
            ]
    return "\n\n".join(parts)
