"""The SQLite that is used: the one that the package pysqlite3 brings, or else Python's own."""

from __future__ import annotations

import sqlite3

try:
    import pysqlite3.dbapi2 as dbapi
except ImportError:  # no wheel for this platform
    dbapi = sqlite3

__all__ = ["dbapi"]
