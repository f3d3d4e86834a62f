"""`serve --workers N`: keeps N worker processes serving on one port, and replaces those that end or hang.

The supervisor serves nothing itself. It holds the port, sends reloaded files to the workers, and prints what
they announce. `messages.py` says what they tell each other.
"""

from __future__ import annotations

import asyncio
import pickle
import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from tempfile import TemporaryDirectory

from opservice.common.loggers import get_logger
from opservice.common.metrics import DIRECTORY_VARIABLE, WORKER_VARIABLE
from opservice.domain.errors import StartupError
from opservice.domain.operation import SECOND
from opservice.runtime.components import Components
from opservice.runtime.messages import (
    SIGNS_OF_LIFE,
    Announcement,
    Assignment,
    Ready,
    ReloadedFiles,
)
from opservice.runtime.ports import reserved_port
from opservice.runtime.reload import Reload, ReloadableFiles
from opservice.runtime.settings import Settings
from opservice.runtime.worker_process import Command, State, Worker

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds before a worker is replaced
_SETTLED_SECONDS = 30.0  # after a life of so long a worker is replaced as quickly as the first time
_MEMORY = "/dev/shm"  # noqa: S108 - nobody can foresee the name of the directory that is made in it

log = get_logger("opservice.workers")


class Supervisor:
    """Starts workers with `command`, and keeps them alive.

    A worker that has not ended `kill_seconds` after --drain is killed. `announce` gets the lines to print:
    the first says that all workers are ready.
    """

    def __init__(
        self,
        settings: Settings,
        command: Command,
        stop: asyncio.Event,
        announce: Callable[[str], None],
        *,
        kill_seconds: float,
    ) -> None:
        self._settings = settings
        self._command = command
        self._stop = stop
        self._announce = announce
        self._kill_seconds = kill_seconds
        self._files = _packed(ReloadableFiles(), all_usable=True)
        self._loop = asyncio.get_running_loop()
        self._workers: dict[int, Worker] = {}
        self._exit_codes: dict[int, int] = {}
        self._started = False
        self._held_lines: list[str] = []
        self._failure: str | None = None
        self._metrics = ""
        """The directory of the workers' metrics."""

    async def run(self) -> int:
        """Serves until `stop` is set. Returns the exit code once all workers have drained.

        The workers get the files that `use` or `reload` was given last. Raises StartupError when a worker
        cannot start, or the port is taken.
        """
        with ExitStack() as reserved:
            listening = self._settings.listening
            address = reserved.enter_context(reserved_port(listening.listen))
            http = listening.http_listen
            if listening.serves_http:
                http = reserved.enter_context(reserved_port(http, "--http-listen"))
            metrics = listening.metrics_listen
            if listening.has_metrics_listener:
                metrics = reserved.enter_context(reserved_port(metrics, "--metrics-listen"))
            self._metrics = reserved.enter_context(_directory_of_metrics())
            listening = replace(listening, listen=address, http_listen=http, metrics_listen=metrics)
            self._settings = replace(self._settings, listening=listening)
            numbers = range(1, self._settings.processes.workers + 1)
            async with Components(self._stop) as components:
                components.start("the watch over the workers", self._watch())
                keepers = [
                    components.start(f"the keeper of worker {number}", self._keep(number))
                    for number in numbers
                ]
                await self._stop.wait()
                await self._drain(keepers)
        if self._failure is not None:
            raise StartupError(self._failure)
        log.info("stopped")
        return int(any(self._exit_codes.values()))

    def use(self, files: ReloadableFiles) -> None:
        """The files that the settings name, for workers that start from now on."""
        self._files = _packed(files, all_usable=True)

    def reload(self, reload: Reload) -> None:
        """Sends reloaded files to the workers, which also reload the keys of --jwks."""
        self._files = _packed(reload.files, all_usable=reload.all_usable)
        if reload.files != ReloadableFiles() or self._settings.security.authenticates:
            reload.log()
        if not self._stop.is_set():  # else they are draining
            for worker in self._workers.values():
                worker.reload()

    def kill_workers(self) -> None:
        """Kills all workers at once. Calls in progress are lost."""
        for worker in self._workers.values():
            worker.kill()

    async def _watch(self) -> None:
        """Kills workers that show no sign of life. They are replaced like others that ended."""
        seconds = self._settings.processes.worker_timeout / SECOND
        while not self._stop.is_set():
            await asyncio.sleep(seconds / SIGNS_OF_LIFE)
            for worker in self._workers.values():
                if worker.look():
                    log.error(
                        "a worker does not answer: killed", worker=worker.number, seconds=seconds
                    )
                    worker.hang()

    async def _keep(self, number: int) -> None:
        """Runs the worker, and another one when it ends, until the server stops."""
        pause = _FIRST_PAUSE
        while not self._stop.is_set():
            began = self._loop.time()
            exit_code, reason = await self._run_worker(number)
            how = _explain(exit_code)
            if self._stop.is_set():
                self._exit_codes[number] = exit_code
                if exit_code != 0:
                    log.error("a worker did not drain", worker=number, how=how)
                return
            if not self._started:
                self._failure = reason or f"worker {number} {how} before all were ready"
                self._stop.set()
                return
            if self._loop.time() - began > _SETTLED_SECONDS:
                pause = _FIRST_PAUSE
            log.error("a worker ended", worker=number, how=how, reason=reason, next_in=pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stop.wait()
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _run_worker(self, number: int) -> tuple[int, str | None]:
        """Returns its exit code, and why it could not serve, once it has ended."""
        processes = self._settings.processes
        demo = processes.demo and number == 1
        settings = replace(self._settings, processes=replace(processes, demo=demo))
        sent = self._files
        try:
            worker = await Worker.start(
                Assignment(settings, number, sent),
                self._command,
                {DIRECTORY_VARIABLE: self._metrics, WORKER_VARIABLE: str(number)},
            )
        except OSError as error:  # too many processes, or files
            return 1, f"no process can be started for a worker: {error}"
        log.info("started a worker", worker=number, pid=worker.pid)
        self._workers[number] = worker
        if self._stop.is_set():
            worker.drain()
        if self._files is not sent:  # reloaded while it was started
            worker.reload()
        sending = asyncio.create_task(worker.send_reloads(lambda: ReloadedFiles(self._files)))
        try:
            await worker.listen(self._on_line)  # ends with the process, at the latest
            exit_code = await worker.ended()
        finally:
            sending.cancel()
            del self._workers[number]
            worker.close()
        return exit_code, worker.failure

    def _on_line(self, message: Ready | Announcement) -> None:
        if isinstance(message, Ready):
            ready = sum(each.state is State.READY for each in self._workers.values())
            if not self._started and ready == self._settings.processes.workers:
                self._say_ready(message.line)
        elif self._started:
            self._announce(message.line)
        else:
            self._held_lines.append(message.line)

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

    async def _drain(self, keepers: list[asyncio.Task[None]]) -> None:
        seconds = self._settings.processes.drain / SECOND
        log.info("draining", seconds=seconds)
        for worker in self._workers.values():
            worker.drain()
        await asyncio.wait(keepers, timeout=seconds + self._kill_seconds)
        for worker in self._workers.values():
            log.error("a worker did not end in time: killed", worker=worker.number)
            worker.hang()
        await asyncio.wait(keepers)


def _directory_of_metrics() -> TemporaryDirectory[str]:
    """In memory if possible: workers map the files, and on a full disk the system kills who maps.

    Raises StartupError when there is no place for it.
    """
    for place in (_MEMORY, None):
        try:
            return TemporaryDirectory(prefix="opservice-metrics-", dir=place)
        except OSError as error:
            reason = error
    raise StartupError(
        "there is no directory for the metrics of workers, neither in /dev/shm nor where TMPDIR says:"
        f" {reason.strerror}"
    )


def _packed(files: ReloadableFiles, *, all_usable: bool) -> bytes:
    return pickle.dumps((files, all_usable))


def _explain(exit_code: int) -> str:
    if exit_code < 0:
        return f"was ended by signal {-exit_code} ({signal.strsignal(-exit_code)})"
    return f"ended with exit code {exit_code}"
