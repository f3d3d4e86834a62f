"""Holders that go on renewing keep their operations, whatever pauses; holders that are gone do not."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code

from support.client import TOKEN, Client
from support.postgres import PostgresServer
from support.server import ServerProcess, eventually, serving
from support.tools import require_tool

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


@pytest.mark.slow
def test_a_row_that_stays_locked_keeps_no_other_lease_from_lapsing(
    tmp_path: Path, own_postgres: PostgresServer
) -> None:
    url = own_postgres.create_database()
    stop = threading.Event()

    with serving(tmp_path, url, restart_grace="8s", housekeeping_interval="100ms") as server:
        locked = server.client.started(lease=Duration(seconds=3600), lease_token=TOKEN)

        def renew() -> None:
            # Less often than the server remembers a row that is locked: each time it waits for it.
            while not stop.wait(1.5):
                with suppress(grpc.RpcError):
                    server.client.renew(locked, lease_token=TOKEN)

        with psycopg.connect(url) as connection:
            connection.execute("SELECT FROM operations WHERE id = %s FOR UPDATE", [locked])
            thread = threading.Thread(target=renew)
            thread.start()
            try:
                gone = server.client.started(lease=LEASE, lease_token=TOKEN)
                eventually(lambda: server.client.get(gone).done)
            finally:
                stop.set()
                thread.join()


@pytest.mark.slow
def test_a_database_that_was_stopped_costs_nobody_their_lease(
    tmp_path: Path, own_postgres: PostgresServer
) -> None:
    stopped: list[int] = []

    def stop() -> None:
        stopped.extend(own_postgres.processes())
        send(signal.SIGSTOP)

    def send(number: signal.Signals) -> None:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    with serving(tmp_path, own_postgres.create_database(), **SETTINGS) as server:
        keep_through(server, stop, lambda: send(signal.SIGCONT))


@pytest.mark.slow
def test_a_clock_that_is_set_forward_costs_nobody_their_lease(tmp_path: Path) -> None:
    faketime = require_tool("faketime", "apt-get install faketime")
    preload = subprocess.run(
        [faketime, "-f", "+0s", "printenv", "LD_PRELOAD"],
        capture_output=True,
        text=True,
        check=True,
    )
    offset = tmp_path / "offset"
    offset.write_text("+0s\n")
    settable = {
        "LD_PRELOAD": preload.stdout.strip(),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }

    def set_forward() -> None:
        # In one step: a file that is empty for a moment would mean another time.
        (tmp_path / "next").write_text("+90s\n")
        (tmp_path / "next").replace(offset)

    with serving(
        tmp_path,
        f"sqlite:///{tmp_path}/operations.db",
        environment=settable,
        **SETTINGS,
    ) as server:
        keep_through(server, set_forward, lambda: None)
