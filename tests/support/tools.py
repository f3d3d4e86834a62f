"""Programs that tests use and that are not Python packages."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

_PLACES = (Path.home() / "go" / "bin", Path("/usr/local/bin"))


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
