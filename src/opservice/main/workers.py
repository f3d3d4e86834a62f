"""`serve --workers N`: a supervisor, and the processes that serve on its port.

A connection (`runtime/connection.py`) leads from the supervisor to each worker. Down it come reloaded files,
and its end, which means: drain. So one word suffices for SIGTERM and for a supervisor that was killed. Up it
come signs of life, and lines to print, the first of which says that the worker serves, or why it cannot.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial

import structlog
import uvloop

from opservice.common.addresses import cannot_listen, split_address
from opservice.common.private_files import group_id
from opservice.common.threads import OneThread, no_garbage_collection
from opservice.domain.errors import OpserviceError, StartupError
from opservice.domain.operation import SECOND
from opservice.main.server import (
    CLOSE_SECONDS,
    build_known_types,
    prepare_database,
    run,
)
from opservice.runtime.connection import MessageConnection
from opservice.runtime.logs import configure_logging
from opservice.runtime.reload import Reload, ReloadableFiles, Reloader, read_files
from opservice.runtime.security import Security
from opservice.runtime.settings import Settings
from opservice.store.engine import open_database

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds before a worker is replaced
_SETTLED_SECONDS = 30.0  # one that lived so long is replaced as quickly as the first
_KILL_SECONDS = CLOSE_SECONDS + 3  # after --drain
_SIGNS = 6
"""How often a worker shows that it lives within --worker-timeout."""
_START = 10
"""How many times --worker-timeout it may take until it shows that for the first time."""

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

log = structlog.stdlib.get_logger("opservice.workers")


@dataclass(frozen=True, slots=True)
class _Job:
    """What a worker is told first; `files` is as those of _ReloadedFiles."""

    settings: Settings
    number: int
    files: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _ReloadedFiles:
    """Files, and whether all could be used, pickled: a worker unpacks them on a thread."""

    files: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Alive:
    """The worker's event loop goes round."""


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


class _Worker:
    """A process that serves, as the supervisor sees it."""

    def __init__(
        self,
        number: int,
        process: subprocess.Popen[bytes],
        connection: MessageConnection,
        sentinel: int,
    ) -> None:
        self.number = number
        self.process = process
        self.connection = connection
        self.ready = False
        self.refusal: str | None = None
        self._sentinel = sentinel
        self._silent_for = 0
        self._most_silent = _START * _SIGNS
        self._news = asyncio.Event()

    @classmethod
    async def start(cls, job: _Job) -> _Worker:
        """Raises OSError when no process can be started."""
        with ExitStack() as unless_started, ExitStack() as its_ends:
            ours, theirs = socket.socketpair()
            unless_started.callback(ours.close)
            its_ends.callback(theirs.close)
            # Its end shows that the process has ended.
            sentinel, held = os.pipe()
            unless_started.callback(os.close, sentinel)
            its_ends.callback(os.close, held)
            process = _spawn(theirs.fileno(), held)
            unless_started.pop_all()
        connection = await MessageConnection.over(ours)
        connection.post(job)
        return cls(job.number, process, connection, sentinel)

    def heard(self) -> None:
        self._silent_for, self._most_silent = 0, _SIGNS

    def is_silent_again(self) -> bool:
        """Called _SIGNS times in --worker-timeout: whether it has now been silent for too long.

        What counts is how often the supervisor itself was able to look: a machine that slept is no fault of
        the workers.
        """
        self._silent_for += 1
        return self._silent_for == self._most_silent + 1

    def tell_news(self) -> None:
        self._news.set()

    async def tell(self, newest: Callable[[], _ReloadedFiles]) -> None:
        """Sends it the newest whenever there are news; one that is slow is sent no older ones."""
        while True:
            await self._news.wait()
            self._news.clear()
            await self.connection.send(newest())

    async def ended(self) -> int:
        """The exit code, once the process has ended."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._sentinel, ended.set)
        await ended.wait()
        loop.remove_reader(self._sentinel)
        os.close(self._sentinel)
        return self.process.wait()


class _Supervisor:
    def __init__(self, settings: Settings, announce: Callable[[str], None]) -> None:
        self._settings = settings
        self._announce = announce
        self._packed = b""
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._workers: dict[int, _Worker] = {}
        self._started = False
        self._held_lines: list[str] = []
        self._failure: str | None = None

    async def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_stop_signal)
        # What can be wrong with the settings is found once, and before the database is touched.
        files = read_files(self._settings.security)
        self._packed = pickle.dumps((files, True))
        await Security(self._settings.security, files).start()
        build_known_types(self._settings.discovery)
        reloader = Reloader(self._settings.security, files, self._on_reload)
        self._loop.add_signal_handler(signal.SIGHUP, reloader.request)
        database = await asyncio.to_thread(prepare_database, self._settings.storage)
        database.close()
        with _reserved(self._settings.listening.listen) as address:
            self._settings = replace(
                self._settings, listening=replace(self._settings.listening, listen=address)
            )
            numbers = range(1, self._settings.processes.workers + 1)
            keepers = [asyncio.create_task(self._keep(number)) for number in numbers]
            watcher = asyncio.create_task(self._watch())
            await self._stop.wait()
            watcher.cancel()
            await self._drain(keepers)
        if self._failure is not None:
            raise StartupError(self._failure)
        log.info("stopped")
        return int(any(keeper.result() != 0 for keeper in keepers))

    def _on_stop_signal(self) -> None:
        if self._stop.is_set():
            log.warning("stopped at once by a second signal")
            for worker in self._workers.values():
                worker.process.kill()
            os._exit(1)
        self._stop.set()

    def _on_reload(self, reload: Reload) -> None:
        """The workers read the keys of --jwks again also when no file has changed."""
        self._packed = pickle.dumps((reload.files, reload.all_usable))
        if reload.files != ReloadableFiles() or self._settings.security.authenticates:
            reload.log()
        if not self._stop.is_set():  # else they are draining
            for worker in self._workers.values():
                worker.tell_news()

    async def _watch(self) -> None:
        """Kills workers that do not answer; they are replaced as others that ended."""
        seconds = self._settings.processes.worker_timeout / SECOND
        while True:
            await asyncio.sleep(seconds / _SIGNS)
            for worker in self._workers.values():
                if worker.is_silent_again():
                    log.error(
                        "a worker does not answer: killed", worker=worker.number, seconds=seconds
                    )
                    worker.process.kill()

    async def _keep(self, number: int) -> int:
        """Runs the worker, and another when it ends, until it is time to stop. The last exit code."""
        pause, exit_code = _FIRST_PAUSE, 0
        while not self._stop.is_set():
            began = self._loop.time()
            exit_code, reason = await self._run_one(number)
            how = _explain(exit_code)
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

    async def _run_one(self, number: int) -> tuple[int, str | None]:
        """Returns its exit code, and why it could not serve, once it has ended."""
        processes = self._settings.processes
        demo = processes.demo and number == 1
        settings = replace(self._settings, processes=replace(processes, demo=demo))
        told = self._packed
        try:
            worker = await _Worker.start(_Job(settings, number, told))
        except OSError as error:  # too many processes, or files
            return 1, f"no process can be started for a worker: {error}"
        log.info("started a worker", worker=number, pid=worker.process.pid)
        self._workers[number] = worker
        if self._stop.is_set():
            worker.connection.end()
        if self._packed is not told:  # while it was started
            worker.tell_news()
        telling = asyncio.create_task(worker.tell(lambda: _ReloadedFiles(self._packed)))
        listening = asyncio.create_task(self._listen(worker))
        try:
            exit_code = await worker.ended()
            await listening  # what it said last
        finally:
            telling.cancel()
            del self._workers[number]
            worker.connection.close()
        return exit_code, worker.refusal

    async def _listen(self, worker: _Worker) -> None:
        """Until the worker has said all."""
        with suppress(EOFError):
            while True:
                message: _Alive | _Line | _Refusal = await worker.connection.receive()
                worker.heard()
                if isinstance(message, _Refusal):
                    worker.refusal = message.reason
                elif isinstance(message, _Line):
                    self._hear(worker, message.text)

    def _hear(self, worker: _Worker, line: str) -> None:
        if not worker.ready:
            worker.ready = True
            ready = sum(each.ready for each in self._workers.values())
            if not self._started and ready == self._settings.processes.workers:
                self._say_ready(line)
        elif self._started:
            self._announce(line)
        else:
            self._held_lines.append(line)

    def _say_ready(self, line: str) -> None:
        self._started = True
        self._announce(line)
        for held in self._held_lines:
            self._announce(held)
        log.info(
            "serving",
            address=self._settings.listening.listen,
            workers=self._settings.processes.workers,
        )

    async def _drain(self, keepers: list[asyncio.Task[int]]) -> None:
        seconds = self._settings.processes.drain / SECOND
        log.info("draining", seconds=seconds)
        for worker in self._workers.values():
            worker.connection.end()
        await asyncio.wait(keepers, timeout=seconds + _KILL_SECONDS)
        for worker in self._workers.values():
            log.error("a worker did not end in time: killed", worker=worker.number)
            worker.process.kill()
        await asyncio.gather(*keepers)


def _spawn(link: int, held: int) -> subprocess.Popen[bytes]:
    """A new interpreter, as gRPC does not survive a fork, whose path lacks the working directory (-P).

    Signals are held back until the worker can take them: a group may get Ctrl-C at any time.
    """
    code = f"from opservice.main.workers import work; work({link}, {held})"
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        return subprocess.Popen(  # noqa: S603 - of this program's own words
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.DEVNULL,
            pass_fds=(link, held),
        )
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


def work(link: int, held: int) -> None:
    """The life of a worker process, which has these files of the supervisor; `held` ends with it."""
    # Ctrl-C and a terminal that goes away are told to the whole group: the supervisor acts on them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for each in (link, held):
        os.set_inheritable(each, False)
    sys.exit(uvloop.run(_work(socket.socket(fileno=link))))


async def _work(connection: socket.socket) -> int:
    supervisor = await MessageConnection.over(connection)
    try:
        job: _Job = await supervisor.receive()
    except EOFError:
        return 1
    configure_logging(job.settings.logging, job.settings.storage.file_group, worker=job.number)
    try:
        await _serve(job, supervisor)
    except OpserviceError as error:
        await supervisor.send(_Refusal(error.message))
        return 1
    return 0


async def _serve(job: _Job, supervisor: MessageConnection) -> None:
    settings = job.settings
    stop = asyncio.Event()
    # From whoever sends it to all processes of a service, beside what the supervisor says.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    files: ReloadableFiles
    files, _ = pickle.loads(job.files)  # noqa: S301 - of the supervisor
    security = Security(settings.security, files)
    beating = asyncio.create_task(
        _show_life(supervisor, settings.processes.worker_timeout / SECOND / _SIGNS)
    )
    # When the service began the keys were good: one that replaces another must not fail for what came later.
    await security.start(strict=False)
    hearing = asyncio.create_task(_hear(supervisor, files, security, stop))
    await run(
        settings,
        # The supervisor made it: were it gone by now, a new one would be empty.
        open_database(
            settings.storage.database, group=group_id(settings.storage.file_group), create=False
        ),
        security,
        build_known_types(settings.discovery),
        stop,
        lambda line: supervisor.post(_Line(line)),
        share_port=True,
    )
    beating.cancel()
    hearing.cancel()


async def _show_life(supervisor: MessageConnection, pause: float) -> None:
    while True:
        if supervisor.idle:  # else it has enough to read
            supervisor.post(_Alive())
        await asyncio.sleep(pause)


async def _hear(
    supervisor: MessageConnection, files: ReloadableFiles, security: Security, stop: asyncio.Event
) -> None:
    """Takes what the supervisor has read, until the supervisor ends."""
    thread: OneThread[Reload] = OneThread("reload")
    while True:
        try:
            new: _ReloadedFiles = await supervisor.receive()
            reload = await thread.run(partial(_unpack, new.files, files))
            files = reload.files
            security.replace(reload)
        except EOFError:
            break
        except Exception:  # whatever it is, the end must be noticed
            log.exception("SIGHUP: the reload failed, and the previous content stays in use")
    stop.set()


def _unpack(packed: bytes, before: ReloadableFiles) -> Reload:
    with no_garbage_collection():
        files, all_usable = pickle.loads(packed)  # noqa: S301 - of the supervisor
        return Reload.compare(files, before, all_usable=all_usable)
