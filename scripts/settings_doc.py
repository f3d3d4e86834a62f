"""Writes docs/settings.md from the settings' declarations. With --check it only says whether the page is current."""

from __future__ import annotations

import sys
from pathlib import Path

from opservice.runtime.settings import GROUPS, SETTINGS
from opservice.runtime.settings.setting import Setting, settings_of

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"

HEAD = """\
# Settings

<!-- scripts/settings_doc.py writes this page. -->

Every setting is a flag of `opservice serve` and an environment variable. For example, `--drain 30s` and
`OPSERVICE_DRAIN=30s` mean the same. The flag wins over the variable, and the default applies when neither is given.

* A **duration** is a number and a unit: `us`, `ms`, `s`, `m`, `h` or `d`. Examples: `500ms`, `30s`, `1.5h`, `30d`.
* A flag without a value, such as `--migrate`, is on when given. As a variable it is `OPSERVICE_MIGRATE=1`, or `0` for off.
* A setting that **may be repeated** takes one value a flag: `--jwt-audience a --jwt-audience b`. Its variable separates
  values by spaces, and files by colons: `OPSERVICE_JWT_AUDIENCE="a b"`.
* A relative path is relative to the directory in which the server was started.
"""


def page() -> str:
    essential = [each for each in SETTINGS.values() if each.essential]
    parts = [HEAD, "## The eight that everybody needs\n", *map(_entry, essential)]
    for group in GROUPS.values():
        parts.append(f"## {group.TITLE}\n\n{_flat(group.__doc__)}\n")
        settings = settings_of(group)
        above = [f"[`{each.key}`](#{each.key})" for each in settings if each.essential]
        if above:
            parts.append(f"{_listed(above)} {'is' if len(above) == 1 else 'are'} above.\n")
        parts += [_entry(each) for each in settings if not each.essential]
    return "\n".join(parts)


def _entry(setting: Setting) -> str:
    default = setting.format(setting.default)
    facts = [
        f"Flag: `{setting.flag}`",
        f"Environment: `{setting.variable}`",
        f"Default: {f'`{default}`' if default else 'none'}",
    ]
    if setting.choices:
        facts.append("One of: " + ", ".join(f"`{each}`" for each in setting.choices))
    if setting.least:
        facts.append(f"At least: `{setting.format(setting.least)}`")
    if setting.most:
        facts.append(f"At most: `{setting.format(setting.most)}`")
    return (
        f"### `{setting.key}`\n\n"
        f"{setting.meaning}\n\n"
        f"*Change it when* {setting.change_when}\n\n"
        f"{' · '.join(facts)}\n"
    )


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _flat(docstring: str) -> str:
    return " ".join(docstring.split())


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(page())
    elif PAGE.read_text() != page():
        sys.exit("docs/settings.md is not current: run scripts/settings_doc.py")
