"""`serve --demo`: operations to look at, and lines to paste into a shell."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from google.rpc.code_pb2 import Code

from opservice._proto.opservice.demo.v1.container_registry_pb2 import (
    DeleteImageMetadata,
    Registry,
    ScanResult,
)
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from support.client import unpacked
from support.server import PATIENCE, ServerProcess, eventually, serving
from support.tools import require_tool

_LINE = re.compile(r"^  (crd[0-9a-v]{17})  (.+) \(\d+ s, cancel: \w+\)$", re.MULTILINE)
_GRPCURL = re.compile(r"^  (grpcurl .+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("demo")
    with serving(directory, f"sqlite:///{directory}/a.db", demo=True) as server:
        eventually(lambda: len(_GRPCURL.findall(server.stdout)) == 2)
        yield server


def announced(server: ServerProcess) -> dict[str, str]:
    """The ids of the operations, by their descriptions."""
    return {description: id_ for id_, description in _LINE.findall(server.stdout)}


def ended(server: ServerProcess, id_: str) -> Operation:
    """The operation, once its worker has ended it: the longest takes 2 minutes."""

    def look() -> Operation | None:
        operation = server.client.get(id_)
        return operation if operation.done else None

    return eventually(look, 3 * PATIENCE)


def test_the_demo_announces_what_it_runs(demo: ServerProcess) -> None:
    operations = announced(demo)

    assert list(operations) == [
        "Create registry",
        "Delete image",
        "Scan image",
        "Create registry, whose name is taken",
    ]
    for description, id_ in operations.items():
        assert demo.client.get(id_).description == description


def test_its_grpcurl_lines_can_be_pasted(demo: ServerProcess) -> None:
    grpcurl = require_tool(
        "grpcurl", "go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest"
    )
    answers = []
    for line in _GRPCURL.findall(demo.stdout):
        _, *arguments = shlex.split(line)
        process = subprocess.run([grpcurl, *arguments], capture_output=True, timeout=PATIENCE)
        assert process.returncode == 0, process.stderr
        answers.append(json.loads(process.stdout))

    got, cancelled = answers
    assert got["metadata"]["@type"].endswith("opservice.demo.v1.CreateRegistryMetadata")
    assert got["metadata"]["registryId"].startswith("crp")
    assert cancelled["error"]["code"] == Code.CANCELLED


def test_a_demo_operation_that_cannot_be_cancelled_has_metadata(demo: ServerProcess) -> None:
    operation = demo.client.get(announced(demo)["Delete image"])

    assert unpacked(operation.metadata, DeleteImageMetadata).image_id.startswith("crp")


@pytest.mark.slow
def test_demo_operations_end_by_themselves(tmp_path: Path) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path}/a.db", demo=True) as server:
        eventually(lambda: len(announced(server)) == 4)
        results = {name: ended(server, id_) for name, id_ in announced(server).items()}

    assert unpacked(results["Create registry"].response, Registry).name == "team-images"
    assert unpacked(results["Delete image"].response, Empty) == Empty()
    assert unpacked(results["Scan image"].response, ScanResult).vulnerabilities.high == 2
    taken = results["Create registry, whose name is taken"]
    assert taken.error.code == Code.ALREADY_EXISTS


@pytest.mark.slow
def test_a_demo_scan_obeys_a_cancel(demo: ServerProcess) -> None:
    id_ = announced(demo)["Scan image"]
    demo.client.cancel(id_)

    assert ended(demo, id_).error.code == Code.CANCELLED
    assert not demo.log(event="swept", sweep="EndCancelGrace")
