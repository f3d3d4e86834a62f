"""A PostgreSQL server of the tests' own: made, started, killed and thrown away by them."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from support.tools import missing, stable_port

_HOW_TO_INSTALL = "apt-get install postgresql"
_START_SECONDS = 60
_ROOM_BYTES = 2 << 30  # a container may have 64 MiB of shared memory, too little for a cluster

WITH_PASSWORD = "suspect"
"""A user who is not believed without a password; make the role where it is to have one."""


class PostgresServer:
    """A cluster in a temporary directory, on a free port of 127.0.0.1, with fsync on."""

    def __init__(self) -> None:
        self._bin = _binaries()
        # PostgreSQL refuses to run as root.
        self._user = pwd.getpwnam("postgres" if os.geteuid() == 0 else _own_name())
        self._directory = Path(tempfile.mkdtemp(prefix="opservice-pg-", dir=_quick_directory()))
        os.chown(self._directory, self._user.pw_uid, self._user.pw_gid)
        self.port = stable_port()
        self._names = count(1)
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._init()
        except (OSError, subprocess.SubprocessError) as error:
            # Seen once in some hundred times, before it had made anything, and nobody knows why. All tests of
            # the process would fail for it.
            said = getattr(error, "stderr", None)
            print("initdb failed, and is tried again:", error, said, file=sys.__stderr__)
            shutil.rmtree(self._data, ignore_errors=True)
            self._init()
        rules = self._data / "pg_hba.conf"
        rules.write_text(f"host all {WITH_PASSWORD} all scram-sha-256\n{rules.read_text()}")
        self.start()

    def _init(self) -> None:
        self._run(
            "initdb", "--no-sync", "--auth=trust", "--username=tests", "--encoding=UTF8",
            "--locale=C", "-D", str(self._data),
        )  # fmt: skip

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def start(self) -> None:
        """Returns once it accepts connections."""
        assert self._process is None
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self._directory,
            "fsync": "on",
            "max_connections": 200,
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, *arguments],
                stdout=log,
                stderr=log,
                cwd=self._directory,
                **self._as_user(),
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.execute("SELECT 1")
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def processes(self) -> list[int]:
        """All of the cluster, the one that starts the others first."""
        assert self._process is not None
        return [self._process.pid, *_children(self._process.pid)]

    def stop(self) -> None:
        """At once, breaking connections, but cleanly."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """As a crash would: nobody has time to write anything."""
        assert self._process is not None
        _, *children = self.processes()
        self._process.kill()
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        # The next server refuses to start while these remain.
        deadline = time.monotonic() + _START_SECONDS
        while any(Path(f"/proc/{pid}").exists() for pid in children):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def create_database(self, template: str = "template0") -> str:
        """Makes a database and returns its URL."""
        name = f"test_{next(self._names)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql://tests@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Runs a statement outside of any transaction."""
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="tests", dbname=database, autocommit=True
        ) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def kill_connections(self, database: str | None, which: str = "true") -> None:
        """Those to a database, of which there is one at least, for which the condition is true."""
        killed = self.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            f" WHERE datname = '{database}' AND {which}"
        )
        assert killed

    def remove(self) -> None:
        if self._process is not None:
            self._end(signal.SIGQUIT)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _end(self, with_signal: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(with_signal)
        self._process.wait(_START_SECONDS)
        self._process = None

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._bin / program, *arguments],
            check=True,
            capture_output=True,
            cwd=self._directory,
            **self._as_user(),
        )

    def _as_user(self) -> dict[str, Any]:
        if os.geteuid() != 0:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": ()}


def _quick_directory() -> str | None:
    """Where fsync costs nothing, if there is room: no test ends the machine itself. Else the default."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _ROOM_BYTES:
        return str(memory)
    return None


def _binaries() -> Path:
    """The directory of the newest server that is installed."""
    places: Sequence[Path] = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"),
        key=lambda path: int(re.sub(r"\D", "", path.parent.name) or 0),
        reverse=True,
    )
    on_path = shutil.which("postgres")
    for place in (*places, *([Path(on_path).parent] if on_path else [])):
        if (place / "postgres").exists() and (place / "initdb").exists():
            return place
    return missing("PostgreSQL", _HOW_TO_INSTALL)


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def _own_name() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name
