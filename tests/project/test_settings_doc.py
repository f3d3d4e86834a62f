"""docs/settings.md is what the settings' declarations make of it."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from opservice.runtime.settings import Settings
from opservice.runtime.settings.config_file import read_config

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "settings.md"


def test_the_page_of_settings_is_current() -> None:
    written = runpy.run_path(str(ROOT / "scripts" / "settings_doc.py"))["page"]()

    assert PAGE.read_text() == written, "run scripts/settings_doc.py"


def test_the_example_of_a_configuration_file_is_accepted(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.+?)```", PAGE.read_text(), re.DOTALL)
    file = tmp_path / "opservice.toml"
    file.touch(0o640)
    file.write_text(example)

    assert Settings.of(**read_config(file)).processes.workers == 4
