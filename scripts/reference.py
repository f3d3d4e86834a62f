"""Writes docs/reference/commands.md, from the commands' --help, and docs/reference/api.md, from the comments of proto/.

scripts/docs.sh runs it before each build, so that the pages are never out of date. They are not checked in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

from openapi_comments import ROOT, described
from opservice.cli import cli

PAGES = ROOT / "docs" / "reference"
PROTO = ROOT / "proto"

_COMMANDS = """\
# Commands

What `opservice COMMAND --help` prints. [The command line](../cli.md) explains how to use the commands, and
[Settings](../settings.md) explains the options of `serve`.
"""

_API = """\
# The API

The services of this repository's protos, from their comments. `google.longrunning.Operations` is served as
[Google publishes it](../google-longrunning.md). [Errors](../errors.md) lists every reason.
The HTTP paths below are the annotations of the protos. [HTTP](../http.md) has more.
"""


def commands_page() -> str:
    parts = [_COMMANDS]
    group = click.Context(cli, info_name="opservice", max_content_width=100)
    parts.append(f"## opservice\n\n```text\n{cli.get_help(group)}\n```\n")
    for name in cli.list_commands(group):
        command = cli.get_command(group, name)
        assert command
        context = click.Context(command, group, name, max_content_width=100)
        parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def api_page() -> str:
    parts = [_API]
    files = _files()
    for file in files:
        comments = _Comments(file)
        parts += _services(file, comments)
    parts.append("## Messages\n")
    for file in files:
        comments = _Comments(file)
        parts += _messages(file, comments)
    return "\n".join(parts)


def _files() -> list[FileDescriptorProto]:
    """The .proto files of the API, with their comments. The demo's messages are not part of it."""
    names = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    names = [name for name in names if "/demo/" not in name and "validation" not in name]
    return [file for file in described(names).file if file.name in names]


class _Comments:
    """The comment before each thing of a file, by its path in the descriptor."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._of = {
            tuple(location.path): location.leading_comments
            for location in file.source_code_info.location
        }

    def of(self, *path: int) -> str:
        text = self._of.get(path, "")
        lines = [line.removeprefix(" ") for line in text.splitlines()]
        # What is indented is a table or an example.
        return re.sub(r"(?m)((?:^ .*\n?)+)", r"\n```text\n\1\n```\n", "\n".join(lines)).strip()


def _services(file: FileDescriptorProto, comments: _Comments) -> Iterator[str]:
    for index, service in enumerate(file.service):
        yield f"## {file.package}.{service.name}\n\n{comments.of(6, index)}\n"
        for number, method in enumerate(service.method):
            yield _method(service, method, comments.of(6, index, 2, number))


def _method(service: ServiceDescriptorProto, method: MethodDescriptorProto, text: str) -> str:
    stream = "stream " if method.server_streaming else ""
    lines = [
        f"### {service.name}.{method.name}",
        "",
        f"`rpc {method.name}({_short(method.input_type)}) returns ({stream}{_short(method.output_type)})`",
        "",
    ]
    rule: http_pb2.HttpRule = method.options.Extensions[annotations_pb2.http]  # type: ignore[index]
    pattern = rule.WhichOneof("pattern")
    if pattern:
        lines += [f"HTTP: `{pattern.upper()} {getattr(rule, pattern)}`", ""]
    return "\n".join([*lines, text, ""])


def _messages(file: FileDescriptorProto, comments: _Comments) -> Iterator[str]:
    for index, message in enumerate(file.message_type):
        yield _message(file, message, comments, index)
    for index, enum in enumerate(file.enum_type):
        yield _enum(file, enum, comments, index)


def _message(
    file: FileDescriptorProto, message: DescriptorProto, comments: _Comments, index: int
) -> str:
    lines = [f"### {file.package}.{message.name}", "", comments.of(4, index), ""]
    for number, field in enumerate(message.field):
        text = comments.of(4, index, 2, number).replace("\n", "\n  ")
        lines.append(f"* `{field.name}` = {field.number}, {_type(field)}. {text}")
    return "\n".join([*lines, ""])


def _enum(
    file: FileDescriptorProto, enum: EnumDescriptorProto, comments: _Comments, index: int
) -> str:
    lines = [f"### {file.package}.{enum.name}", "", comments.of(5, index), ""]
    for number, value in enumerate(enum.value):
        text = comments.of(5, index, 2, number).replace("\n", "\n  ")
        lines.append(f"* `{value.name}` = {value.number}. {text}")
    return "\n".join([*lines, ""])


def _type(field: FieldDescriptorProto) -> str:
    name = _short(field.type_name)
    if not name:
        name = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    repeated = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    return f"{repeated}`{name}`"


def _short(type_name: str) -> str:
    return type_name.removeprefix(".")


if __name__ == "__main__":
    (PAGES / "commands.md").write_text(commands_page())
    (PAGES / "api.md").write_text(api_page())
