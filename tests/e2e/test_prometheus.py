"""A real Prometheus scrapes two workers and two replicas, and answers queries."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests

from support.postgres import PostgresServer
from support.server import ServerProcess, eventually, serving
from support.tools import require_tool, stable_port

pytestmark = pytest.mark.slow

_CONFIGURATION = """\
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: opservice
    static_configs: [{{targets: [{targets}]}}]
"""


class Prometheus:
    def __init__(self, url: str) -> None:
        self._url = url

    def value(self, query: str) -> float | None:
        """What the query comes to; None for nothing."""
        try:
            asked = requests.get(f"{self._url}/api/v1/query", {"query": query}, timeout=10)
        except requests.ConnectionError:
            return None
        results = asked.json()["data"]["result"] if asked.ok else []
        return float(results[0]["value"][1]) if results else None

    def becomes(self, query: str, value: float) -> None:
        eventually(lambda: self.value(query) == value)


@contextmanager
def prometheus(directory: Path, *targets: str) -> Iterator[Prometheus]:
    program = require_tool("prometheus", "it is in the Debian package prometheus")
    port = stable_port()
    configuration = directory / "prometheus.yml"
    configuration.write_text(_CONFIGURATION.format(targets=", ".join(f'"{t}"' for t in targets)))
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={configuration}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            yield Prometheus(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
            process.wait()


def test_two_workers_on_each_of_two_replicas(postgres: PostgresServer, tmp_path: Path) -> None:
    database = postgres.create_database()
    with ExitStack() as stack:
        replicas: list[ServerProcess] = []
        for name in "ab":
            directory = tmp_path / name
            directory.mkdir()
            serves = serving(
                directory, database, workers=2, metrics_listen=f"127.0.0.1:{stable_port()}"
            )
            replicas.append(stack.enter_context(serves))
        addresses = [replica.settings["metrics_listen"] for replica in replicas]
        told = stack.enter_context(prometheus(tmp_path, *addresses))
        told.becomes("sum(up)", 2)
        told.becomes("max(opservice_operations_running)", 0)
        for replica in replicas:
            for _ in range(10):  # each on a connection of its own, so that both workers get some
                with replica.channel() as channel:
                    client = type(replica.client)(channel)
                    client.cancel(client.started())
            replica.client.started()
        told.becomes("sum(opservice_operations_started_total)", 22)
        told.becomes("min(opservice_operations_started_total)", 11)
        told.becomes('sum(opservice_operations_ended_total{outcome="cancelled"})', 20)
        told.becomes('sum(grpc_server_handled_total{grpc_method="Cancel",grpc_code="OK"})', 20)
        told.becomes("max(opservice_operations_running)", 2)
        assert (told.value("sum(process_resident_memory_bytes)") or 0) > 1e8
