"""What tests need of the machine: programs that are not Python packages, and ports."""

from __future__ import annotations

import os
import random
import shutil
import socket
import sys
from pathlib import Path
from typing import NoReturn

import pytest

_PLACES = (Path(sys.executable).parent, Path.home() / "go" / "bin", Path("/usr/local/bin"))


def require_tool(name: str, how_to_install: str) -> str:
    """The program's path. Without it the test is skipped, and in CI it fails."""
    found = shutil.which(name, path=os.pathsep.join((os.environ["PATH"], *map(str, _PLACES))))
    if found is None:
        missing(name, how_to_install)
    return found


def missing(name: str, how_to_install: str) -> NoReturn:
    reason = f"{name} is not installed: {how_to_install}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def stable_port() -> int:
    """A free port of 127.0.0.1 that stays free while its server is away, as one that it picks may not.

    The system gives connections, and servers that ask for any port, ports from 32768 on.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)  # Hypothesis seeds the shared one
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
