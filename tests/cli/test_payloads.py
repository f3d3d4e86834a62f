"""What stands inside `Any`: JSON when its type can be found out, else its bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyPayload
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_reflection.v1alpha.reflection_pb2 import (
    FileDescriptorResponse,
    ServerReflectionResponse,
)
from grpc_reflection.v1alpha.reflection_pb2_grpc import (
    ServerReflectionServicer,
    add_ServerReflectionServicer_to_server,
)

from cli.conftest import Run
from support.client import Client, packed
from support.descriptors import make_descriptor_set, pack_ship
from support.server import ServerProcess, serving

SHIP = "type.googleapis.com/far.away.v1.Ship"


@pytest.fixture(scope="session")
def descriptor_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_descriptor_set(tmp_path_factory.mktemp("descriptors"))


@pytest.fixture(scope="session")
def knowing_server(
    descriptor_set: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server whose reflection knows the type of ships."""
    directory = tmp_path_factory.mktemp("knowing")
    url = f"sqlite:///{directory}/a.db"
    with serving(directory, url, descriptor_set=descriptor_set) as server:
        yield server


def metadata_shown(run: Run, id_: str, *arguments: str, **environment: str) -> Any:
    shown = json.loads(run("get", id_, "--format", "json", *arguments, **environment).stdout)
    return shown["operation"]["metadata"]


def test_a_type_of_a_descriptor_set_is_shown_as_json(
    run: Run, client: Client, descriptor_set: Path
) -> None:
    id_ = client.started(metadata=pack_ship(descriptor_set, "Wanderer"))

    shown = metadata_shown(run, id_, "--descriptor-set", str(descriptor_set))

    assert shown == {"@type": SHIP, "name": "Wanderer", "color": "GREEN"}


def test_a_type_that_the_server_knows_is_shown_as_json(
    run: Run, knowing_server: ServerProcess, descriptor_set: Path
) -> None:
    id_ = knowing_server.client.started(metadata=pack_ship(descriptor_set, "Wanderer"))

    shown = metadata_shown(run, id_, "--server", knowing_server.address)

    assert shown == {"@type": SHIP, "name": "Wanderer", "color": "GREEN"}


def test_an_unknown_type_is_shown_as_its_url_and_bytes(
    run: Run, client: Client, descriptor_set: Path
) -> None:
    id_ = client.started(metadata=pack_ship(descriptor_set, "Wanderer"))

    assert metadata_shown(run, id_) == {"@type": SHIP, "value": "CghXYW5kZXJlchAB"}


def test_bytes_that_are_not_of_their_type_are_shown_as_bytes(run: Run, client: Client) -> None:
    url = "type.googleapis.com/google.protobuf.StringValue"
    id_ = client.started(metadata=AnyPayload(type_url=url, value=b"\xff\xff"))

    assert metadata_shown(run, id_) == {"@type": url, "value": "//8="}


def test_an_unknown_type_within_a_known_one_is_no_error(run: Run, client: Client) -> None:
    inner = AnyPayload(type_url="type.googleapis.com/no.Such", value=b"x")
    id_ = client.started(metadata=packed(Status(details=[inner])))

    assert metadata_shown(run, id_)["@type"] == "type.googleapis.com/google.rpc.Status"


def test_details_of_errors_are_shown_as_json(run: Run, client: Client) -> None:
    info = packed(ErrorInfo(reason="WHY", domain="tests"))
    id_ = client.fail(client.started(), Status(code=5, details=[info])).id

    shown = json.loads(run("get", id_, "--format", "json").stdout)

    assert shown["operation"]["error"]["details"][0]["reason"] == "WHY"
    assert '"reason": "WHY"' in run("get", id_).stdout


@pytest.mark.parametrize("format_", ["json", "yaml", "table"])
def test_every_format_shows_payloads(run: Run, client: Client, format_: str) -> None:
    id_ = client.started(metadata=packed(ErrorInfo(reason="WHY")))

    assert "WHY" in run("get", id_, "--format", format_).stdout


def test_a_payload_may_be_of_a_type_that_only_the_server_knows(
    run: Run, knowing_server: ServerProcess, descriptor_set: Path
) -> None:
    text = json.dumps({"@type": SHIP, "name": "Wanderer", "color": "GREEN"})

    started = run("start", "-q", "--metadata", text, "--server", knowing_server.address)

    operation = knowing_server.client.get(started.stdout.strip())
    assert operation.metadata == pack_ship(descriptor_set, "Wanderer")


def test_a_file_that_is_no_descriptor_set_is_wrong_usage(run: Run, tmp_path: Path) -> None:
    (tmp_path / "some").write_text("not one")

    result = run("get", "any", "--descriptor-set", str(tmp_path / "some"))

    assert result.exit_code == 2
    assert "is not a FileDescriptorSet" in result.stderr


def answer_garbage(_name: str) -> bytes:
    return b"\xff"


def answer_an_import_of_itself(_name: str) -> bytes:
    return file_importing("\a", "\a")


def answer_imports_without_end(name: str) -> bytes:
    number = int(name or 0)
    return file_importing(str(number), str(number + 1))


def file_importing(name: str, imported: str) -> bytes:
    made = FileDescriptorProto(name=name, package="no", dependency=[imported])
    made.message_type.add(name="Such")
    return made.SerializeToString()


@pytest.mark.parametrize(
    "answer", [answer_garbage, answer_an_import_of_itself, answer_imports_without_end]
)
def test_whatever_reflection_answers_the_type_is_unknown_at_worst(
    run: Run, answer: Callable[[str], bytes]
) -> None:
    with reflecting(answer) as address:
        result = run("start", "--metadata", '{"@type": "t/no.Such"}', "--server", address)

    assert result.exit_code == 2
    assert "Error: Invalid value for '--metadata': " in result.stderr
    assert "\a" not in result.stderr


@contextmanager
def reflecting(answer: Callable[[str], bytes]) -> Iterator[str]:
    """A server that answers a question about a file, or about a symbol (as ""), with a file."""

    class Reflection(ServerReflectionServicer):
        def ServerReflectionInfo(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
            for request in request_iterator:
                file = answer(request.file_by_filename)
                yield ServerReflectionResponse(
                    file_descriptor_response=FileDescriptorResponse(file_descriptor_proto=[file])
                )

    server = grpc.server(ThreadPoolExecutor(2))
    add_ServerReflectionServicer_to_server(Reflection(), server)  # type: ignore[no-untyped-call] # its stub
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
