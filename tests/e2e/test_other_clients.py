"""Clients that others publish for other languages follow operations, in programs of their own.

Yandex's SDK for Go, version 1 (yandex_go), and Google's gax for Java (google_java) and Node (google_node, by
gRPC and by REST). Each is built in a copy of its directory, from the package registry of its language.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy
from support.certificates import Authority
from support.client import Client, packed
from support.server import PATIENCE, ServerProcess, clean_environment, serving
from support.tools import require_tool

pytestmark = pytest.mark.slow  # building them takes a minute or two

HERE = Path(__file__).parent
BUILD_SECONDS = 600
# Else Google's library for Node looks for a Google machine, for some seconds.
ENVIRONMENT = clean_environment(
    GOTOOLCHAIN="local", CGO_ENABLED="0", METADATA_SERVER_DETECTION="none"
)


def run(directory: Path, *command: str) -> None:
    done = subprocess.run(
        command,
        cwd=directory,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def build_go(directory: Path) -> list[str]:
    run(directory, require_tool("go", "see go.dev/doc/install"), "build", "-o", "program", ".")
    return [str(directory / "program")]


def build_java(directory: Path) -> list[str]:
    java = require_tool("java", "apt-get install default-jdk-headless")
    javac = require_tool("javac", "apt-get install default-jdk-headless")
    maven = require_tool("mvn", "apt-get install maven")
    run(directory, maven, "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib")
    run(directory, javac, "-cp", "lib/*", "-d", "classes", "Main.java")
    return [java, "-cp", f"{directory}/classes:{directory}/lib/*", "Main"]


def build_node(directory: Path, program: str = "main.js") -> list[str]:
    node = require_tool("node", "apt-get install nodejs")
    npm = require_tool("npm", "apt-get install npm")
    run(
        directory,
        npm,
        "install",
        "--no-package-lock",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
    )
    return [node, str(directory / program)]


def build_node_rest(directory: Path) -> list[str]:
    return build_node(directory, "rest.js")


@dataclass(frozen=True)
class Kind:
    build: Callable[[Path], list[str]]
    tls: bool = False
    """Whether it speaks TLS alone, takes the authority as its last argument, and knows bare ids."""
    tells_reasons: bool = True
    """Whether it tells the details of an operation's error."""
    directory: str = ""
    """Where its source is, if not in the directory of its name."""
    not_found: int = Code.NOT_FOUND
    """The code that it tells of what is not there."""


KINDS = {
    "yandex_go": Kind(build_go, tls=True),
    "google_java": Kind(build_java),
    "google_node": Kind(build_node, tells_reasons=False),
    # The code of a refusal is HTTP's: its library for HTTP throws before gax has looked at the answer.
    "google_node_rest": Kind(
        build_node_rest, tells_reasons=False, directory="google_node", not_found=404
    ),
}


class Program:
    """One of them, against a server of its own."""

    def __init__(
        self, kind: Kind, command: list[str], server: ServerProcess, authority: Authority
    ) -> None:
        self.kind = kind
        self._command = [*command, server.http_url or server.address]
        self._trusted = [str(authority.certificate)] if kind.tls else []
        roots = authority.certificate.read_bytes() if kind.tls else None
        self.client = Client(server.channel(root_certificates=roots))

    def __call__(self, call: str, id_: str) -> dict[str, Any]:
        """What the program prints of the call."""
        done = subprocess.run(
            self._arguments(call, id_),
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    @contextmanager
    def waiting(self, id_: str) -> Iterator[list[dict[str, Any]]]:
        """The block runs while the program waits; then the list has what it printed."""
        with subprocess.Popen(
            self._arguments("wait", id_),
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr
            assert "waiting\n" in iter(process.stderr.readline, "")
            said: list[dict[str, Any]] = []
            try:
                yield said
                said.append(json.loads(process.communicate(timeout=2 * PATIENCE)[0]))
            finally:
                process.kill()

    def _arguments(self, call: str, id_: str) -> list[str]:
        name = id_ if self.kind.tls else f"operations/{id_}"
        return [*self._command, call, name, *self._trusted]


@pytest.fixture(scope="module", params=KINDS)
def program(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[Program]:
    kind, directory = KINDS[request.param], tmp_path_factory.mktemp(request.param)
    source = HERE / (kind.directory or request.param)
    command = kind.build(Path(shutil.copytree(source, directory / "program")))
    settings: dict[str, Any] = {"cancel_grace": "1h"}
    if request.param.endswith("_rest"):
        settings["http_listen"] = "127.0.0.1:0"
    if kind.tls:
        pair = authority.issue()
        settings |= {"tls_cert": pair.certificate, "tls_key": pair.key}
    with serving(directory, f"sqlite:///{directory}/operations.db", **settings) as server:
        yield Program(kind, command, server, authority)


def images() -> Struct:
    made = Struct()
    made.update({"name": "images"})
    return made


def test_it_follows_an_operation_to_its_response(program: Program) -> None:
    id_ = program.client.started()

    with program.waiting(id_) as said:
        program.client.complete(id_, response=packed(images()))

    assert said == [{"response": {"name": "images"}}]


def test_it_follows_an_operation_to_its_error(program: Program) -> None:
    id_ = program.client.started()
    info = ErrorInfo(reason="NAME_TAKEN", domain="registry")
    error = Status(code=Code.ALREADY_EXISTS, message="it is taken", details=[packed(info)])

    with program.waiting(id_) as said:
        program.client.fail(id_, error)

    assert said[0]["code"] == Code.ALREADY_EXISTS
    assert said[0].get("reason") == ("NAME_TAKEN" if program.kind.tells_reasons else None)


def test_it_goes_on_while_the_operation_is_being_cancelled(program: Program) -> None:
    id_ = program.client.started(cancel_policy=CancelPolicy.COOPERATIVE)
    assert not program.client.cancel(id_).done

    with program.waiting(id_) as said:
        program.client.complete(id_, response=packed(images()))

    assert said == [{"response": {"name": "images"}}]


def test_it_cancels_and_then_follows_to_cancelled(program: Program) -> None:
    id_ = program.client.started()

    program("cancel", id_)

    assert program.client.get(id_).error.code == Code.CANCELLED
    assert program("wait", id_)["code"] == Code.CANCELLED


def test_what_is_not_there_is_not_found(program: Program) -> None:
    assert program("wait", "nowhere")["code"] == program.kind.not_found
