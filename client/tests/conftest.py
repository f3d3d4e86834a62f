from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from support.producers import KINDS, Kind
from support.server import ServerProcess, eventually, serving
from support.tools import require_tool

SETTINGS: dict[str, Any] = {"housekeeping_interval": "500ms", "cancel_grace": "1h"}

Connect = Callable[..., Kind]
Install = Callable[..., Path]

CLIENT = Path(__file__).parents[1]
INSTALL_SECONDS = 600


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("server")
    with serving(directory, f"sqlite:///{directory}/operations.db", **SETTINGS) as running:
        yield running


@pytest.fixture(params=sorted(KINDS))
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes producers of either kind, which are closed when the test is over."""
    made: list[Kind] = []

    def connect(target: str, **options: Any) -> Kind:
        made.append(KINDS[request.param](target, **options))
        return made[-1]

    yield connect
    for each in made:
        each.close()


@pytest.fixture
def producer(connect: Connect, server: ServerProcess) -> Kind:
    return connect(server.address)


def ended(server: ServerProcess, operation_id: str) -> Operation:
    """The operation, once it is done."""

    def look() -> Operation | None:
        operation = server.client.get(operation_id)
        return operation if operation.done else None

    operation = eventually(look)
    assert operation is not None
    return operation


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port that nobody listens on: it is taken, but refuses."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        yield port


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "client"
    shutil.copytree(CLIENT, source, ignore=shutil.ignore_patterns("*.egg-info", "build", "tests"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", directory, source], check=True)
    (made,) = directory.glob("*.whl")
    return made


@pytest.fixture
def install(wheel: Path, tmp_path: Path) -> Install:
    """Makes an environment with the client and `requirements`, and returns its Python."""

    def install(*requirements: str, python: str = sys.executable) -> Path:
        return make_environment(tmp_path / "environment", wheel, *requirements, python=python)

    return install


def make_environment(
    directory: Path, wheel: Path, *requirements: str, python: str = sys.executable
) -> Path:
    """Returns its Python."""
    uv = require_tool("uv", "it is in the group dev of pyproject.toml")
    subprocess.run([uv, "venv", "--quiet", "--python", python, directory], check=True)
    made = directory / "bin" / "python"
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", made, wheel, *requirements],
        check=True,
        timeout=INSTALL_SECONDS,
    )
    return made
