"""Starts `opservice` from a process that has imported it already, as importing is most of a start.

What is started so is a process as any other: it has its own signals, memory and exit code. What differs is
that the interpreter does not look for modules anew, and that variables that Python or the dynamic loader
read at their start come too late.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

_LONGEST = 100_000
"""Bytes of a request: the arguments and the environment of one process."""


class WarmProcess:
    """As much of subprocess.Popen as tests use."""

    def __init__(self, told: BinaryIO) -> None:
        """`told` has a line with the pid, and one with the exit code once the process has ended."""
        self._told = told
        pid = told.readline()
        assert pid, "the process that starts others has ended"
        self.pid = int(pid)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("opservice", timeout or 0)
            self.returncode = int(self._told.readline())
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    arguments: Sequence[str], environment: Mapping[str, str], stdout: BinaryIO, stderr: BinaryIO
) -> WarmProcess:
    """Runs `opservice` with these arguments, and nothing else in its environment."""
    request = json.dumps([list(arguments), dict(environment), str(Path.cwd())]).encode()
    reading, writing = os.pipe()
    try:
        socket.send_fds(_starter(), [request], [stdout.fileno(), stderr.fileno(), writing])
    finally:
        os.close(writing)
    return WarmProcess(os.fdopen(reading, "rb", buffering=0))


@functools.cache
def _starter() -> socket.socket:
    """The other end has the process that starts others, and that ends when this one does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        theirs.set_inheritable(True)
        # -P, or modules beside this one would stand in for others of their names.
        line = [sys.executable, "-P", __file__, str(theirs.fileno())]
        os.posix_spawn(line[0], line, os.environ)
    return ours


def _import() -> None:
    # As `opservice` does before it imports grpc, which then reads it: or its core would write to the log.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    import alembic.command
    import grpc.aio
    import uvloop

    import opservice.cli.serve
    import opservice.main.demo
    import opservice.main.serve
    import opservice.main.server
    import opservice.store.migrations

    del alembic, grpc, uvloop, opservice
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a thread would not outlive a fork"


def _start_others(requests: socket.socket) -> None:
    """Returns, in another process, where there is one to start; or when nobody asks any more."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # Ctrl-C is for the tests, which then end what they have started.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    whom: dict[int, int] = {}  # where to tell of its end, for each pid
    while True:
        ready, _, _ = select.select([requests.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 1_000)
            for pid in list(whom):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    _tell(whom[pid], os.waitstatus_to_exitcode(status))
                    os.close(whom.pop(pid))
        if requests.fileno() not in ready:
            continue
        request, fds, _, _ = socket.recv_fds(requests, _LONGEST, 3)
        if not request:
            os._exit(0)
        stdout, stderr, tell = fds
        if pid := os.fork():
            _tell(tell, pid)
            whom[pid] = tell
            os.close(stdout)
            os.close(stderr)
            continue
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, interrupt)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        requests.close()
        for fd in (stdout, stderr, tell, woken, wake, *whom.values()):
            os.close(fd)
        arguments, environment, directory = json.loads(request)
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["opservice", *arguments]
        return


def _tell(whom: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(whom, b"%d\n" % number)


if __name__ == "__main__":
    _import()
    _start_others(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("opservice", run_name="__main__", alter_sys=True)
