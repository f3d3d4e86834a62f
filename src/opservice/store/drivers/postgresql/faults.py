"""What PostgreSQL and what stands before it say when something is wrong, and what is to be done about it."""

from __future__ import annotations

import re

from sqlalchemy import Connection, ExceptionContext
from sqlalchemy.exc import DBAPIError

from opservice.domain.errors import StoreBusy, StoreError, StoreFull, StoreUnavailable
from opservice.store.drivers.postgresql.settings import TIME_LIMITS
from opservice.store.drivers.protocol import connection_lost

# https://www.postgresql.org/docs/current/errcodes-appendix.html
CONFLICT_STATES = frozenset({"40001", "40P01"})
"""Another transaction was in the way: a serialization failure, or a deadlock."""
UNPREPARED_STATES = frozenset({"26000", "42P05"})
"""A prepared statement is not there, or is there already: somebody else has used the connection."""
READ_ONLY_STATE = "25006"
"""The server is a standby."""
_BUSY_STATE = "55P03"
_FULL_STATES = frozenset({"53100"})
_UNAVAILABLE_STATES = frozenset({"25006", "57014", "57P01", "57P02", "57P03", "57P05"})
_UNAVAILABLE_CLASSES = frozenset({"08", "53"})


def sqlstate(error: DBAPIError) -> str:
    """The five characters of PostgreSQL's error code; empty when the error is not PostgreSQL's."""
    return getattr(error.orig, "sqlstate", None) or ""


def store_error(error: DBAPIError) -> StoreError:
    """Our error for a driver's."""
    state = sqlstate(error)
    if state in _FULL_STATES:
        return StoreFull()
    if state == _BUSY_STATE:
        return StoreBusy()
    if state in CONFLICT_STATES | _UNAVAILABLE_STATES or state[:2] in _UNAVAILABLE_CLASSES:
        return StoreUnavailable()
    return StoreUnavailable() if connection_lost(error) else StoreError()


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


def hide_rows(context: ExceptionContext) -> None:
    """PostgreSQL quotes a row that violates a constraint: payloads do not belong in a log."""
    diagnosis = getattr(context.original_exception, "diag", None)
    for quoted in (getattr(diagnosis, name, None) for name in ("message_detail", "context")):
        for error in (context.original_exception, context.sqlalchemy_exception):
            if quoted and error is not None:
                error.args = (str(error.args[0]).replace(quoted, "(hidden)"), *error.args[1:])
