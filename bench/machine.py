"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

from sqlalchemy import text

from opservice.store.engine import Database


def describe_machine() -> dict[str, str]:
    """Of Linux. A virtual machine may hide what processor it runs on."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
    }


def describe_versions(database: Database) -> dict[str, str]:
    """Of what the figures depend on, the database among it."""
    packages = ["opservice", "grpcio", "protobuf", "SQLAlchemy"]
    if not database.url.is_sqlite:
        packages.append("psycopg")
    query = "SELECT sqlite_version()" if database.url.is_sqlite else "SHOW server_version"
    with database.reader.connect() as connection:
        of_database = str(connection.execute(text(query)).scalar_one())
    return {
        "Python": platform.python_version(),
        **{package: version(package) for package in packages},
        "SQLite" if database.url.is_sqlite else "PostgreSQL": of_database.split(" ")[0],
    }
