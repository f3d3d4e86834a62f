"""A worker process, as the supervisor sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from enum import Enum

from opservice.runtime.connection import MessageConnection
from opservice.runtime.messages import (
    SIGNS_OF_LIFE,
    Announcement,
    Assignment,
    Failure,
    Ready,
    ReloadedFiles,
)

START_FACTOR = 10
"""How many times --worker-timeout a worker may take until its first sign of life."""

SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
"""Blocked in a new worker until it can handle them: a process group may get Ctrl-C at any time."""

Command = Callable[[int, int], Sequence[str]]
"""The command line of a worker that has two open files: its connection, and one that it holds to its end."""


class State(Enum):
    """The life of a worker, from top to bottom. It may skip states."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    HUNG = "hung"
    """It showed no sign of life, or did not drain in time, and was killed."""
    ENDED = "ended"


class Worker:
    """A process that serves. Only the supervisor's event loop uses it."""

    def __init__(
        self,
        number: int,
        process: subprocess.Popen[bytes],
        connection: MessageConnection,
        sentinel: int,
    ) -> None:
        self.number = number
        self.state = State.STARTING
        self.failure: str | None = None
        self._process = process
        self._connection = connection
        self._sentinel = sentinel
        self._silent_for = 0
        self._most_silent = START_FACTOR * SIGNS_OF_LIFE
        self._reloaded = asyncio.Event()

    @classmethod
    async def start(
        cls, assignment: Assignment, command: Command, environment: Mapping[str, str]
    ) -> Worker:
        """Adds to the environment of the process. Raises OSError when no process can be started."""
        with ExitStack() as unless_started, ExitStack() as its_ends:
            ours, theirs = socket.socketpair()
            unless_started.callback(ours.close)
            its_ends.callback(theirs.close)
            # The end of this pipe shows that the process has ended.
            sentinel, held = os.pipe()
            unless_started.callback(os.close, sentinel)
            its_ends.callback(os.close, held)
            process = _spawn(command, theirs.fileno(), held, environment)
            unless_started.pop_all()
        connection = await MessageConnection.over(ours)
        connection.post(assignment)
        return cls(assignment.number, process, connection, sentinel)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def drain(self) -> None:
        """Lets the worker end the calls in progress, and then itself."""
        if self.state in {State.STARTING, State.READY}:
            self.state = State.DRAINING
        self._connection.end()

    def hang(self) -> None:
        """Kills the worker, because it does not do what it should."""
        self.state = State.HUNG
        self.kill()

    def look(self) -> bool:
        """Whether the worker has been silent for too long. Called SIGNS_OF_LIFE times in --worker-timeout.

        What counts is how often the supervisor could look: the workers are not to blame when the whole
        machine slept.
        """
        self._silent_for += 1
        return self._silent_for > self._most_silent and self.state in {State.STARTING, State.READY}

    def heard(self) -> None:
        """The worker has shown that it is alive."""
        self._silent_for, self._most_silent = 0, SIGNS_OF_LIFE

    def reload(self) -> None:
        """Has the newest files sent to the worker."""
        self._reloaded.set()

    async def send_reloads(self, newest: Callable[[], ReloadedFiles]) -> None:
        """Sends the newest files after each `reload`, until cancelled. A slow worker skips older ones."""
        while True:
            await self._reloaded.wait()
            self._reloaded.clear()
            await self._connection.send(newest())

    async def listen(self, on_line: Callable[[Ready | Announcement], None]) -> None:
        """Receives what the worker says, until it has said everything."""
        with suppress(EOFError):
            while True:
                message = await self._connection.receive()
                self.heard()
                if isinstance(message, Failure):
                    self.failure = message.reason
                elif isinstance(message, Ready | Announcement):
                    if isinstance(message, Ready) and self.state is State.STARTING:
                        self.state = State.READY
                    on_line(message)

    async def ended(self) -> int:
        """The exit code, once the process has ended."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._sentinel)
            os.close(self._sentinel)
        self.state = State.ENDED
        return self._process.wait()

    def close(self) -> None:
        """Closes the connection. A worker that still runs then drains."""
        self._connection.close()


def _spawn(
    command: Command, connection: int, held: int, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """A new process, which has the two files; a new interpreter, as gRPC does not survive a fork."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return subprocess.Popen(  # noqa: S603 - the caller's own command
            command(connection, held),
            stdin=subprocess.DEVNULL,
            pass_fds=(connection, held),
            env={**os.environ, **environment},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
