"""PostgreSQL: its engines, and what a connection is set to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from psycopg import AsyncConnection
from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event
from sqlalchemy.exc import DBAPIError

from opservice.store.drivers.connections import Connections

_ROW_LOCK_WAIT_SECONDS = 1  # for an operation; less than what counts as a gap (grace.py)
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


def engines(
    arguments: Mapping[str, Any], readers: int, connections: Connections
) -> tuple[Engine, Engine]:
    """A writer and a reader, which connect to nothing yet, and whose connections are among `connections`.

    They look at `arguments` again for each connection: whether it may prepare statements may change.
    """
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

    def on_connect(connection: Any, _record: object) -> None:
        try:
            if not may_prepare(arguments) or through_pooler(connection):
                connection.prepare_threshold = None
        except BaseException:
            connections.forget(connection)
            connection.close()
            raise

    for engine in (writer, reader):
        connections.watch(engine)
        event.listen(engine, "connect", on_connect)
        event.listen(engine, "handle_error", _hide_rows)
    return writer, reader


_BACKEND = "SELECT pg_backend_pid()"


def may_prepare(arguments: Mapping[str, Any]) -> bool:
    """Whether statements may be prepared on a connection made with these arguments.

    Not behind a pooler: it may give each transaction another connection to PostgreSQL, where the name of a
    prepared statement is unknown, or (psycopg numbers them) that of another statement, which would be run.
    Without them writes take PostgreSQL twice the CPU time.
    """
    return arguments.get("prepare_threshold", 0) is not None


def through_pooler(connection: Any) -> bool:
    """Whether psycopg's connection, which is in no transaction, is not one to PostgreSQL itself.

    A pooler has one process of PostgreSQL for many clients, and tells each of them of a process that
    there is not, since it is by that number that a client cancels its own statement.
    """
    transactional = not connection.autocommit
    connection.autocommit = True
    (backend,) = connection.execute(_BACKEND, prepare=False).fetchone()
    connection.autocommit = not transactional
    return bool(backend != connection.info.backend_pid)


async def through_pooler_async(connection: AsyncConnection) -> bool:
    """The same, of a connection in autocommit that belongs to an event loop."""
    row = await (await connection.execute(_BACKEND, prepare=False)).fetchone()
    return row is None or row[0] != connection.info.backend_pid


def limit_lock_waits(connection: Connection, milliseconds: int) -> None:
    """Until the end of the transaction no statement waits longer for a lock."""
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {milliseconds}")


def unfit(connection: Connection) -> str | None:
    """Why the server must not use the database of this connection, and what to do; else None."""
    return _wrong_encoding(connection) or _missing_limits(connection)


def _wrong_encoding(connection: Connection) -> str | None:
    """What to do when the database cannot hold every text; else None.

    Of a batch with text that it cannot hold nothing would be written, and what is in it is up to callers.
    """
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding == "UTF8":
        return None
    return (
        f"its encoding is {encoding}, which does not hold every text: make a new one by CREATE DATABASE …"
        " ENCODING 'UTF8' TEMPLATE template0"
    )


def _missing_limits(connection: Connection) -> str | None:
    """What to do when the server's time limits are not in force on a connection; else None."""
    limits = ", ".join(f"current_setting('{name}')" for name in TIME_LIMITS)
    query = f"SELECT quote_ident(session_user), quote_ident(current_database()), {limits}"
    role, database, *values = connection.exec_driver_sql(query).one()
    missing = [name for name, value in zip(TIME_LIMITS, values, strict=True) if value in {"0", ""}]
    if not missing:
        return None
    statements = " ".join(
        f"ALTER ROLE {role} IN DATABASE {database} SET {name} = '{TIME_LIMITS[name]}s';"
        for name in missing
    )
    return (
        f"{' and '.join(missing)} would be 0, and a statement might take for ever. Take them out of the"
        " URL's options; or, where a pooler drops these, run the following and have the pooler connect"
        f" anew: {statements}"
    )


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
            "channel binding required",
            # libpq cannot use the parameters, and has not tried to connect.
            "connection is bad: (?!connection to server|could not translate host name)",
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
    if "statement pooling mode" in said:
        return f"the pooler must be in transaction or session mode: {said.partition(chr(10))[0]}"
    if error.statement is not None or not _REFUSED.search(said):
        return None
    fault = next(line for line in said.splitlines() if _REFUSED.search(line))
    fault = fault.rpartition("FATAL:")[2].strip()
    if re.search("unsupported startup parameter.*options", fault):
        fault += (
            ". A pooler takes no options, in which the server sets its time limits: give ?options= in the"
            " database URL, so that none are sent, and start again to be told how to set the limits"
        )
    return fault


def _hide_rows(context: ExceptionContext) -> None:
    """PostgreSQL quotes a row that violates a constraint: payloads do not belong in a log."""
    diagnosis = getattr(context.original_exception, "diag", None)
    for quoted in (getattr(diagnosis, name, None) for name in ("message_detail", "context")):
        for error in (context.original_exception, context.sqlalchemy_exception):
            if quoted and error is not None:
                error.args = (str(error.args[0]).replace(quoted, "(hidden)"), *error.args[1:])
