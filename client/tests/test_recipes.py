"""docs/recipes.md says what works: its programs are run as they are printed, in fresh environments."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    GetOperationRecordRequest,
)
from support.programs import ADDRESS
from support.server import PATIENCE, ServerProcess, eventually
from support.tools import require_tool, stable_port

from .conftest import Install, ended

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
RECIPES = dict(re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))
BROKER = "127.0.0.1:6379"
MANY = 100_000
"""Steps of work that does not end by itself while a test runs."""


class Api:
    """What curl would do."""

    def __init__(self, address: str) -> None:
        self._address = f"http://{address}"

    def call(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, str], dict[str, Any]]:
        """The status, the headers by their names in lower case, and the body."""
        request = urllib.request.Request(self._address + path, method=method)
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        if body is not None:
            request.add_header("content-type", "application/json")
            request.data = json.dumps(body).encode()
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return _read(answer)
        except urllib.error.HTTPError as error:
            with error:
                return _read(error)

    def is_up(self) -> bool:
        try:
            return self.call("GET", "/openapi.json")[0] == 200
        except OSError:
            return False

    def end_of(self, operation_id: str, **headers: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            operation = self.call("GET", f"/operations/{operation_id}", **headers)[2]
            return operation if operation.get("done") else None

        operation = eventually(look)
        assert operation is not None
        return operation


def _read(answer: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return answer.status, headers, json.loads(answer.read())


@contextmanager
def running(directory: Path, *command: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A program, ended by SIGTERM when the block is left. No traceback of ours must be in its log."""
    log = directory / f"{command[2]}.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, "C_FORCE_ROOT": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        try:
            yield process
            process.terminate()
            process.wait(PATIENCE)
        finally:
            process.kill()
            said = log.read_text()
            print(said)  # which pytest shows when the test fails
    assert not re.search(r'File ".*(opservice_client/|registries\.py|scans\.py)', said)


def uvicorn(
    directory: Path, python: Path, application: str, port: int, *options: str
) -> AbstractContextManager[object]:
    where = ("--port", str(port), "--log-level", "warning")
    return running(directory, python, "-m", "uvicorn", application, *where, *options)


def write(directory: Path, name: str, program: str, **addresses: str) -> None:
    for old, new in ((ADDRESS, addresses["opservice"]), (BROKER, addresses.get("broker", BROKER))):
        program = program.replace(old, new)
    (directory / f"{name}.py").write_text(program)


def test_every_program_of_the_page_is_run() -> None:
    assert RECIPES.keys() == {"fastapi", "celery"}
    assert len(RECIPES) == PAGE.count("```python")


def test_fastapi(install: Install, server: ServerProcess, tmp_path: Path) -> None:
    write(tmp_path, "registries", RECIPES["fastapi"], opservice=server.address)
    python, port = install("fastapi", "uvicorn"), stable_port()
    api, ann = Api(f"127.0.0.1:{port}"), {"X_User": "ann"}
    with uvicorn(tmp_path, python, "registries:app", port, "--workers", "2"):
        eventually(api.is_up)

        # It is accepted, and polled to its end; a repeat is the same operation.
        status, headers, operation = api.call(
            "POST", "/registries", {"name": "first"}, Idempotency_Key="1", **ann
        )
        assert status == 202
        assert headers["location"] == f"/operations/{operation['id']}"
        repeated = api.call("POST", "/registries", {"name": "first"}, Idempotency_Key="1", **ann)
        assert repeated[2]["id"] == operation["id"]
        assert api.call("POST", "/registries", {"name": "x"}, Idempotency_Key="1", **ann)[0] == 400
        registry = api.end_of(operation["id"], **ann)["response"]["value"]
        assert registry["name"] == "first"
        assert registry["id"] == operation["metadata"]["value"]["registry_id"]
        assert re.match(r"\d{4}-\d\d-\d\dT", registry["created_at"])  # as pydantic has it in JSON

        # Nobody gets the id of another's registry by the choice of a key.
        ids = set()
        for user, key in (("bob/1", "2"), ("bob", "1/2")):
            headers = {"X_User": user, "Idempotency_Key": key}
            operation = api.call("POST", "/registries", {"name": "n"}, **headers)[2]
            ids.add(operation["metadata"]["value"]["registry_id"])
        assert len(ids) == 2

        # It fails with what the work says.
        taken = api.call("POST", "/registries", {"name": "taken"}, **ann)[2]
        assert "registry of this name" in api.end_of(taken["id"], **ann)["error"]["message"]

        # It is cancelled by its user, through any of the processes, and by nobody else.
        endless = {"name": "endless", "images": MANY}
        id_ = api.call("POST", "/registries", endless, **ann)[2]["id"]
        assert "retry-after" in api.call("GET", f"/operations/{id_}", **ann)[1]
        assert api.call("GET", f"/operations/{id_}", X_User="bob")[0] == 404
        assert api.call("POST", f"/operations/{id_}:cancel", X_User="bob")[0] == 404
        assert api.call("POST", f"/operations/{id_}:cancel", **ann)[0] == 200
        assert api.end_of(id_, **ann)["error"]["code"] == 1

        assert api.call("GET", "/operations/opsnosuchoperation00", **ann)[0] == 404

        # What runs when the service is stopped has its time to end.
        last = api.call("POST", "/registries", {"name": "last", "images": 50}, **ann)[2]["id"]
        assert not server.client.get(last).done
    assert ended(server, last).HasField("response")


@contextmanager
def redis(directory: Path) -> Iterator[str]:
    program = require_tool("redis-server", "apt-get install redis-server")
    port = stable_port()
    options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with running(directory, program, "--port", str(port), *options):
        yield f"127.0.0.1:{port}"


def child_of(pid: int) -> int | None:
    """Its only child, while it has just one."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if len(children) == 1 else None


def test_celery(install: Install, server: ServerProcess, tmp_path: Path) -> None:
    def layers_done(id_: str) -> int:
        request = GetOperationRecordRequest(operation_id=id_)
        return server.client.records.Get(request).progress.done

    python, port = install("celery[redis]", "fastapi", "uvicorn"), stable_port()
    api = Api(f"127.0.0.1:{port}")
    worker = ("celery", "-A", "scans", "worker", "--concurrency", "1")
    with redis(tmp_path) as broker:
        write(tmp_path, "scans", RECIPES["celery"], opservice=server.address, broker=broker)
        with (
            uvicorn(tmp_path, python, "scans:api", port),
            running(tmp_path, python, "-m", *worker) as celery,
        ):
            eventually(api.is_up)

            # A worker does what the web process has started, once.
            key = {"Idempotency_Key": "celery"}
            id_ = api.call("POST", "/scans?image=first", **key)[2]["id"]
            assert api.call("POST", "/scans?image=first", **key)[2]["id"] == id_
            assert api.end_of(id_)["response"]["value"]["image"] == "first"

            # A cancel stops the task: the only child has time for the next.
            id_ = api.call("POST", f"/scans?image=endless&layers={MANY}")[2]["id"]
            eventually(lambda: layers_done(id_))
            waiting = api.call("POST", "/scans?image=waiting")[2]["id"]
            api.call("POST", f"/operations/{id_}:cancel")
            assert api.end_of(id_)["error"]["code"] == 1
            assert "response" in api.end_of(waiting)

            # The child is killed, and another goes on with the same operation.
            id_ = api.call("POST", "/scans?image=last&layers=50")[2]["id"]
            eventually(lambda: layers_done(id_))
            killed = child_of(celery.pid)
            assert killed
            os.kill(killed, signal.SIGKILL)
            assert "response" in api.end_of(id_)
            assert child_of(celery.pid) != killed

        # Without a queue nothing is left running.
    with uvicorn(tmp_path, python, "scans:api", port):
        eventually(api.is_up)
        id_ = api.call("POST", "/scans?image=none")[2]["id"]
        assert api.end_of(id_)["error"]["message"] == "The queue is not available"
