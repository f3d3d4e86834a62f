"""The import contracts of pyproject.toml: each refuses what it is there for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FORBIDDEN = [
    # upwards
    ("opservice.domain.operation", "opservice.common.durations"),
    ("opservice.common.addresses", "opservice.store.engine"),
    ("opservice.auth.policy", "opservice.methods.convert"),
    ("opservice.store.schema", "opservice.methods.validation"),
    ("opservice.methods.guard", "opservice.fronts.grpc.adapter"),
    ("opservice.fronts.grpc.server", "opservice.main.server"),
    ("opservice.background.grace", "opservice.main.demo"),
    ("opservice.runtime.tls", "opservice.cli.serve"),
    ("opservice.main.server", "opservice.cli.token"),
    # sideways
    ("opservice.auth.keys", "opservice.store.schema"),
    ("opservice.store.cache", "opservice.auth.authenticator"),
    ("opservice.fronts.grpc.health", "opservice.runtime.settings"),
    ("opservice.fronts.backpressure", "opservice.background.grace"),
    ("opservice.background.housekeeping", "opservice.runtime.tls"),
    # down, past the room that is between
    ("opservice.runtime.logs", "opservice.store.engine"),
    ("opservice.runtime.security", "opservice.methods.guard"),
    ("opservice.fronts.grpc.reflection", "opservice.store.repository"),
    ("opservice.fronts.grpc.services", "opservice.auth.authenticator"),
    ("opservice.background.housekeeping", "opservice.methods.convert"),
    ("opservice.background.grace", "opservice.auth.policy"),
    # gRPC
    ("opservice.methods.pipeline", "grpc"),
    ("opservice.runtime.settings", "grpc"),
    ("opservice.main.server", "grpc"),
    ("opservice.methods.serving", "grpc_health"),
    ("opservice.store.changes", "grpc"),
    ("opservice.common.plain", "grpc"),
    # protobuf
    ("opservice.domain.operation", "google.protobuf"),
    ("opservice.store.repository", "google.protobuf"),
    ("opservice.auth.fetching", "google.rpc"),
    ("opservice.runtime.logs", "google.protobuf"),
    ("opservice.main.workers", "google.protobuf"),
    ("opservice.background.grace", "opservice._proto.opservice.v1.producer_service_pb2"),
    ("opservice.main.server", "opservice._proto.opservice.v1.producer_service_pb2"),
    # databases
    ("opservice.methods.listing", "sqlalchemy"),
    ("opservice.main.server", "sqlalchemy"),
    ("opservice.cli.backup", "psycopg"),
    ("opservice.domain.filters", "sqlite3"),
    ("opservice.main.workers", "pysqlite3"),
    ("opservice.store.batching", "psycopg"),
    ("opservice.store.migrations", "pysqlite3"),
    # within the store
    ("opservice.store.urls", "opservice.store.drivers.protocol"),
    ("opservice.store.drivers.sqlite.backup", "opservice.store.engine"),
    ("opservice.store.cache", "opservice.store.repository"),
    ("opservice.store.listing", "opservice.store.service"),
    # the client
    ("opservice.methods.producer", "opservice_client"),
    ("opservice.main.demo", "opservice_client"),
    ("opservice_client.retries", "opservice.domain.errors"),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two packages and the contracts."""
    directory = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "pyproject.toml", directory)
    for package in ("src/opservice", "client/src/opservice_client"):
        shutil.copytree(
            ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return directory


def lint(copy: Path) -> tuple[int, str]:
    """The exit code and the report of import-linter, without line breaks."""
    path = os.pathsep.join(str(copy / each) for each in ("src", "client/src"))
    ended = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    return ended.returncode, ended.stdout + ended.stderr


def file_of(copy: Path, module: str) -> Path:
    package = "src" if module.startswith("opservice.") else "client/src"
    return (copy / package / Path(*module.split("."))).with_suffix(".py")


def test_each_forbidden_import_is_refused(copy: Path) -> None:
    for importer, imported in FORBIDDEN:
        with file_of(copy, importer).open("a") as file:
            file.write(f"\nimport {imported}\n")

    code, report = lint(copy)

    assert code == 1
    # Of a package of others the report names the package.
    ours = ("opservice.", "opservice_client")
    named = [
        (importer, each if each.startswith(ours) else each.partition(".")[0])
        for importer, each in FORBIDDEN
    ]
    missed = [f"{a} -> {b}" for a, b in named if f"{a} -> {b} (l." not in report]
    assert missed == [], report


def test_a_new_module_without_a_room_is_refused(copy: Path) -> None:
    (copy / "src/opservice/helpers.py").write_text("")

    code, report = lint(copy)

    assert code != 0
    assert "helpers" in report
