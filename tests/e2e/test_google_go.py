"""Google's Go client, `cloud.google.com/go/longrunning`, in a program of its own: google_go/main.go."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.struct_pb2 import Struct
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy
from support.client import Client, packed
from support.server import PATIENCE, ServerProcess, clean_environment
from support.tools import require_tool

pytestmark = pytest.mark.slow  # the first build takes about a minute

SOURCE = Path(__file__).parent / "google_go"
PARENT = "folders/b1g"
BUILD_SECONDS = 600


def struct(**fields: str) -> Struct:
    made = Struct()
    made.update(fields)
    return made


METADATA = packed(struct(registry_id="crp1"))
RESPONSE = packed(struct(name="images"))


class GoClient:
    """The program, against one server."""

    def __init__(self, program: Path, server: ServerProcess) -> None:
        self._command = [str(program), server.address]

    def __call__(self, call: str, name: str) -> dict[str, Any]:
        """What the program prints of the call."""
        done = subprocess.run(
            [*self._command, call, name], capture_output=True, text=True, timeout=2 * PATIENCE
        )
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    @contextmanager
    def waiting(self, call: str, name: str) -> Iterator[list[dict[str, Any]]]:
        """The block runs while the program waits; then the list has what it printed."""
        with subprocess.Popen(
            [*self._command, call, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr
            assert process.stderr.readline() == "waiting\n"
            said: list[dict[str, Any]] = []
            try:
                yield said
                said.append(json.loads(process.communicate(timeout=2 * PATIENCE)[0]))
            finally:
                process.kill()


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    go = require_tool("go", "see go.dev/doc/install")
    built = tmp_path_factory.mktemp("google-go") / "google_go"
    done = subprocess.run(
        [go, "build", "-o", str(built), "."],
        cwd=SOURCE,
        env=clean_environment(GOTOOLCHAIN="local", CGO_ENABLED="0"),
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return built


@pytest.fixture
def go(program: Path, server: ServerProcess) -> GoClient:
    return GoClient(program, server)


def started(client: Client, **fields: Any) -> str:
    """The name of a new operation."""
    parent = fields.setdefault("parent", PARENT)
    return f"{parent}/operations/{client.started(**fields)}"


def id_in(name: str) -> str:
    return name.rpartition("/")[2]


def test_get_shows_a_running_operation(client: Client, go: GoClient) -> None:
    name = started(client, metadata=METADATA)

    assert go("get", f"operations/{id_in(name)}") == {
        "operation": name,
        "done": False,
        "response": {},
        "metadata": {"registry_id": "crp1"},
    }


def test_poll_fills_in_the_response_of_a_done_operation(client: Client, go: GoClient) -> None:
    name = started(client)
    client.complete(id_in(name), response=RESPONSE)

    said = go("poll", name)

    assert said == {"operation": name, "done": True, "response": {"name": "images"}}


def test_wait_follows_the_operation_to_its_response(client: Client, go: GoClient) -> None:
    name = started(client)

    with go.waiting("wait", name) as said:
        client.complete(id_in(name), response=RESPONSE)

    assert said == [{"operation": name, "done": True, "response": {"name": "images"}}]


def test_wait_returns_the_error_of_a_failed_operation(client: Client, go: GoClient) -> None:
    name = started(client)
    info = ErrorInfo(reason="NAME_TAKEN", domain="registry")
    error = Status(code=Code.ALREADY_EXISTS, message="it is taken", details=[packed(info)])

    with go.waiting("wait", name) as said:
        client.fail(id_in(name), error)

    assert said == [{"code": "AlreadyExists", "message": "it is taken", "reason": "NAME_TAKEN"}]


def test_wait_goes_on_while_the_operation_is_being_cancelled(client: Client, go: GoClient) -> None:
    name = started(client, cancel_policy=CancelPolicy.COOPERATIVE)
    assert not go("cancel", name)["done"]

    with go.waiting("wait", name) as said:
        client.complete(id_in(name), response=RESPONSE)

    assert said[0]["response"] == {"name": "images"}


def test_cancel_cancels(client: Client, go: GoClient) -> None:
    name = started(client)

    go("cancel", name)

    assert client.get(id_in(name)).error.code == Code.CANCELLED
    assert go("wait", name) == {
        "code": "Canceled",
        "message": "The operation was cancelled",
        "reason": "OPERATION_CANCELLED",
    }


def test_wait_operation_waits_in_the_server(client: Client, go: GoClient) -> None:
    name = started(client)

    with go.waiting("wait-operation", name) as said:
        client.complete(id_in(name))

    assert said == [{"operation": name, "done": True}]


def test_delete_removes_a_done_operation(client: Client, go: GoClient) -> None:
    name = started(client)
    client.complete(id_in(name))

    assert go("delete", name) == {}

    assert go("get", name) == {
        "code": "NotFound",
        "message": f"Operation {name} not found",
        "reason": "OPERATION_NOT_FOUND",
    }


def test_delete_of_a_running_operation_is_a_failed_precondition(
    client: Client, go: GoClient
) -> None:
    said = go("delete", started(client))

    assert (said["code"], said["reason"]) == ("FailedPrecondition", "OPERATION_RUNNING")


def test_list_goes_through_all_pages(client: Client, go: GoClient) -> None:
    parent = f"folders/{uuid4().hex}"
    names = [started(client, parent=parent) for _ in range(5)]

    assert go("list", parent) == {"names": names[::-1]}
