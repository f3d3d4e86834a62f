"""`opservice` as a process, where what matters is the process: signals, pipes, a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from select import select

from support.server import PATIENCE, ServerProcess, clean_environment, command_line

_ENDED_BY_SIGNALS = ["env", "--default-signal=INT,QUIT,HUP"]
"""Also when what runs the tests has them ignored, as nohup does, and a shell for its background."""


@contextmanager
def running(server: ServerProcess, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command with pipes and without a terminal, ended at the latest with the block."""
    environment = clean_environment(OPSERVICE_SERVER=server.address)
    with subprocess.Popen(
        [*_ENDED_BY_SIGNALS, *command_line(arguments, {})],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def on_a_terminal(
    server: ServerProcess,
    *arguments: str,
    once_shown: tuple[str, Callable[[], object]] | None = None,
    press: tuple[str, str] | None = None,
    **environment: str,
) -> tuple[int, str]:
    """The exit code of a command on a terminal, and all that the terminal was sent.

    `once_shown` is a text, and what to do when it has appeared; `press` is one, and what to type then.
    """
    ours, theirs = pty.openpty()
    if press is not None:
        typed = press[1].encode()
        once_shown = press[0], lambda: os.write(ours, typed)
    process = subprocess.Popen(
        # As its controlling terminal, which makes a signal of Ctrl-C.
        ["setsid", "--ctty", *_ENDED_BY_SIGNALS, *command_line(arguments, {})],
        env=clean_environment(
            OPSERVICE_SERVER=server.address, TERM="xterm-256color", COLUMNS="120", **environment
        ),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        with suppress(OSError):  # EIO: nobody has the other end any more
            while part := _read(ours):
                shown += part
                if once_shown is not None and once_shown[0] in shown.decode(errors="replace"):
                    act, once_shown = once_shown[1], None
                    act()
        return process.wait(PATIENCE), shown.decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _read(terminal: int) -> bytes:
    """Raises OSError when nobody has the other end any more."""
    readable, _, _ = select([terminal], [], [], PATIENCE)
    assert readable, "nothing was shown for long, and the command goes on"
    return os.read(terminal, 65_536)
