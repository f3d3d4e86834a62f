"""Writes docs/licences.md: the licence of each package of requirements/runtime.txt, as its metadata says.

.venv/bin/python scripts/licences.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/licences.md"
LOCK = ROOT / "requirements/runtime.txt"

# Where the metadata has no SPDX expression, and for what is not installed on every platform.
READ_BY_HAND = {
    "mdurl": "MIT",
    "markdown-it-py": "MIT",
    "protobuf": "BSD-3-Clause",
    "pysqlite3": "Zlib",
    "tzdata": "Apache-2.0",
    "uvloop": "MIT OR Apache-2.0",
}

_TEXT = """\
# Licences

opservice is under Apache-2.0. The table lists what is deployed with it: the packages that `requirements/runtime.txt` locks.
`scripts/sbom.sh` lists the same in CycloneDX, with dependencies. `scripts/licences.py` writes this page.

| package | version | licence |
|---|---|---|
{rows}

All of them may be distributed with a program under Apache-2.0. All but three ask only that you keep their notices. These are in the
`*.dist-info` of each package, and stay in the image.

**psycopg and psycopg-binary are under LGPL-3.0.** opservice imports them unchanged, and stays under Apache-2.0. If you pass on
an image that contains them, pass on their licence too, say where their source is (the package index has it, under the version
above), and let people replace them (in a Python environment, with pip).

**certifi is under MPL-2.0.** It is a list of certificate authorities, which opservice does not change. Only changes to its own files
would have to be passed on under MPL-2.0.

Wheels contain libraries of others. psycopg-binary: libpq (PostgreSQL), OpenSSL (Apache-2.0), MIT Kerberos (MIT),
OpenLDAP (OLDAP-2.8), Cyrus SASL (BSD), and as shared libraries libkeyutils and libcrypt (LGPL-2.1). grpcio:
BoringSSL, Abseil, c-ares, RE2, zlib (Apache-2.0, BSD, MIT, Zlib). pysqlite3: SQLite (public domain). uvloop: libuv (MIT).
"""


def page() -> str:
    rows = [f"| {name} | {version} | {_licence(name)} |" for name, version in locked()]
    return _TEXT.format(rows="\n".join(rows))


def locked() -> Iterator[tuple[str, str]]:
    """Name and version of each package that runs; setuptools only builds."""
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", LOCK.read_text(), re.MULTILINE):
        if name != "setuptools":
            yield name, version


def _licence(name: str) -> str:
    """The SPDX expression. Raises KeyError when neither we nor the metadata know it."""
    if name in READ_BY_HAND:
        return READ_BY_HAND[name]
    found = metadata(name)
    expression = found["License-Expression"] or found["License"]
    if not expression or "\n" in expression:
        raise KeyError(name)
    return str(expression)


if __name__ == "__main__":
    PAGE.write_text(page())
