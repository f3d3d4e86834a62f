"""PostgreSQL: its engines, and what a connection is set to."""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, Engine, ExceptionContext, create_engine, event

_ROW_LOCK_WAIT_SECONDS = 2  # for an operation
_CONNECT_SECONDS = 5
_STATEMENT_SECONDS = 10


def engines(url: URL, readers: int) -> tuple[Engine, Engine, dict[str, Any]]:
    """A writer and a reader, which connect to nothing yet, and what psycopg is given for others."""
    session = " ".join(
        f"-c {setting}={seconds * 1000}"
        for setting, seconds in (
            ("statement_timeout", _STATEMENT_SECONDS),
            ("lock_timeout", _ROW_LOCK_WAIT_SECONDS),
            # A replica that stalls in mid-transaction must not hold its locks for long.
            ("idle_in_transaction_session_timeout", _STATEMENT_SECONDS),
        )
    )
    defaults: dict[str, Any] = {
        "connect_timeout": _CONNECT_SECONDS,
        "application_name": "opservice",
        "options": session,
        # Of several hosts, or behind a name that moves: the primary, never a standby.
        "target_session_attrs": "read-write",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
    }
    # What the operator wrote into the URL counts.
    arguments = {key: value for key, value in defaults.items() if key not in url.query}
    shared: dict[str, Any] = {
        "connect_args": arguments,
        "hide_parameters": True,
        "max_overflow": 0,
        "pool_timeout": _CONNECT_SECONDS,
    }
    writer = create_engine(url, pool_size=2, **shared)
    reader = create_engine(
        url, pool_size=readers, isolation_level="AUTOCOMMIT", pool_reset_on_return=None, **shared
    )
    for engine in (writer, reader):
        event.listen(engine, "handle_error", _hide_rows)
    _, of_url = reader.dialect.create_connect_args(url)
    return writer, reader, {**of_url, **arguments}


def _hide_rows(context: ExceptionContext) -> None:
    """PostgreSQL quotes a row that violates a constraint: payloads do not belong in a log."""
    diagnosis = getattr(context.original_exception, "diag", None)
    for quoted in (getattr(diagnosis, name, None) for name in ("message_detail", "context")):
        for error in (context.original_exception, context.sqlalchemy_exception):
            if quoted and error is not None:
                error.args = (str(error.args[0]).replace(quoted, "(hidden)"), *error.args[1:])
