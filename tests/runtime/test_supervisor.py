"""What the supervisor makes of its workers, as far as no server is needed to see it."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from opservice.domain.errors import StartupError
from opservice.runtime.connection import MessageConnection
from opservice.runtime.messages import SIGNS_OF_LIFE, Alive, Announcement, Failure, Ready
from opservice.runtime.settings import Settings
from opservice.runtime.supervisor import Supervisor
from opservice.runtime.worker_process import START_FACTOR, State, Worker
from support.server import PATIENCE
from support.tools import stable_port

Site = tuple[Worker, MessageConnection]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """A worker whose process only sleeps, and the worker's end of its connection."""
    ours, theirs = socket.socketpair()
    connection, worker_end = (
        await MessageConnection.over(ours),
        await MessageConnection.over(theirs),
    )
    process = subprocess.Popen(["sleep", "1000"])  # noqa: ASYNC220 - it returns at once
    yield Worker(1, process, connection, -1), worker_end
    process.kill()
    process.wait()
    connection.close()
    worker_end.close()


def looks_until_hung(worker: Worker) -> int:
    """How often the supervisor looks before it takes the worker for hung."""
    return next(number for number in range(1, 1_000) if worker.look())


async def test_a_worker_has_long_until_its_first_sign_of_life(site: Site) -> None:
    worker, _ = site

    assert looks_until_hung(worker) == START_FACTOR * SIGNS_OF_LIFE + 1


async def test_every_sign_of_life_counts(site: Site) -> None:
    worker, _ = site
    worker.heard()
    assert not any(worker.look() for _ in range(SIGNS_OF_LIFE))
    worker.heard()

    assert looks_until_hung(worker) == SIGNS_OF_LIFE + 1


async def test_a_hung_worker_is_killed(site: Site) -> None:
    worker, _ = site
    worker.hang()

    assert worker.state is State.HUNG
    assert worker._process.wait(PATIENCE) == -9
    assert not any(worker.look() for _ in range(1_000)), "it is being killed already"


async def test_a_worker_that_drains_is_not_taken_for_hung(site: Site) -> None:
    """It says nothing any more when it has drained. It is given its own time."""
    worker, _ = site
    worker.heard()
    worker.drain()

    assert not any(worker.look() for _ in range(1_000))
    assert worker.state is State.DRAINING
    assert worker._process.poll() is None


async def test_a_worker_goes_through_its_states_as_it_says(site: Site) -> None:
    worker, worker_end = site
    lines: list[Ready | Announcement] = []
    listening = asyncio.create_task(worker.listen(lines.append))
    for message in (Alive(), Ready("serving"), Announcement("more"), Failure("the disk is full")):
        worker_end.post(message)
    worker_end.end()
    await asyncio.wait_for(listening, PATIENCE)

    assert worker.state is State.READY
    assert lines == [Ready("serving"), Announcement("more")]
    assert worker.failure == "the disk is full"


async def test_a_worker_learns_that_it_should_drain_by_the_end_of_its_connection(
    site: Site,
) -> None:
    worker, worker_end = site
    worker.drain()

    assert worker.state is State.DRAINING
    with pytest.raises(EOFError):
        await asyncio.wait_for(worker_end.receive(), PATIENCE)


async def test_a_worker_that_was_told_to_drain_does_not_become_ready(site: Site) -> None:
    worker, worker_end = site
    worker.drain()
    worker_end.post(Ready("serving"))
    worker_end.end()
    await asyncio.wait_for(worker.listen(lambda _: None), PATIENCE)

    assert worker.state is State.DRAINING


def supervisor(tmp_path: Path, *command: str) -> Supervisor:
    settings = Settings.of(
        listen=f"127.0.0.1:{stable_port()}",
        http_listen="off",
        database=f"sqlite:///{tmp_path}/a.db",
        workers=2,
    )

    def command_of(_connection: int, _held: int) -> Sequence[str]:
        return command

    return Supervisor(settings, command_of, asyncio.Event(), print, kill_seconds=1)


async def test_where_no_process_can_be_started_the_start_is_refused(tmp_path: Path) -> None:
    supervising = supervisor(tmp_path, str(tmp_path / "missing")).run()

    with pytest.raises(StartupError, match="no process can be started for a worker"):
        await asyncio.wait_for(supervising, PATIENCE)


async def test_a_worker_that_ends_before_all_are_ready_ends_the_start(tmp_path: Path) -> None:
    supervising = supervisor(tmp_path, "sh", "-c", "exit 7").run()

    message = "^worker [12] ended with exit code 7 before all were ready$"
    with pytest.raises(StartupError, match=message):
        await asyncio.wait_for(supervising, PATIENCE)


async def test_where_metrics_have_no_place_the_start_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opservice.runtime.supervisor._MEMORY", str(tmp_path / "none"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "neither"))

    with pytest.raises(StartupError, match="no directory for the metrics of workers"):
        await asyncio.wait_for(supervisor(tmp_path, "true").run(), PATIENCE)
