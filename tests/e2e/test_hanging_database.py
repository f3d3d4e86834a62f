"""A database that does not answer at all: neither the callers nor SIGTERM wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from support.client import Refusal, refusal_from
from support.postgres import PostgresServer
from support.server import ServerProcess, eventually, serving


@pytest.fixture
def standby_is_away() -> Iterator[PostgresServer]:
    """Every COMMIT waits for a synchronous standby that does not exist, once told so."""
    server = PostgresServer()
    try:
        yield server
    finally:
        server.remove()


def stall_commits(postgres: PostgresServer, *, stalled: bool) -> None:
    standby = "nobody" if stalled else ""
    postgres.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standby}'")
    postgres.execute("SELECT pg_reload_conf()")


def refused_start(server: ServerProcess) -> Refusal | None:
    """None when it is not: PostgreSQL may take a new setting later than it says."""
    try:
        server.client.start()
    except grpc.RpcError as error:
        return refusal_from(error)
    return None


@pytest.mark.slow
def test_writes_are_refused_in_time_and_go_on_when_commits_do(
    standby_is_away: PostgresServer, tmp_path: Path
) -> None:
    with serving(tmp_path, standby_is_away.create_database()) as server:
        running = server.client.started()
        stall_commits(standby_is_away, stalled=True)
        assert eventually(lambda: refused_start(server)).code is grpc.StatusCode.UNAVAILABLE
        assert server.client.get(running).id == running
        stall_commits(standby_is_away, stalled=False)

        def starts() -> bool:
            with suppress(grpc.RpcError):
                return bool(server.client.started())
            return False

        eventually(starts)


@pytest.mark.slow
def test_sigterm_ends_a_server_whose_commit_hangs(
    standby_is_away: PostgresServer, tmp_path: Path
) -> None:
    with serving(tmp_path, standby_is_away.create_database(), drain="1s") as server:
        server.client.started()
        stall_commits(standby_is_away, stalled=True)
        assert eventually(lambda: refused_start(server)).code is grpc.StatusCode.UNAVAILABLE
        assert server.terminate() == 1
        assert server.log(event="the database hangs: stopped without waiting for it")
