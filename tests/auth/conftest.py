"""What the tests of keys ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from auth.key_files import File


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "jwks.json")
