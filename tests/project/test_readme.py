"""The README says what is true."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from opservice.runtime.settings import (
    Settings,
    default_of,
    environment_variable,
    flag,
    format_value,
)

README = Path(__file__).parents[2] / "README.md"


def settings_table() -> str:
    """The table as the README must have it: paste it there when a setting changes."""
    rows = ["| flag | environment | default | |", "|---|---|---|---|"]
    for setting in fields(Settings):
        default = format_value(setting, default_of(setting))
        shown = f"`{default}`" if default else ""
        meaning = setting.metadata["meaning"]
        rows.append(
            f"| `{flag(setting)}` | `{environment_variable(setting)}` | {shown} | {meaning} |"
        )
    return "\n".join(rows)


def test_readme_lists_every_setting_with_its_default_and_meaning() -> None:
    assert settings_table() in README.read_text()


def test_every_page_that_the_readme_links_to_exists() -> None:
    text = README.read_text()
    targets = [part.split(")")[0] for part in text.split("](")[1:]]
    assert targets
    assert [target for target in targets if not (README.parent / target).exists()] == []
