"""PostgreSQL: its engines, and what a connection is set to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy import URL, Engine, ExceptionContext, create_engine, event
from sqlalchemy.exc import DBAPIError

_ROW_LOCK_WAIT_SECONDS = 2  # for an operation
_CONNECT_SECONDS = 5
_STATEMENT_SECONDS = 10

TIME_LIMITS = {
    "statement_timeout": _STATEMENT_SECONDS,
    "lock_timeout": _ROW_LOCK_WAIT_SECONDS,
    # A replica that stalls in mid-transaction must not hold its locks for long.
    "idle_in_transaction_session_timeout": _STATEMENT_SECONDS,
}
"""Settings of every connection, in seconds."""

_DEFAULTS: Mapping[str, str | int] = {
    "connect_timeout": _CONNECT_SECONDS,
    "application_name": "opservice",
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


def engines(arguments: Mapping[str, Any], readers: int) -> tuple[Engine, Engine]:
    """A writer and a reader, which connect to nothing yet."""
    shared: dict[str, Any] = {
        "connect_args": dict(arguments),
        "hide_parameters": True,  # payloads do not belong in a log
        "max_overflow": 0,
        "pool_timeout": _CONNECT_SECONDS,
    }
    url = URL.create("postgresql+psycopg")
    writer = create_engine(url, pool_size=2, **shared)
    reader = create_engine(
        url, pool_size=readers, isolation_level="AUTOCOMMIT", pool_reset_on_return=None, **shared
    )
    for engine in (writer, reader):
        event.listen(engine, "handle_error", _hide_rows)
    return writer, reader


_REFUSED = re.compile(
    "|".join(
        (
            r"(database|role) .* does not exist",
            "authentication failed",
            "no password supplied",
            "no pg_hba.conf entry",
            "not permitted to log in",
            "permission denied for database",
            "not currently accepting connections",
            "no such (database|user)",  # PgBouncer
            "unsupported startup parameter",  # PgBouncer
            "unrecognized configuration parameter",
            "invalid value for parameter",
            r"invalid \S+ value",
            "does not support SSL",
            "certificate",
        )
    )
)
"""What PostgreSQL, poolers and libpq say in English; psycopg has no SQLSTATE of a refused connection."""


def lasting_fault(error: DBAPIError) -> str | None:
    """Why no connection can be made, when trying again would not help; else None."""
    said = str(error.orig).strip()
    if type(error.orig).__name__ == "ProgrammingError" and error.statement is None:
        return said.partition("\n")[0]  # psycopg or libpq cannot use a parameter
    if error.statement is not None or not _REFUSED.search(said):
        return None
    return (
        next(line for line in said.splitlines() if _REFUSED.search(line))
        .rpartition("FATAL:")[2]
        .strip()
    )


def _hide_rows(context: ExceptionContext) -> None:
    """PostgreSQL quotes a row that violates a constraint: payloads do not belong in a log."""
    diagnosis = getattr(context.original_exception, "diag", None)
    for quoted in (getattr(diagnosis, name, None) for name in ("message_detail", "context")):
        for error in (context.original_exception, context.sqlalchemy_exception):
            if quoted and error is not None:
                error.args = (str(error.args[0]).replace(quoted, "(hidden)"), *error.args[1:])
