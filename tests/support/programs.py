"""The programs that documentation shows, run as they stand."""

from __future__ import annotations

import subprocess
import sys

from support.server import PATIENCE, ServerProcess

ADDRESS = "127.0.0.1:50051"
"""Where the documentation has the server."""


def run_program(program: str, server: ServerProcess) -> str:
    """Runs a program in a process of its own, where warnings are errors. Returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program.replace(ADDRESS, server.address)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout
