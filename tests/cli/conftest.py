from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import pytest
from click.testing import CliRunner, Result

from opservice.cli import cli
from support.client import Client
from support.server import ServerProcess, serving


class Run(Protocol):
    def __call__(self, *arguments: str, **environment: str) -> Result: ...


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("server")
    settings: dict[str, Any] = {"housekeeping_interval": "500ms", "cancel_grace": "1h"}
    with serving(directory, f"sqlite:///{directory}/operations.db", **settings) as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Client:
    return server.client


@pytest.fixture
def run(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process, against the server unless told otherwise."""
    monkeypatch.delenv("OPSERVICE_TOKEN", raising=False)

    def run(*arguments: str, **environment: str) -> Result:
        variables = {"OPSERVICE_SERVER": server.address, **environment}
        result = CliRunner().invoke(cli, arguments, env=variables)
        # Whatever a command raises but SystemExit would have been a traceback.
        assert result.exception is None or isinstance(result.exception, SystemExit), result
        return result

    return run
