"""Holders that go on renewing keep their operations, whatever pauses; holders that are gone do not."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code

from support.client import TOKEN, Client
from support.postgres import PostgresServer
from support.server import ServerProcess, eventually, serving

LEASE = Duration(seconds=3)
PAUSE_SECONDS = 8
SETTINGS = {"restart_grace": "4s", "housekeeping_interval": "100ms"}


@contextmanager
def renewing(client: Client, ids: list[str]) -> Iterator[None]:
    """Holders that renew every half a second, and go on when that fails."""
    stop = threading.Event()

    def hold(id_: str) -> None:
        while not stop.wait(0.5):
            with suppress(grpc.RpcError):
                client.renew(id_, lease_token=TOKEN)

    threads = [threading.Thread(target=hold, args=(id_,)) for id_ in ids]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def keep_through(
    server: ServerProcess, pause: Callable[[], object], resume: Callable[[], object]
) -> None:
    client = server.client
    held = [client.started(lease=LEASE, lease_token=TOKEN) for _ in range(4)]
    with renewing(client, held):
        # Once the server ends what lapses, the grace after its start is over.
        first = client.started(lease=LEASE, lease_token=TOKEN)
        eventually(lambda: client.get(first).done)
        gone = client.started(lease=LEASE, lease_token=TOKEN)
        pause()
        try:
            time.sleep(PAUSE_SECONDS)
        finally:
            resume()

        def ended() -> bool:
            with suppress(grpc.RpcError):
                return client.get(gone).done
            return False

        eventually(ended)
        assert client.get(gone).error.code == Code.ABORTED
        assert [client.get(id_).error.message for id_ in held if client.get(id_).done] == []
    for id_ in held:
        assert client.complete(id_, lease_token=TOKEN).done


@pytest.mark.slow
def test_a_server_that_was_stopped_lets_its_holders_renew(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path}/operations.db", **SETTINGS) as server:
        pid = server.pid
        keep_through(
            server,
            lambda: os.kill(pid, signal.SIGSTOP),
            lambda: os.kill(pid, signal.SIGCONT),
        )


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        yield server
    finally:
        server.remove()


@pytest.mark.slow
def test_commits_that_hung_cost_nobody_their_lease(
    tmp_path: Path, own_postgres: PostgresServer
) -> None:
    def set_standby(name: str) -> None:
        own_postgres.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        own_postgres.execute("SELECT pg_reload_conf()")

    with serving(tmp_path, own_postgres.create_database(), **SETTINGS) as server:
        keep_through(server, lambda: set_standby("absent"), lambda: set_standby(""))
