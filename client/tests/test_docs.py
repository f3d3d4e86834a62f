"""docs/producers.md and the README say what works: their examples are run as they stand."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.rpc.code_pb2 import Code

from support.programs import ADDRESS, run_program
from support.server import PATIENCE, ServerProcess
from support.tools import require_tool

from .conftest import ended

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "producers.md").read_text()
README = (ROOT / "README.md").read_text()

EXAMPLES = dict(re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))

CALLING = """
import grpc as _grpc, time as _time
from yandex.cloud.operation.operation_service_pb2 import GetOperationRequest as _Get
from yandex.cloud.operation.operation_service_pb2_grpc import OperationServiceStub as _Operations

def _ended(channel, operation):
    deadline = _time.monotonic() + 60
    while not operation.done:
        assert _time.monotonic() < deadline, operation
        _time.sleep(0.02)
        operation = _Operations(channel).Get(_Get(operation_id=operation.id))
    return operation
"""

DRIVERS = {
    "threads": """
import logging as _logging

class _Aborted(Exception):
    pass

class _Context:
    def invocation_metadata(self):
        return ()

    def abort(self, *said):
        self.said = said
        raise _Aborted

from yandex.cloud.containerregistry.v1.registry_service_pb2 import CreateRegistryRequest
from yandex.cloud.containerregistry.v1.registry_service_pb2_grpc import RegistryServiceStub

port, stop = serve("127.0.0.1:0")
with _grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    create = RegistryServiceStub(channel).Create
    request, key = CreateRegistryRequest(folder_id="f", name="n"), (("idempotency-key", "docs"),)
    first, second = create(request, metadata=key), create(request, metadata=key)
    assert first.id == second.id
    made = Registry()
    assert _ended(channel, first).response.Unpack(made)
    assert made == registries[made.id]
    taken = _ended(channel, create(CreateRegistryRequest(folder_id="f", name="taken")))
    assert taken.error.code == _grpc.StatusCode.ALREADY_EXISTS.value[0]
    try:
        create(CreateRegistryRequest(folder_id="f", name="x" * 300))
        raise AssertionError("taken")
    except _grpc.RpcError as error:
        assert error.code() == _grpc.StatusCode.INVALID_ARGUMENT
    _logging.disable()
    context = _Context()
    lost = Producer("127.0.0.1:1", start_timeout=timedelta(seconds=0.1))
    try:
        RegistryService(lost).Create(request, context)
        raise AssertionError("started")
    except _Aborted:
        assert context.said == (_grpc.StatusCode.UNAVAILABLE, "Operations cannot be started now")
    lost.close()
stop()
""",
    "asyncio": """
import threading as _threading
from yandex.cloud.containerregistry.v1.image_service_pb2 import DeleteImageRequest
from yandex.cloud.containerregistry.v1.image_service_pb2_grpc import ImageServiceStub

def _call(port):
    with _grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        delete = ImageServiceStub(channel).Delete
        assert _ended(channel, delete(DeleteImageRequest(image_id="crd1"))).HasField("response")
        missing = _ended(channel, delete(DeleteImageRequest(image_id="crd2")))
        assert missing.error.code == _grpc.StatusCode.NOT_FOUND.value[0]

async def _main():
    stopped, ports = asyncio.Event(), []
    serving = asyncio.create_task(serve("127.0.0.1:0", stopped, ports.append))
    while not ports:
        await asyncio.sleep(0.02)
    await asyncio.to_thread(_call, ports[0])
    stopped.set()
    await serving

asyncio.run(_main())
""",
    "block": "assert work.operation.done",
    "cancel": """
from yandex.cloud.operation.operation_service_pb2 import CancelOperationRequest

with _grpc.insecure_channel("127.0.0.1:50051") as channel:
    cancelled = _Operations(channel).Cancel(CancelOperationRequest(operation_id=work.id))
    assert _ended(channel, cancelled).error.code == _grpc.StatusCode.CANCELLED.value[0]
producer.close()
""",
}

TESTS = "testing"
"""The example that is a file of tests: it has a server of its own."""


def test_every_example_of_the_page_is_run() -> None:
    assert EXAMPLES.keys() == DRIVERS.keys() | {TESTS}
    assert len(EXAMPLES) == PAGE.count("```python")


@pytest.mark.parametrize("name", sorted(DRIVERS))
def test_the_example_runs_as_it_stands_and_ends_cleanly(name: str, server: ServerProcess) -> None:
    program = EXAMPLES[name].replace('__name__ == "__main__"', "False")
    run_program(program + CALLING + DRIVERS[name], server)


def test_the_example_of_a_services_tests_passes_with_either_server(tmp_path: Path) -> None:
    program = EXAMPLES[TESTS]
    for backend in ("server", "memory"):
        chosen = program.replace("OperationServer()", f'OperationServer(backend="{backend}")')
        assert chosen != program
        (tmp_path / f"test_on_{backend}.py").write_text(chosen)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-Werror", "-pno:asyncio", "-pno:cacheprovider", tmp_path],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stdout
    assert "8 passed" in done.stdout


def test_the_readmes_example_runs_as_it_stands(server: ServerProcess) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

    id_ = run_program(program.replace("sleep(0.5)", "sleep(0)"), server).strip()

    assert ended(server, id_).HasField("response")


def test_the_page_for_other_languages_works_with_grpcurl(server: ServerProcess) -> None:
    grpcurl = require_tool(
        "grpcurl", "go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest"
    )
    shell = shutil.which("sh")
    assert shell
    section = PAGE.partition("## Other languages")[2]
    start, renew, end, _ = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    complete, fail = re.split(r"(?<=Complete)\n", end.strip())
    token = "a-token-of-many-characters"

    def say(command: str, key: str, id_: str = "") -> str:
        line = command.replace("grpcurl", grpcurl, 1).replace(ADDRESS, server.address)
        line = line.replace("TOKEN", token).replace("KEY", key).replace('"ID"', f'"{id_}"')
        done = subprocess.run([shell, "-c", line], capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for key, last in (("grpcurl-complete", complete), ("grpcurl-fail", fail)):
        started = say(start, key)
        assert '"owned": true' in started
        found = re.search(r'"id": "(\w+)"', started)
        assert found
        assert "leaseExpiresAt" in say(renew, key, found[1])
        say(last, key, found[1])
        operation = ended(server, found[1])
        assert operation.error.code == (Code.NOT_FOUND if last is fail else Code.OK)
