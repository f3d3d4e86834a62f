"""docs/settings.md is what the settings' declarations make of it."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_of_settings_is_current() -> None:
    written = runpy.run_path(str(ROOT / "scripts" / "settings_doc.py"))["page"]()

    assert (ROOT / "docs" / "settings.md").read_text() == written, "run scripts/settings_doc.py"
