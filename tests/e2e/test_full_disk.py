"""A disk that is full: writes are refused, reads go on, and space is all that it takes to recover."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from google.protobuf.any_pb2 import Any as AnyPb
from grpc import StatusCode

from support.client import refused
from support.server import PATIENCE, serving

_MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(directory)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


def test_a_full_disk_refuses_writes_and_nothing_else(small_disk: Path, tmp_path: Path) -> None:
    payload = AnyPb(type_url="type.googleapis.com/a.B", value=b"x" * (_MIB - 100))
    with serving(tmp_path, f"sqlite:///{small_disk}/operations.db") as server:
        before = [server.client.get(server.client.started(metadata=payload)) for _ in range(2)]
        ballast = fill(small_disk)

        with refused() as refusal:
            for _ in range(20):  # the database may have some room of its own
                server.client.start(metadata=payload)

        assert refusal.code in {StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNAVAILABLE}
        assert refusal.reason in {"STORE_FULL", "STORE_UNAVAILABLE"}
        assert refusal.retry_seconds > 0
        assert [server.client.get(each.id) for each in before] == before

        ballast.unlink()

        operation = server.client.get(server.client.started(metadata=payload))
        assert operation.metadata == payload
        assert [server.client.get(each.id) for each in before] == before


@pytest.mark.slow
def test_a_full_disk_kills_no_worker(small_disk: Path, tmp_path: Path) -> None:
    """Also when temporary files are on it. What workers count is in files that they map."""
    payload = AnyPb(type_url="type.googleapis.com/a.B", value=b"x" * (_MIB - 100))
    database = f"sqlite:///{small_disk}/operations.db"
    settings = {"workers": 2, "http_listen": "127.0.0.1:0"}
    there = {"TMPDIR": str(small_disk)}
    with serving(tmp_path, database, environment=there, **settings) as server:
        id_ = server.client.started()
        fill(small_disk)

        with refused() as refusal:
            for _ in range(20):
                server.client.start(metadata=payload)
        # Each path has counters of its own, in each worker.
        paths = [
            "operations/a",
            "v1/operationRecords/a",
            "v1/operationRecords",
            "openapi.json",
            "readyz",
        ]
        with suppress(httpx.TransportError):
            for path in paths * 8:
                httpx.get(f"{server.http_url}/{path}", timeout=PATIENCE, trust_env=False)

        assert refusal.reason == "STORE_FULL"
        assert server.client.get(id_).id == id_
        assert server.log(event="a worker ended") == []


def fill(directory: Path) -> Path:
    """A file that takes all the room that is left."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    return ballast
