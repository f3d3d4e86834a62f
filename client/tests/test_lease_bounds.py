"""No lease lapses for a server that hangs while another is healthy, and outages are told once."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from opservice_client import StartFailed
from opservice_client.connection import attempt_seconds
from support.producers import Steps, WorkLike, returning
from support.server import eventually, serving

from .conftest import SETTINGS, Connect, ended

WORKS = 50
LEASE = timedelta(seconds=8)
"""Three of them pass while the worker hangs, within the 30 s after which the supervisor would kill it."""


@contextmanager
def hanging(pid: int, database: Path) -> Iterator[None]:
    """The process is stopped, and not while it writes: it would lock SQLite for all others."""

    def stopped_between_writes() -> bool:
        os.kill(pid, signal.SIGSTOP)
        with closing(sqlite3.connect(database, timeout=0.2, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                os.kill(pid, signal.SIGCONT)
                return False
            connection.execute("ROLLBACK")
            return True

    eventually(stopped_between_writes)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.parametrize("hung", [1, 2])
def test_no_lease_lapses_while_one_of_two_workers_hangs(
    connect: Connect, tmp_path: Path, hung: int
) -> None:
    def body(work: WorkLike) -> Steps:
        while not go_on.is_set():
            yield
        return "done"

    go_on = threading.Event()
    database = tmp_path / "operations.db"
    with serving(tmp_path, f"sqlite:///{database}", workers=2) as server:
        producer = connect(server.address)
        works = [producer.start(lease=LEASE) for _ in range(WORKS)]
        pid = server.log(event="started a worker", worker=hung)[-1]["pid"]
        for work in works:
            producer.run(work, body)
        with hanging(pid, database):
            # All of them live on one connection, to one of the workers: long enough for each to lapse.
            threading.Event().wait(3 * LEASE.total_seconds())
            go_on.set()
            for work in works:
                eventually(lambda done=work: done.operation.done)  # type: ignore[misc] # a default has no type
        assert [work.operation.error for work in works if work.operation.HasField("error")] == []
        producer.close()


@pytest.mark.parametrize(("lease", "attempt"), [(1, 1 / 6), (30, 5), (60, 10), (3600, 10)])
def test_an_attempt_takes_a_sixth_of_the_lease_at_most(lease: float, attempt: float) -> None:
    assert attempt_seconds(timedelta(seconds=lease)) == pytest.approx(attempt)


def test_a_start_that_reaches_nobody_says_what_was_tried(
    connect: Connect, unused_port: int
) -> None:
    address = f"127.0.0.1:{unused_port}"
    producer = connect(address, start_timeout=timedelta(seconds=0.5))

    with pytest.raises(
        StartFailed, match=rf"{address}: UNAVAILABLE: .*\(tried \d times in 0\.\d s"
    ):
        producer.start()


@pytest.mark.slow
def test_an_outage_is_one_line_and_its_end_another(
    connect: Connect,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def lines() -> list[str]:
        return [
            each.getMessage()
            for each in caplog.records
            if each.name == "opservice_client" and each.levelno >= logging.WARNING
        ]

    with serving(tmp_path, f"sqlite:///{tmp_path}/operations.db", **SETTINGS) as server:
        producer = connect(server.address)
        works = [producer.start() for _ in range(5)]
        capfd.readouterr()
        server.kill()
        for work in works:
            producer.run(work, returning(None))
        eventually(lines)
        threading.Event().wait(2)
        server.start()
        for work in works:
            ended(server, work.id)
        producer.close(timedelta(seconds=60))

    outage, end = lines()
    assert outage.startswith(f"{server.address} does not answer (UNAVAILABLE: ")
    assert end.startswith(f"{server.address} answers again, after ")
    assert capfd.readouterr() == ("", "")
