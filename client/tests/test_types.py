"""What type checkers say of the client, and of services that are written from its documentation.

They see the client as a service has it: its wheel, installed beside the packages of types.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.tools import require_tool

from .conftest import make_environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/tutorial.md", "docs/producers.md", "docs/recipes.md")
PACKAGES = (
    "celery[redis]",
    "celery-types",
    "fastapi",
    "grpcio-health-checking",
    "grpcio-reflection",
    "pytest",
    "types-grpcio",
    "types-grpcio-health-checking",
    "types-grpcio-reflection",
    "types-protobuf",
    "yandexcloud>=0.391",
)
SECONDS = 300

WRONG = """
import grpc
from opservice_client import CancelPolicy, Failed, Producer, Work, aio

def scan(work: Work, image: str, depth: int = 1) -> None: ...
async def scan_aio(work: aio.Work, image: str) -> None: ...

async def right(producer: Producer, work: Work, running: aio.Work) -> None:
    producer.start(description="x", cancel_policy=CancelPolicy.COOPERATIVE)
    work.run(scan, "x", depth=2)
    running.run(scan_aio, "x")
    with producer.start() as entered:
        entered.complete({"a": 1})
    async with running:
        running.fail(Failed(grpc.StatusCode.NOT_FOUND, "no image"))

def wrong(producer: Producer, work: Work, running: aio.Work) -> None:
    producer.start(descripton="x")  # wrong
    producer.start(lease=60)  # wrong
    producer.start(cancel_policy="COOPERATIVE")  # wrong
    work.run(scan)  # wrong
    work.run(scan, 7)  # wrong
    work.run(scan, "x", depth="2")  # wrong
    work.run(scan_aio, "x")  # wrong
    running.run(scan, "x")  # wrong
    work.fail(ValueError("x"))  # wrong
    producer.resume(work)  # wrong
    print(work.operation.name)  # wrong
"""


@dataclass(frozen=True)
class Workplace:
    """Where the documented programs, the example service and the client's source are."""

    directory: Path
    python: Path

    def write(self, name: str, program: str) -> str:
        """Returns its path in the directory."""
        path = f"programs/{name}.py"
        (self.directory / path).write_text(program)
        return path


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Workplace:
    directory = tmp_path_factory.mktemp("types")
    python = make_environment(directory / "environment", wheel, *PACKAGES)
    place = Workplace(directory, python)
    (directory / "programs").mkdir()
    for page in PAGES:
        programs = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
        assert programs, page
        for number, program in enumerate(programs):
            place.write(f"{Path(page).stem.lower()}_{number}", program)
    shutil.copytree(ROOT / "examples" / "container_registry", directory / "container_registry")
    source = ROOT / "client" / "src" / "opservice_client"
    shutil.copytree(source, directory / "library" / "opservice_client")
    return place


@pytest.fixture(scope="session")
def pyright(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program, of the version and the hash in pyright/package-lock.json."""
    require_tool("node", "apt-get install nodejs")
    npm = require_tool("npm", "apt-get install npm")
    directory = tmp_path_factory.mktemp("pyright")
    shutil.copytree(Path(__file__).parent / "pyright", directory, dirs_exist_ok=True)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=SECONDS)
    return str(directory / "node_modules" / ".bin" / "pyright")


def mypy_errors(place: Workplace, *paths: str) -> list[tuple[str, int, str]]:
    """The file, line and message of each."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--output", "json"]
    where = ["--python-executable", str(place.python), "--cache-dir", str(place.directory / "mypy")]
    done = subprocess.run(
        [*command, *where, *paths],
        cwd=place.directory,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [
        (Path(each["file"]).name, each["line"], each["message"])
        for each in found
        if each["severity"] == "error"
    ]


def pyright_errors(
    pyright: str, place: Workplace, directory: Path, *paths: str
) -> list[tuple[str, int, str]]:
    """The same of pyright, in its mode `strict`. The paths are those in `directory`, where imports begin."""
    config = {"typeCheckingMode": "strict", "include": paths, "exclude": ["**/_proto"]}
    (directory / "pyrightconfig.json").write_text(json.dumps(config))
    said = run_pyright(pyright, place, "--project", str(directory))
    assert said["summary"]["filesAnalyzed"] > 0
    return [
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1, each["message"])
        for each in said["generalDiagnostics"]
    ]


def run_pyright(pyright: str, place: Workplace, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [pyright, "--outputjson", *arguments],
        cwd=place.directory,
        env={**os.environ, "PATH": f"{place.python.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_mypy_finds_nothing_in_documented_programs_and_the_example_service(
    workplace: Workplace,
) -> None:
    assert mypy_errors(workplace, "programs", "container_registry") == []


def test_pyright_finds_nothing_in_documented_programs_and_the_example_service(
    workplace: Workplace, pyright: str
) -> None:
    paths = "programs", "container_registry"

    assert pyright_errors(pyright, workplace, workplace.directory, *paths) == []


def test_pyright_finds_nothing_in_the_client(workplace: Workplace, pyright: str) -> None:
    library = workplace.directory / "library"

    assert pyright_errors(pyright, workplace, library, "opservice_client") == []


def test_every_public_name_of_the_client_has_a_type(workplace: Workplace, pyright: str) -> None:
    said = run_pyright(pyright, workplace, "--verifytypes", "opservice_client", "--ignoreexternal")

    exported = [each for each in said["typeCompleteness"]["symbols"] if each["isExported"]]
    assert "opservice_client.sync.Producer.start" in [each["name"] for each in exported]
    unclear = [each for each in exported if each["isTypeAmbiguous"] or not each["isTypeKnown"]]
    assert [each["name"] for each in unclear] == []


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_wrong_use_is_an_error(
    workplace: Workplace, checker: str, request: pytest.FixtureRequest
) -> None:
    program = workplace.write("wrong", WRONG)
    try:
        if checker == "mypy":
            errors = mypy_errors(workplace, program)
        else:
            found = request.getfixturevalue("pyright")
            errors = pyright_errors(found, workplace, workplace.directory, program)
    finally:
        (workplace.directory / program).unlink()

    wrong = [n for n, line in enumerate(WRONG.splitlines(), 1) if line.endswith("# wrong")]
    assert sorted({line for _, line, _ in errors}) == wrong, errors
