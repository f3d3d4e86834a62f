"""What a connection to PostgreSQL is set to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ROW_LOCK_WAIT_SECONDS = 1  # for an operation; less than what counts as a gap (grace.py)
CONNECT_SECONDS = 5
_STATEMENT_SECONDS = 10

TIME_LIMITS = {
    "statement_timeout": _STATEMENT_SECONDS,
    "lock_timeout": _ROW_LOCK_WAIT_SECONDS,
    # A replica that stalls in mid-transaction must not hold its locks for long.
    "idle_in_transaction_session_timeout": _STATEMENT_SECONDS,
}
"""Settings of every connection, in seconds."""

_DEFAULTS: Mapping[str, str | int] = {
    "connect_timeout": CONNECT_SECONDS,
    "application_name": "opservice",
    "client_encoding": "UTF8",  # whatever PGCLIENTENCODING, or the database's own encoding, is
    # Of several hosts, or behind a name that moves: the primary, never a standby.
    "target_session_attrs": "read-write",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}


def connect_arguments(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What psycopg is given for a connection: what the operator wrote into the URL counts."""
    limits = " ".join(f"-c {name}={seconds * 1000}" for name, seconds in TIME_LIMITS.items())
    # Later options win. Empty ones have none sent, for poolers that take none.
    options = parameters.get("options")
    options = options if options == "" else f"{limits} {options or ''}".rstrip()
    return {**_DEFAULTS, **parameters, "options": options}
