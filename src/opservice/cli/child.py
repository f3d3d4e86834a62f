"""The command that `opservice run` runs: its exit code, and the signals that it is sent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click

from opservice.common.plain import plain

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_NOT_FOUND = 127
_NOT_EXECUTABLE = 126
"""As shells have them."""
_LOOK_FOR_SIGNALS_SECONDS = 0.2
"""Python calls handlers of signals only between two instructions of the main thread. A signal that comes
just before that thread begins to wait, or in another thread, is passed on after this time at most."""


@dataclass(frozen=True)
class Ended:
    """How a command ended. `message` says it to people, and does not name the command."""

    exit_code: int
    """As a shell has it: 128 and the number of the signal that ended the command."""
    message: str


def say(message: str) -> None:
    """Prints a line on standard error. When nobody reads it any more, the work must not end for it."""
    try:
        click.echo("opservice: " + plain(message), err=True)
    except OSError:
        # Python writes what is left when it exits, and would exit with 120 if that failed.
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - it is not closed


class Signals:
    """Keeps the signals of this program for the command.

    A signal that comes before the command runs means that it is not run. One that comes after its end is
    ignored, as the result is being sent: whoever signals a whole group has meant the command. The next
    ends this program.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """The first signal that came before the command."""
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False
        self._was_patient = False

    def pass_to(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        if self.received is not None:  # it came while the process was being made
            process.send_signal(self.received)

    def command_ended(self) -> None:
        self._ended = True

    def handle(self, number: int, _: FrameType | None) -> None:
        """Raises SystemExit when this program is to end at once."""
        if self._ended:
            if self._was_patient:
                raise SystemExit(128 + number)
            self._was_patient = True
        elif self._process is None:
            self.received = self.received or number
        elif number != signal.SIGINT or not _terminal_interrupts_both():
            self._process.send_signal(number)


@contextmanager
def signals_kept() -> Iterator[Signals]:
    """Signals that are ignored, as under nohup, stay ignored, and are so for the command too."""
    signals = Signals()
    before = {}
    if threading.current_thread() is threading.main_thread():  # only there are signals handled
        for number in _FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, signals.handle)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_child(
    command: Sequence[str],
    environment: dict[str, str],
    signals: Signals,
    *,
    on_cancelled: Callable[[Callable[[], None]], None],
    kill_after: float,
) -> Ended:
    """Runs the command on this program's standard streams, and waits for its end.

    `on_cancelled` is given what stops the command: SIGTERM, and SIGKILL `kill_after` seconds later. It
    may be called in another thread.
    """
    if signals.received is not None:
        return _by_signal(signals.received, "The command was not run, because of {}")
    try:
        process = subprocess.Popen(command, env=environment)  # noqa: S603 - it is what was asked for
    except OSError as error:
        say(f"cannot run {command[0]}: {error.strerror}")
        exit_code = _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
        return Ended(exit_code, f"The command could not be run: {error.strerror}")
    ended = threading.Event()

    def stop() -> None:
        process.terminate()
        if not ended.wait(kill_after):
            process.kill()

    def wait() -> None:
        process.wait()
        ended.set()

    signals.pass_to(process)
    on_cancelled(stop)
    threading.Thread(target=wait, name="wait for the command", daemon=True).start()
    while not ended.wait(_LOOK_FOR_SIGNALS_SECONDS):
        pass
    code = process.returncode
    if code < 0:
        return _by_signal(-code, "The command was ended by {}")
    return Ended(code, f"The command exited with {code}")


def _by_signal(number: int, message: str) -> Ended:
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal
        name = f"signal {number}"
    return Ended(128 + number, message.format(name))


def _terminal_interrupts_both() -> bool:
    """Whether this program is in the foreground of a terminal, whose Ctrl-C the command gets as well."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
