from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any, Protocol

import pytest
from click.testing import CliRunner, Result

from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    ListOperationRecordsRequest,
)
from opservice._proto.opservice.v1.producer_service_pb2 import StartRequest
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
def parent() -> str:
    """A collection that no other test uses."""
    return f"folders/{uuid.uuid4().hex}"


@pytest.fixture(scope="package")
def crowd(server: ServerProcess) -> tuple[str, list[str]]:
    """A parent, and the ids of its operations, newest first: more than one call takes."""
    parent = f"folders/{uuid.uuid4().hex}"
    start = StartRequest(parent=parent)
    calls = [server.client.producer.Start.future(start) for _ in range(1100)]
    ids = {call.result().operation.id for call in calls}
    records = server.client.records
    request = ListOperationRecordsRequest(parent=parent, page_size=1000)
    listed: list[str] = []
    while len(listed) < len(ids):
        page = records.List(request)
        listed += [record.operation.id for record in page.operation_records]
        request.page_token = page.next_page_token
    assert set(listed) == ids
    return parent, listed


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
