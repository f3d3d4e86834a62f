"""What differs between databases stands in their drivers."""

from __future__ import annotations

import re
from pathlib import Path

import opservice

SOURCE = Path(opservice.__file__).parent


def test_only_drivers_and_urls_ask_which_database_it_is() -> None:
    asks = re.compile(r"is_sqlite|is_postgresql|dialect\.name|isinstance\([^)]*Driver\)")
    where = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if asks.search(path.read_text())
    }
    assert where == {"store/urls.py", "store/drivers/__init__.py"}
