"""The programs that documentation shows, run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys

from support.server import PATIENCE, ServerProcess

ADDRESS = "127.0.0.1:50051"
"""Where the documentation has the server."""
HTTP_ADDRESS = "127.0.0.1:50080"
"""And where it has the server's HTTP."""


def addressed(text: str, server: ServerProcess) -> str:
    """A program, or a command, with the addresses of a server that runs."""
    http_address = server.http_url.partition("//")[2]
    return text.replace(ADDRESS, server.address).replace(HTTP_ADDRESS, http_address)


def run_program(program: str, server: ServerProcess, **variables: str) -> str:
    """Runs a program in a process of its own, where warnings are errors. Returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", addressed(program, server)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout
