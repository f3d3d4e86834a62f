"""The client alone, in fresh environments, beside what services pin."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from support.client import unpacked
from support.server import ServerProcess

from .conftest import Install, ended

pytestmark = pytest.mark.slow

PRODUCE = """
import asyncio, sys
from google.protobuf.wrappers_pb2 import StringValue
from opservice_client import Failed, Producer, Progress, aio, forward_operations

def run(work, text):
    work.report(Progress(done=1, total=2))
    return StringValue(value=text)

def fail(work):
    raise Failed(5, "not found")

async def main():
    async with aio.Producer(sys.argv[1]) as producer:
        work = await producer.start(description="block")
        async with work:
            work.complete(StringValue(value="aio"))
    print(work.id)

with Producer(sys.argv[1]) as producer:
    works = [producer.start(description="returns"), producer.start(description="fails")]
    works[0].run(run, "threads")
    works[1].run(fail)
    for work in works:
        print(work.id)
    from datetime import timedelta
    producer.close(timedelta(seconds=60))
asyncio.run(main())
"""

TESTING = """
import asyncio
from datetime import timedelta
from opservice_client import Producer, aio
from opservice_client.testing import OperationServer

def until_cancelled(work):
    work.cancelled.wait(60)

async def returns(work):
    return {"rows": 42}

async def main():
    async with OperationServer() as server, aio.Producer(server.target) as producer:
        work = await producer.start()
        work.run(returns)
        print(server.backend, (await server.wait_aio(work.id)).WhichOneof("result"))

with OperationServer() as server, Producer(server.target) as producer:
    works = [producer.start(), producer.start()]
    for work in works:
        work.run(until_cancelled)
    print(server.cancel(works[0].id).error.code)
    server.advance(timedelta(minutes=1))
    print(server.get(works[1].id).error.code)
asyncio.run(main())
"""

MEASURE = """
import json
from importlib.metadata import distributions

def size(distribution):
    return sum(path.locate().stat().st_size for path in distribution.files if path.locate().exists())

print(json.dumps({each.metadata["Name"]: size(each) for each in distributions()}))
"""


def output(python: Path, program: str, *arguments: str) -> str:
    """What it prints. Run outside of this checkout, with warnings shown."""
    done = subprocess.run(
        [python, "-I", "-X", "dev", "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=python.parent,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def produces(python: Path, server: ServerProcess, before: str = "") -> None:
    """Asserts that producers of both kinds work there, and the server for tests, without opservice."""
    returns, fails, block = output(python, before + PRODUCE, server.address).split()

    assert ended(server, returns).response.type_url.endswith("google.protobuf.StringValue")
    assert ended(server, fails).error.message == "not found"
    assert ended(server, block).HasField("response")
    assert output(python, before + TESTING).split() == ["1", "10", "memory", "response"]


@pytest.mark.parametrize(
    ("requirements", "before"),
    [
        (["protobuf==5.29.*"], "import google.protobuf as p; assert p.__version__ > '5.29'\n"),
        (["protobuf==6.*"], "import google.protobuf as p; assert p.__version__ > '6.'\n"),
        (["protobuf==7.*"], "import google.protobuf as p; assert p.__version__ > '7.'\n"),
        (["SQLAlchemy<2.1"], "import sqlalchemy\n"),
        (["fastapi"], "import fastapi\n"),
        (["yandexcloud>=0.391"], "import yandexcloud\n"),
        (
            ["yandexcloud>=0.391"],
            "import opservice_client\nfrom yandex.cloud.operation import operation_pb2\n",
        ),
        (["--resolution", "lowest-direct"], ""),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_it_installs_and_works_beside(
    install: Install, server: ServerProcess, requirements: list[str], before: str
) -> None:
    produces(install(*requirements), server, before)


PYDANTIC = """
import sys
from datetime import datetime, timezone
from decimal import Decimal
from enum import Enum
from opservice_client import Producer
from pydantic import BaseModel, Field

class Severity(Enum):
    HIGH = "high"

class Finding(BaseModel):
    severity: Severity
    score: Decimal

class Report(BaseModel):
    image: str = Field(serialization_alias="imageId")
    at: datetime
    findings: list[Finding] = []

report = Report(
    image="crd1",
    at=datetime(2026, 1, 2, tzinfo=timezone.utc),
    findings=[Finding(severity=Severity.HIGH, score=Decimal("9.8"))],
)
with Producer(sys.argv[1]) as producer, producer.start(metadata=report) as work:
    work.complete(report)
print(work.id)
"""


def test_models_of_pydantic_are_stored_as_their_json(
    install: Install, server: ServerProcess
) -> None:
    id_ = output(install("pydantic"), PYDANTIC, server.address).strip()
    operation = ended(server, id_)

    for payload in (operation.metadata, operation.response):
        assert MessageToDict(unpacked(payload, Struct)) == {
            "image": "crd1",
            "at": "2026-01-02T00:00:00Z",
            "findings": [{"severity": "high", "score": "9.8"}],
        }


def find_python(version: str) -> str | None:
    """On the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates: list[str | Path] = [
        f"python{version}",
        *sorted(pyenv.glob(f"{version}.*/bin/python3")),
    ]
    for each in candidates:
        with suppress(OSError):
            asked = [each, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
            if subprocess.run(asked, capture_output=True, text=True).stdout.strip() == version:
                return str(each)
    return None


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_it_works_on_each_python(install: Install, server: ServerProcess, version: str) -> None:
    found = find_python(version)
    if found is None:
        pytest.skip(f"there is no Python {version} on this machine")

    produces(install(python=found), server)


def test_it_brings_few_packages_and_little(install: Install) -> None:
    sizes: dict[str, int] = json.loads(output(install(), MEASURE))
    rest = sum(size for name, size in sizes.items() if name not in ("grpcio", "protobuf"))

    assert "opservice-client" in sizes
    assert "opservice" not in sizes
    assert len(sizes) <= 8, sizes
    assert rest <= 40 << 20, sizes
