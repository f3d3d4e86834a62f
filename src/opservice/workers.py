"""`serve --workers N`: a supervisor, and the processes that serve on its port.

A pipe leads from the supervisor to each worker. Down it comes what was read of files, and its end, which
means: drain. So one word suffices for SIGTERM and for a supervisor that was killed. Up it come lines to
print, the first of which says that the worker serves, or the reason why it cannot.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import structlog
import uvloop

from opservice.errors import OpserviceError, StartupError
from opservice.files import Files, read_again, read_files
from opservice.logs import configure_logging
from opservice.operation import SECOND
from opservice.security import Security
from opservice.server import (
    CLOSE_SECONDS,
    build_known_types,
    cannot_listen,
    prepare_database,
    run,
)
from opservice.settings import Settings, split_address
from opservice.store.engine import open_database

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds before a worker is replaced
_SETTLED_SECONDS = 30.0  # one that lived so long is replaced as quickly as the first
_KILL_SECONDS = CLOSE_SECONDS + 3  # after --drain

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_SPAWN = get_context("spawn")  # gRPC does not survive a fork

log = structlog.stdlib.get_logger("opservice.workers")


@dataclass(frozen=True, slots=True)
class _Line:
    text: str


@dataclass(frozen=True, slots=True)
class _Refusal:
    reason: str


async def supervise(settings: Settings, announce: Callable[[str], None]) -> int:
    """Serves with several processes until SIGTERM or SIGINT. Returns the exit code once all have drained.

    `announce` gets the line that says that all are ready. Raises StartupError, or StoreError, when one
    of them cannot start.
    """
    return await _Supervisor(settings, announce).run()


class _Supervisor:
    def __init__(self, settings: Settings, announce: Callable[[str], None]) -> None:
        self._settings = settings
        self._announce = announce
        self._files = Files()
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._links: dict[int, Connection] = {}
        self._processes: dict[int, SpawnProcess] = {}
        self._ready: set[int] = set()
        self._started = False
        self._held_lines: list[str] = []
        self._refusals: dict[int, str] = {}
        self._failure: str | None = None

    async def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_stop_signal)
        # What can be wrong with the settings is found once, and before the database is touched.
        self._files = read_files(self._settings)
        await Security(self._settings, self._files).start()
        build_known_types(self._settings)
        self._loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        database = await asyncio.to_thread(prepare_database, self._settings)
        database.close()
        with _reserved(self._settings.listen) as address:
            self._settings = replace(self._settings, listen=address)
            numbers = range(1, self._settings.workers + 1)
            keepers = [asyncio.create_task(self._keep(number)) for number in numbers]
            await self._stop.wait()
            await self._drain(keepers)
        if self._failure is not None:
            raise StartupError(self._failure)
        log.info("stopped")
        return int(any(keeper.result() != 0 for keeper in keepers))

    def _on_stop_signal(self) -> None:
        if self._stop.is_set():
            log.warning("stopped at once by a second signal")
            for process in self._processes.values():
                process.kill()
            os._exit(1)
        self._stop.set()

    def _on_hangup(self) -> None:
        self._files = read_again(self._settings, self._files)
        for link in self._links.values():
            with suppress(OSError):  # it has just ended; its successor is given them
                link.send(self._files)

    async def _keep(self, number: int) -> int:
        """Runs the worker, and another when it ends, until it is time to stop. The last exit code."""
        pause, exit_code = _FIRST_PAUSE, 0
        while not self._stop.is_set():
            began = self._loop.time()
            exit_code = await self._run_one(number)
            how = _explain(exit_code)
            reason = self._refusals.pop(number, None)
            if self._stop.is_set():
                if exit_code != 0:
                    log.error("a worker did not drain", worker=number, how=how)
                break
            if not self._started:
                self._failure = reason or f"worker {number} {how} before all were ready"
                self._stop.set()
                break
            if self._loop.time() - began > _SETTLED_SECONDS:
                pause = _FIRST_PAUSE
            log.error("a worker ended", worker=number, how=how, reason=reason, next_in=pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stop.wait()
            pause = min(2 * pause, _LONGEST_PAUSE)
            exit_code = 0  # that one was not asked to drain
        return exit_code

    async def _run_one(self, number: int) -> int:
        ours, theirs = _SPAWN.Pipe()
        settings = replace(self._settings, demo=self._settings.demo and number == 1)
        process = _SPAWN.Process(
            target=_work,
            args=(settings, number, self._files, theirs),
            name=f"opservice-worker-{number}",
            daemon=True,  # should the supervisor fail, its end is not held up
        )
        _start(process)
        theirs.close()
        log.info("started a worker", worker=number, pid=process.pid)
        ended = asyncio.Event()
        self._ready.discard(number)
        self._links[number], self._processes[number] = ours, process
        self._loop.add_reader(ours.fileno(), self._hear, number)
        self._loop.add_reader(process.sentinel, ended.set)
        await ended.wait()
        self._loop.remove_reader(process.sentinel)
        while number in self._links:  # what it said last
            self._hear(number)
        process.join()
        del self._processes[number]
        exit_code = process.exitcode
        assert exit_code is not None
        process.close()
        return exit_code

    def _hear(self, number: int) -> None:
        try:
            message: _Line | _Refusal = self._links[number].recv()
        except (EOFError, OSError):
            self._hang_up(number)
            return
        if isinstance(message, _Refusal):
            self._refusals[number] = message.reason
        elif number not in self._ready:
            self._ready.add(number)
            if not self._started and len(self._ready) == self._settings.workers:
                self._say_ready(message.text)
        elif self._started:
            self._announce(message.text)
        else:
            self._held_lines.append(message.text)

    def _say_ready(self, line: str) -> None:
        self._started = True
        self._announce(line)
        for held in self._held_lines:
            self._announce(held)
        log.info("serving", address=self._settings.listen, workers=self._settings.workers)

    def _hang_up(self, number: int) -> None:
        link = self._links.pop(number)
        self._loop.remove_reader(link.fileno())
        link.close()

    async def _drain(self, keepers: list[asyncio.Task[int]]) -> None:
        seconds = self._settings.drain / SECOND
        log.info("draining", seconds=seconds)
        for number in list(self._links):
            self._hang_up(number)
        await asyncio.wait(keepers, timeout=seconds + _KILL_SECONDS)
        for number, process in self._processes.items():
            log.error("a worker did not end in time: killed", worker=number)
            process.kill()
        await asyncio.gather(*keepers)


def _start(process: SpawnProcess) -> None:
    """With signals held back until the worker can take them: a group may get Ctrl-C at any time."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        # start() would do this too, and let SIGINT and SIGTERM through at its end.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _explain(exit_code: int) -> str:
    if exit_code < 0:
        return f"was ended by signal {-exit_code} ({signal.strsignal(-exit_code)})"
    return f"ended with exit code {exit_code}"


@contextmanager
def _reserved(listen: str) -> Iterator[str]:
    """Keeps the port, also while no worker lives. Yields the address with the port that it got.

    The sockets only hold the port: as they do not listen, the kernel gives them no connection. Raises
    StartupError when the port is taken, also by a server that would share it.
    """
    host, port = split_address(listen)
    with ExitStack() as held:
        try:
            for family, _, _, _, address in socket.getaddrinfo(
                host.strip("[]"), port, type=socket.SOCK_STREAM
            ):
                if port:
                    _bound(family, (address[0], port, *address[2:]), share=False).close()
                holder = _bound(family, (address[0], port, *address[2:]), share=True)
                held.enter_context(holder)
                port = holder.getsockname()[1]
        except OSError as error:
            raise cannot_listen(listen) from error
        yield f"{host}:{port}"


def _bound(family: int, address: tuple[object, ...], *, share: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a former server
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(share))
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # as gRPC has it
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


def _work(settings: Settings, number: int, files: Files, supervisor: Connection) -> None:
    """The life of a worker process."""
    # Ctrl-C and a terminal that goes away are told to the whole group: the supervisor acts on them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    configure_logging(settings, worker=number)
    try:
        uvloop.run(_serve(settings, files, supervisor))
    except OpserviceError as error:
        with suppress(OSError):
            supervisor.send(_Refusal(error.message))
        sys.exit(1)


async def _serve(settings: Settings, files: Files, supervisor: Connection) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    # From whoever sends it to all processes of a service, beside what the supervisor says.
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    security = Security(settings, files)
    # When the service began the keys were good: one that replaces another must not fail for what came later.
    await security.start(strict=False)

    def hear() -> None:
        try:
            new: Files = supervisor.recv()
        except (EOFError, OSError):
            loop.remove_reader(supervisor.fileno())
            stop.set()
        else:
            security.replace(new)

    def announce(line: str) -> None:
        with suppress(OSError):  # nobody to print it: hear() ends this worker
            supervisor.send(_Line(line))

    loop.add_reader(supervisor.fileno(), hear)
    await run(
        settings,
        open_database(settings.database),
        security,
        build_known_types(settings),
        stop,
        announce,
        share_port=True,
    )
