"""docs/licences.md is true of what is locked."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import licences  # noqa: E402 - a script, not a package


def test_the_page_of_licences_is_what_its_script_makes() -> None:
    assert licences.PAGE.read_text() == licences.page()
