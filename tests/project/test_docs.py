"""The pages for who changes the code name files that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = (ROOT, ROOT / "src" / "opservice")
NOT_THERE_YET = ("NAME", "…")


def paths_of(page: str) -> list[str]:
    """What stands in backquotes and is the path of a file or a folder, except what a reader would add."""
    lines = [line for line in (ROOT / page).read_text().splitlines() if "(new)" not in line]
    named = re.findall(r"`([\w./…-]+(?:\.py|\.proto|\.sh|\.md|\.toml|/))`", "\n".join(lines))
    return [path for path in named if not any(mark in path for mark in NOT_THERE_YET)]


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_file_that_the_page_names_is_there(page: str) -> None:
    paths = paths_of(page)

    assert paths
    assert [path for path in paths if not any((place / path).exists() for place in PLACES)] == []
