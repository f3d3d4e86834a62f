"""The life of a worker process, which the supervisor (`runtime/supervisor.py`) has started."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial

import uvloop

from opservice.common.loggers import get_logger
from opservice.common.private_files import group_id
from opservice.common.threads import OneThread, no_garbage_collection
from opservice.domain.errors import OpserviceError
from opservice.domain.operation import SECOND
from opservice.main.server import build_known_types, run
from opservice.runtime.components import Components
from opservice.runtime.connection import MessageConnection
from opservice.runtime.logs import configure_logging
from opservice.runtime.messages import (
    SIGNS_OF_LIFE,
    Alive,
    Announcement,
    Assignment,
    Failure,
    Ready,
    ReloadedFiles,
)
from opservice.runtime.reload import Reload, ReloadableFiles
from opservice.runtime.security import Security
from opservice.runtime.worker_process import SIGNALS
from opservice.store.engine import open_database

log = get_logger("opservice.workers")


def worker_command(connection: int, held: int) -> Sequence[str]:
    """The command that runs `work`, with a module path that lacks the working directory (-P)."""
    code = f"from opservice.main.worker import work; work({connection}, {held})"
    return [sys.executable, "-P", "-c", code]


def work(connection: int, held: int) -> None:
    """Serves until the supervisor, or SIGTERM, says that it is time to stop. Ends the process.

    `connection` leads to the supervisor; `held` ends with this process.
    """
    # Ctrl-C and a terminal that goes away are told to the whole process group: the supervisor acts on them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for each in (connection, held):
        os.set_inheritable(each, False)
    sys.exit(uvloop.run(_work(socket.socket(fileno=connection))))


async def _work(connection: socket.socket) -> int:
    supervisor = await MessageConnection.over(connection)
    try:
        assignment: Assignment = await supervisor.receive()
    except EOFError:
        return 1
    settings = assignment.settings
    try:
        configure_logging(settings.logging, settings.storage.file_group, worker=assignment.number)
        await _serve(assignment, supervisor)
    except OpserviceError as error:
        await supervisor.send(Failure(error.message))
        return 1
    return 0


async def _serve(assignment: Assignment, supervisor: MessageConnection) -> None:
    settings = assignment.settings
    stop = asyncio.Event()
    # From whoever sends it to all processes of a service, beside what the supervisor says.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    files: ReloadableFiles
    files, _ = pickle.loads(assignment.files)  # noqa: S301 - from the supervisor
    security = Security(settings.security, files)
    async with Components(stop) as components:
        pause = settings.processes.worker_timeout / SECOND / SIGNS_OF_LIFE
        components.start("the worker's signs of life", _show_life(supervisor, pause))
        # The keys were good when the supervisor started. A worker that replaces another must not fail for
        # what has happened to them since.
        await security.start(strict=False)
        components.start(
            "the worker's ear for the supervisor", _obey(supervisor, files, security, stop)
        )
        await run(
            settings,
            # The supervisor made it. If the file is gone by now, a new one would be empty.
            open_database(
                settings.storage.database,
                group=group_id(settings.storage.file_group),
                create=False,
            ),
            security,
            build_known_types(settings.discovery),
            stop,
            _announcer(supervisor),
            share_port=True,
        )


def _announcer(supervisor: MessageConnection) -> Callable[[str], None]:
    """Sends the first line as Ready: the server announces that it serves before anything else."""
    kinds = iter([Ready])

    def announce(line: str) -> None:
        supervisor.post(next(kinds, Announcement)(line))

    return announce


async def _show_life(supervisor: MessageConnection, pause: float) -> None:
    while True:
        if supervisor.idle:  # else the supervisor has enough to read
            supervisor.post(Alive())
        await asyncio.sleep(pause)


async def _obey(
    supervisor: MessageConnection,
    files: ReloadableFiles,
    security: Security,
    stop: asyncio.Event,
) -> None:
    """Uses files that the supervisor has reloaded. Sets `stop` when the supervisor ends the connection."""
    thread: OneThread[Reload] = OneThread("reload")
    while True:
        try:
            message: ReloadedFiles = await supervisor.receive()
            reload = await thread.run(partial(_unpack, message.files, files))
            files = reload.files
            security.replace(reload)
        except EOFError:
            break
        except Exception:  # whatever it is, the end must be noticed
            log.exception("SIGHUP: the reload failed, and the previous content stays in use")
    stop.set()


def _unpack(packed: bytes, before: ReloadableFiles) -> Reload:
    with no_garbage_collection():
        files, all_usable = pickle.loads(packed)  # noqa: S301 - from the supervisor
        return Reload.compare(files, before, all_usable=all_usable)
