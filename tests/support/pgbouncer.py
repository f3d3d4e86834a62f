"""A PgBouncer of the tests' own, between them and their PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from support.postgres import PostgresServer
from support.tools import require_tool, stable_port

_START_SECONDS = 60
_PLACES = ("/usr/sbin", "/usr/local/sbin")


@contextmanager
def pgbouncer(
    postgres: PostgresServer, pool_mode: str = "transaction", **settings: str
) -> Iterator[int]:
    """Its port. It makes several connections for each database, and takes them by turns."""
    program = shutil.which("pgbouncer", path=os.pathsep.join(_PLACES)) or require_tool(
        "pgbouncer", "apt-get install pgbouncer"
    )
    port = stable_port()
    options = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "trust",
        "pool_mode": pool_mode,
        "default_pool_size": "6",
        "min_pool_size": "4",
        "server_round_robin": "1",
        "max_client_conn": "500",
        **settings,
    }
    directory = Path(tempfile.mkdtemp(prefix="opservice-pgbouncer-"))
    users, ini = directory / "users.txt", directory / "pgbouncer.ini"
    users.write_text('"tests" ""\n')
    lines = [f"{name} = {value}" for name, value in {**options, "auth_file": str(users)}.items()]
    server = f"* = host=127.0.0.1 port={postgres.port}"
    ini.write_text("\n".join(["[databases]", server, "[pgbouncer]", *lines, ""]))
    directory.chmod(0o755)
    log = (directory / "log").open("wb")
    # It refuses to run as root.
    user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    process = subprocess.Popen(
        [program, str(ini)],
        stdout=log,
        stderr=log,
        cwd=directory,
        user=None if user is None else user.pw_uid,
        group=None if user is None else user.pw_gid,
        extra_groups=None if user is None else (),
    )
    try:
        _await(process, port)
        yield port
    finally:
        process.terminate()
        process.wait(_START_SECONDS)
        log.close()
        shutil.rmtree(directory)


def _await(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            psycopg.connect(
                host="127.0.0.1", port=port, user="tests", dbname="postgres", autocommit=True
            ).close()
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
