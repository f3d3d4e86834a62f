"""The example's server as a process beside opservice's, both over TLS."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from yandex.cloud.containerregistry.v1.image_service_pb2_grpc import ImageServiceStub
from yandex.cloud.containerregistry.v1.registry_pb2 import Registry
from yandex.cloud.containerregistry.v1.registry_service_pb2 import CreateRegistryRequest
from yandex.cloud.containerregistry.v1.registry_service_pb2_grpc import RegistryServiceStub
from yandex.cloud.containerregistry.v1.scanner_service_pb2_grpc import ScannerServiceStub
from yandex.cloud.operation.operation_pb2 import Operation
from yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from yandex.cloud.operation.operation_service_pb2_grpc import OperationServiceStub
from yandexcloud import SDK  # type: ignore[attr-defined] # it has no __all__
from yandexcloud.operations import OperationError

from support.certificates import Authority, Pair
from support.client import Client, open_channel
from support.server import PATIENCE, ServerProcess, clean_environment, eventually, serving

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDER = "b1gexample"

Response = TypeVar("Response", bound=Message)


class ProgramProcess:
    """A program that prints a line when it is ready."""

    def __init__(self, command: list[str], log: Path, cwd: Path = EXAMPLES) -> None:
        self.log = log
        environment = clean_environment(
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            OPSERVICE_HTTP_LISTEN="off",  # others may serve on its default port
        )
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, cwd=cwd, env=environment, stdout=output, stderr=output
            )

    def printed(self, pattern: str) -> str:
        """The pattern's first group, once it has been printed."""

        def look() -> re.Match[str] | None:
            match = re.search(pattern, self.log.read_text(), re.MULTILINE)
            assert match or self._process.poll() is None, self.log.read_text()
            return match

        return eventually(look)[1]

    def wait(self) -> int:
        """The exit code, once it has ended."""
        return self._process.wait(PATIENCE)

    def terminate(self) -> int:
        self._process.terminate()
        return self.wait()

    def kill(self) -> None:
        self._process.kill()
        self.wait()


@dataclass
class Setup:
    """opservice, the example's server, and clients of both."""

    directory: Path
    opservice: ServerProcess
    address: str
    authority: Authority
    pair: Pair
    options: dict[str, Any]
    channels: list[grpc.Channel] = field(default_factory=list)

    def start(self) -> Self:
        """Starts the example's server, on the same address each time."""
        given = {
            "listen": self.address,
            "opservice": self.opservice.address,
            "opservice-ca": self.authority.certificate,
            "tls-cert": self.pair.certificate,
            "tls-key": self.pair.key,
            **self.options,
        }
        flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "container_registry.server", *flags]
        self.example = ProgramProcess(command, self.directory / "example.log")
        ready = self.example.printed(r"^container-registry serving on (\S+)$")
        assert ready == self.address
        return self

    def user(self, name: str = "alice") -> User:
        certificates = self.authority.certificate.read_bytes()
        sdk = SDK(iam_token=name, endpoint=self.opservice.address, root_certificates=certificates)
        return User(sdk)

    @property
    def records(self) -> Client:
        """The server's own client, which sees progress."""
        return Client(self._open(self.opservice.address))

    @property
    def at_the_example(self) -> OperationServiceStub:
        """OperationService as Yandex Go clients ask for it: at the address of the service."""
        return OperationServiceStub(self._open(self.address))

    def _open(self, address: str) -> grpc.Channel:
        self.channels.append(open_channel(address, self.authority.certificate.read_bytes()))
        return self.channels[-1]


@dataclass
class Result:
    """Of the types that were asked for; the SDK leaves out an Empty response."""

    response: Any
    meta: Any


class User:
    """The unmodified Yandex Cloud SDK in somebody's name."""

    def __init__(self, sdk: SDK) -> None:
        self.sdk = sdk
        self.registries = sdk.client(RegistryServiceStub)
        self.images = sdk.client(ImageServiceStub)
        self.scanner = sdk.client(ScannerServiceStub)
        self.operations = sdk.client(OperationServiceStub)

    def create(self, name: str, key: str = "") -> Operation:
        request = CreateRegistryRequest(folder_id=FOLDER, name=name)
        return self.registries.Create(request, metadata=with_key(key))

    def created(self, name: str) -> Registry:
        return self.wait(self.create(name), Registry)

    def get(self, operation: Operation) -> Operation:
        return self.operations.Get(GetOperationRequest(operation_id=operation.id))

    def result(
        self,
        operation: Operation,
        response: type[Message] | None = None,
        meta: type[Message] | None = None,
    ) -> Result:
        """Raises OperationError."""
        result = self.sdk.wait_operation_and_get_result(operation, response, meta, timeout=PATIENCE)
        assert not isinstance(result, OperationError)  # it is raised
        return Result(result.response, result.meta)

    def wait(self, operation: Operation, response: type[Response]) -> Response:
        found = self.result(operation, response).response
        assert isinstance(found, response)
        return found

    def error(self, operation: Operation) -> Any:
        """The status of an operation, which the SDK says to have failed."""
        with pytest.raises(OperationError):
            self.result(operation)
        ended = self.get(operation)
        assert ended.done
        return ended.error


def with_key(key: str) -> tuple[tuple[str, str], ...]:
    return (("idempotency-key", key),) if key else ()


def free_port() -> int:
    """Below those that the kernel gives to outgoing connections."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@contextmanager
def set_up(directory: Path, **options: Any) -> Iterator[Setup]:
    """`options` are those of the example's server."""
    authority = Authority(directory)
    pair = authority.issue()
    address = f"127.0.0.1:{free_port()}"
    settings = {
        "tls_cert": pair.certificate,
        "tls_key": pair.key,
        "endpoint": [f"container-registry={address}"],
        "housekeeping_interval": "100ms",
    }
    with serving(directory, f"sqlite:///{directory}/operations.db", **settings) as opservice:
        setup = Setup(directory, opservice, address, authority, pair, options)
        try:
            yield setup.start()
        finally:
            for channel in setup.channels:
                channel.close()
            setup.example.kill()


@pytest.fixture(scope="package")
def brisk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """An example whose work takes no time, shared by the tests."""
    with set_up(tmp_path_factory.mktemp("brisk"), pace=0.01) as setup:
        yield setup


@pytest.fixture(scope="package")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """An example whose scan takes half a minute, shared by the tests: so they come in its middle."""
    with set_up(tmp_path_factory.mktemp("slow"), pace=0.3) as setup:
        yield setup
