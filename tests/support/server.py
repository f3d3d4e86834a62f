"""The server as a process of its own, started and stopped as an operator would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Self, TypeVar

import grpc

from support.client import Client, open_channel
from support.tools import stable_port
from support.warm import WarmProcess
from support.warm import start as start_warm

PATIENCE = 60.0
"""Seconds after which a test stops waiting for what should long have happened."""
_TO_END = 10.0  # seconds that a server gets to write what it has covered
_TOLD = 2_000  # characters of the end of a log, in a test's failure

Found = TypeVar("Found")


def eventually(look: Callable[[], Found | None], seconds: float = PATIENCE) -> Found:
    """What `look` returns once it is true. Fails when it is not within the time."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"still {found!r} after {seconds} s"
        time.sleep(0.02)
    return found


def command_line(arguments: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """`python -m opservice` with these arguments; settings as keywords of Settings."""
    line = [sys.executable, "-m", "opservice", *arguments]
    for name, value in settings.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            line.append(option)
        elif value is not False:
            for each in value if isinstance(value, list) else [value]:
                line += [option, str(each)]
    return line


def clean_environment(**variables: str) -> dict[str, str]:
    """This process's environment, without what would set the server otherwise."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OPSERVICE_")}
    return {**kept, **variables}


def run_opservice(
    *arguments: str, environment: Mapping[str, str] | None = None, **settings: Any
) -> subprocess.CompletedProcess[str]:
    """Runs a command that is expected to end by itself."""
    variables = clean_environment(**(environment or {}))
    with TemporaryFile() as stdout, TemporaryFile() as stderr:
        process = start_warm(command_line(arguments, settings)[3:], variables, stdout, stderr)
        try:
            code = process.wait(PATIENCE)
        finally:
            process.kill()
        told = [os.pread(each.fileno(), 2**24, 0).decode() for each in (stdout, stderr)]
    return subprocess.CompletedProcess(arguments, code, *told)


class ServerProcess:
    """`opservice serve`. Settings are given as keywords: `cancel_grace="1s"`, `demo=True`."""

    def __init__(
        self,
        directory: Path,
        database: str,
        *,
        environment: Any = None,  # a mapping; so typed that **dict[str, …] may be given
        cold: Any = False,  # a bool, for the same reason
        **settings: Any,
    ) -> None:
        """With `cold` Python is started anew, as by an operator: its command line is then the server's."""
        self.settings: dict[str, Any] = {
            "listen": f"127.0.0.1:{stable_port()}",
            "http_listen": "off",  # unless a test asks for it
            "migrate": True,
            "restart_grace": "0s",
            **settings,
        }
        self.database = database
        self._environment = clean_environment(
            **{"OPSERVICE_DATABASE": database, **(environment or {})}
        )
        self._stdout = directory / f"stdout-{id(self)}"
        self._stderr = directory / f"stderr-{id(self)}"
        self._cold = cold or not all(name.startswith("OPSERVICE_") for name in environment or ())
        self._process: subprocess.Popen[bytes] | WarmProcess | None = None
        self._channels: list[grpc.Channel] = []
        self._client: Client | None = None
        self.address = ""
        self.http_url = ""
        """Where it serves HTTP, if it does: http://127.0.0.1:50080."""

    def start(self) -> Self:
        """Returns once the server says that it is ready. After the first time, on the same port."""
        assert self._process is None
        started_at = self._stdout.stat().st_size if self._stdout.exists() else 0
        self._process = self._launch()

        def ready() -> re.Match[str] | None:
            ended = self._process is None or self._process.poll() is not None
            assert not ended, f"the server did not start: {self.stderr[-_TOLD:]}"
            printed = self._stdout.read_bytes()[started_at:].decode()
            return re.search(
                r"^opservice \S+ serving on (\S+) .*?\)(?:, (https?://\S+))?\n",
                printed,
                re.MULTILINE,
            )

        line = eventually(ready)
        self.address, self.http_url = line[1], line[2] or ""
        self.settings["listen"] = self.address
        if self.http_url:
            self.settings["http_listen"] = self.http_url.partition("//")[2]
        return self

    def expect_refusal(self) -> int:
        """The exit code of a server that cannot start; `stderr` has the reason."""
        self._process = self._launch()
        try:
            return self.wait()
        finally:
            self.close()

    def _launch(self) -> subprocess.Popen[bytes] | WarmProcess:
        line = command_line(["serve"], self.settings)
        with self._stdout.open("ab") as stdout, self._stderr.open("ab") as stderr:
            if self._cold:
                return subprocess.Popen(line, env=self._environment, stdout=stdout, stderr=stderr)
            return start_warm(line[3:], self._environment, stdout, stderr)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    @property
    def client(self) -> Client:
        """Stubs on a plaintext channel that is made once; it finds the server after a restart."""
        if self._client is None:
            self._client = Client(self.channel())
        return self._client

    def channel(self, *, root_certificates: bytes | None = None, **options: Any) -> grpc.Channel:
        """A new channel, closed when the server is."""
        channel = open_channel(self.address, root_certificates, **options)
        self._channels.append(channel)
        return channel

    def log(self, **wanted: Any) -> list[dict[str, Any]]:
        """The lines logged so far that have these entries. Fails when one is not JSON."""
        lines = [json.loads(line) for line in self.stderr.splitlines(keepends=True) if "\n" in line]
        return [line for line in lines if wanted.items() <= line.items()]

    def send_signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit code, once it has ended."""
        assert self._process is not None
        code = self._process.wait(PATIENCE)
        self._process = None
        return code

    def terminate(self) -> int:
        """Sends SIGTERM and returns the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self.wait()

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self.wait()

    def close(self) -> None:
        """Ends whatever is left of it."""
        for channel in self._channels:
            channel.close()
        if self._process is not None and "COVERAGE_PROCESS_CONFIG" in os.environ:
            self._process.terminate()  # or nobody would know what it has run
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_TO_END)
        if self._process is not None:
            self.kill()


@contextmanager
def serving(
    directory: Path,
    database: str,
    *,
    environment: Any = None,
    cold: Any = False,
    **settings: Any,
) -> Iterator[ServerProcess]:
    server = ServerProcess(directory, database, environment=environment, cold=cold, **settings)
    try:
        yield server.start()
    finally:
        server.close()
