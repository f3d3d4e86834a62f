"""Writes docs/settings.md from the settings' declarations. With --check it only says whether the page is current."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from opservice.runtime.settings import GROUPS, SETTINGS
from opservice.runtime.settings.setting import Setting, settings_of

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"

_SHAPES = {
    "text": '"…"',
    "file": '"PATH"',
    "texts": '["…", "…"]',
    "files": '["PATH", "PATH"]',
    "flag": "true",
}

HEAD = """\
# Settings

<!-- scripts/settings_doc.py writes this page. -->

You can give every setting as a flag of `opservice serve`, as an environment variable, or in a configuration file.
The flag wins over the variable, and the variable wins over the file. When none is given, the default applies.

```sh
opservice serve --drain 30s
OPSERVICE_DRAIN=30s opservice serve
opservice serve --config opservice.toml    # with the line: drain = "30s"
```

* A **duration** is a number and a unit: `us`, `ms`, `s`, `m`, `h` or `d`. Examples: `500ms`, `30s`, `1.5h`, `30d`.
* A flag without a value, such as `--migrate`, is on when given. As a variable it is `OPSERVICE_MIGRATE=1`, or `0` for off.
* A setting that **may be repeated** takes one value a flag: `--jwt-audience a --jwt-audience b`. Its variable separates
  values by spaces, and files by colons: `OPSERVICE_JWT_AUDIENCE="a b"`. Values from one place replace those from another.
* A relative path is relative to the directory in which the server was started, also in a configuration file.

## The configuration file

`--config FILE`, or `OPSERVICE_CONFIG=FILE`, names a file in [TOML](https://toml.io). `serve`, `migrate` and `backup` read
it. A key is the flag without its dashes. All keys stand at the top level, in no table.

```toml
listen = "0.0.0.0:443"
database = "postgresql://opservice:secret@db.example/opservice"
tls-cert = "/etc/opservice/server.pem"
tls-key = "/etc/opservice/server.key"
tokens = "/etc/opservice/tokens.yaml"
migrate = true
workers = 4
retention = "90d"
descriptor-set = ["/etc/opservice/types.pb"]
```

The server refuses to start when the file has an unknown key or a value of the wrong type, and names the key. It also
refuses a file to which everybody may write, and a file with a database password that everybody may read: run
`chmod 640 opservice.toml`. The file is read at the start only; SIGHUP does not reload it.

`opservice serve --print-config` prints the settings that would be in effect, in the same form, with a comment that says where
each comes from. Give it the flags and variables of your server. It leaves out a database URL with a password.
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
        f"File: `{_example(setting)}`",
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


def _example(setting: Setting) -> str:
    """The setting's line in a configuration file."""
    value = setting.default
    if value in {None, "", ()} or setting.kind == "flag":
        return f"{setting.key} = {_SHAPES[setting.kind]}"
    return f"{setting.key} = {setting.to_toml(value)}"


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _flat(docstring: str) -> str:
    """The docstring in one line, with the pages that it names as links."""
    return re.sub(r"docs/(\S+\.md)", r"[\1](\1)", " ".join(docstring.split()))


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(page())
    elif PAGE.read_text() != page():
        sys.exit("docs/settings.md is not current: run scripts/settings_doc.py")
