"""What stands inside an `Any`, as JSON and back, for every type that can be found out about."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import grpc
from google.protobuf import descriptor_pool
from google.protobuf.any_pb2 import Any as AnyPayload
from google.protobuf.descriptor_database import DescriptorDatabase
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from opservice.cli.connection import Connection
from opservice.common.plain import plain_lines
from opservice.methods.descriptor_sets import read_descriptor_set
from opservice.methods.json_messages import NotJson
from opservice.methods.protojson import ProtoJson

_REFLECTION_SECONDS = 5.0
_MOST_FILES = 1_000
"""That a pool may need for the types of one command: it calls itself for each that a file imports."""


class Payloads:
    """Types come from the descriptor sets, from this program, and else from the server's reflection."""

    def __init__(self, connection: Connection, descriptor_sets: Iterable[Path]) -> None:
        """Raises UsageError when a descriptor set is none."""
        database = _Descriptors(connection)
        for path in descriptor_sets:
            for file in _read_descriptor_set(path):
                database.add(file)
        self._json = ProtoJson(descriptor_pool.DescriptorPool(database))

    def to_json(self, payload: AnyPayload) -> Any:
        """Its protobuf JSON, or its type URL and base64 when the type is unknown."""
        return json.loads(self._json.to_json(payload))

    def from_json(self, option: str, text: str | None) -> AnyPayload | None:
        """From JSON with an "@type", or from `@FILE` with that. Raises UsageError."""
        if text is None:
            return None
        payload = AnyPayload()
        try:
            if text.startswith("@"):
                with click.open_file(text[1:], encoding="utf-8") as file:
                    text = file.read()
            value = json.loads(text)
            if not isinstance(value, dict):
                raise click.BadParameter(
                    'expected a JSON object with "@type"', param_hint=f"'{option}'"
                )
            # Half a surrogate pair is a UnicodeEncodeError here, and a SystemError for what comes next.
            json.dumps(value, ensure_ascii=False).encode()
            self._json.fill(payload, value)
        except NotJson as error:
            said = f"{error.field} {error}" if error.field else str(error)
            raise click.BadParameter(plain_lines(said), param_hint=f"'{option}'") from error
        except (OSError, ValueError, RecursionError) as error:
            raise click.BadParameter(plain_lines(str(error)), param_hint=f"'{option}'") from error
        return payload


class _Descriptors(DescriptorDatabase):
    """Files by name and symbol, of which the first to come is kept."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection: Connection | None = connection
        self._names: set[str] = set()
        self._given: set[str] = set()

    def add(self, file: FileDescriptorProto) -> None:
        if file.name not in self._names:
            self._names.add(file.name)
            with warnings.catch_warnings():
                # That two define one symbol. The pool will refuse the second.
                warnings.simplefilter("ignore", RuntimeWarning)
                self.Add(file)

    def FindFileByName(self, name: str) -> FileDescriptorProto:  # noqa: N802 # as the pool calls it
        return self._once(
            self._find(
                name,
                super().FindFileByName,
                descriptor_pool.Default().FindFileByName,
                ServerReflectionRequest(file_by_filename=name),
            )
        )

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptorProto:  # noqa: N802 # likewise
        return self._once(
            self._find(
                symbol,
                super().FindFileContainingSymbol,
                descriptor_pool.Default().FindFileContainingSymbol,
                ServerReflectionRequest(file_containing_symbol=symbol),
            )
        )

    def _once(self, file: FileDescriptorProto) -> FileDescriptorProto:
        """Raises KeyError for a file that the pool was given before.

        It asks again only for one that it cannot build, such as one that imports itself, and would for ever.
        """
        if file.name in self._given or len(self._given) == _MOST_FILES:
            raise KeyError(file.name)
        self._given.add(file.name)
        return file

    def _find(
        self,
        wanted: str,
        here: Callable[[str], Any],
        in_program: Callable[[str], Any],
        question: ServerReflectionRequest,
    ) -> FileDescriptorProto:
        """Raises KeyError."""
        with suppress(KeyError):
            return here(wanted)  # type: ignore[no-any-return] # DescriptorDatabase has no types
        with suppress(KeyError):
            file = FileDescriptorProto()
            in_program(wanted).CopyToProto(file)
            self.add(file)
            return file
        self._ask(question)
        return here(wanted)  # type: ignore[no-any-return] # likewise

    def _ask(self, question: ServerReflectionRequest) -> None:
        """Adds what the server answers."""
        if self._connection is None:
            return
        stub = ServerReflectionStub(self._connection.channel)
        try:
            answers = list(
                stub.ServerReflectionInfo(  # type: ignore[operator] # its types lack the methods
                    iter([question]),
                    timeout=_REFLECTION_SECONDS,
                    metadata=self._connection.metadata,
                )
            )
        except grpc.RpcError:  # it has no reflection, or is away: it need not be asked again
            self._connection = None
            return
        for answer in answers:
            for serialized in answer.file_descriptor_response.file_descriptor_proto:
                file = FileDescriptorProto()
                with suppress(DecodeError):
                    file.ParseFromString(serialized)
                    self.add(file)


def _read_descriptor_set(path: Path) -> Iterable[FileDescriptorProto]:
    try:
        return read_descriptor_set(path).file
    except ValueError as error:
        raise click.UsageError(str(error)) from error
