"""What the supervisor makes of its workers, as far as it takes no processes to see."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from opservice.domain.errors import StartupError
from opservice.main.workers import _SIGNS, _START, _Worker, supervise
from opservice.runtime.connection import MessageConnection
from opservice.runtime.settings import Settings
from support.tools import stable_port


@pytest.fixture
async def worker() -> AsyncIterator[_Worker]:
    """One whose process has long ended."""
    ours, theirs = socket.socketpair()
    connection = await MessageConnection.over(ours)
    process = subprocess.Popen(["true"])  # noqa: ASYNC220 - it ends at once
    process.wait()
    with theirs:
        yield _Worker(1, process, connection, -1)
    connection.close()


def looks_until_silent(worker: _Worker) -> int:
    """How often the supervisor looks before it takes the worker for one that does not answer."""
    return next(number for number in range(1_000) if worker.is_silent_again())


async def test_a_worker_has_long_until_its_first_sign_of_life(worker: _Worker) -> None:
    assert looks_until_silent(worker) == _START * _SIGNS


async def test_every_sign_of_life_counts(worker: _Worker) -> None:
    worker.heard()
    for _ in range(_SIGNS):
        assert not worker.is_silent_again()
    worker.heard()

    assert looks_until_silent(worker) == _SIGNS


async def test_a_worker_is_taken_for_silent_once(worker: _Worker) -> None:
    """It is being killed then."""
    worker.heard()
    looks_until_silent(worker)

    assert not any(worker.is_silent_again() for _ in range(100))


async def test_where_no_process_can_be_started_the_start_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    settings = Settings.of(
        listen=f"127.0.0.1:{stable_port()}", database=f"sqlite:///{tmp_path}/a.db", workers=2
    )

    with pytest.raises(StartupError, match="no process can be started for a worker"):
        await asyncio.wait_for(supervise(settings, print), 60)
