"""What a driver must do: everything in which one database differs from another.

The rest of the store is the same for all databases. A driver also says how its database spells the
expressions of store/sql.py, in its own sql.py. The tests in tests/store/contract/ hold
every driver to the same behaviour.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import Column, Connection, Engine, Select
from sqlalchemy.exc import DBAPIError

from opservice.domain.errors import StoreError
from opservice.domain.operation import Origin, Record

Found = TypeVar("Found", bound=Record | Origin)
Result = TypeVar("Result")


class Retry(Enum):
    """Why work that failed is to be done once more."""

    CONFLICT = auto()
    """It was rolled back because of another transaction. Wait a little, then do it again."""
    PREPARATION = auto()
    """A prepared statement was not there. None are prepared any more."""
    CONNECTION = auto()
    """The connection was lost. Whether a COMMIT took effect is not known."""


@dataclass(frozen=True, slots=True, eq=False)
class Lookup(Generic[Found]):
    """Queries that find operations by their ids, and what is made of a row."""

    one: Select[Any]
    """Takes one id as `operation_id`."""
    many: Select[Any]
    """Takes any number of ids as `operation_ids`."""
    columns: Sequence[Column[Any]]
    make: Callable[..., Found]
    """Takes the values of these columns, in their order."""


class FastReads(Protocol):
    """Reads on the event loop, on a connection of its own: waking a thread takes longer than such a read.

    What cannot be read in this way has the result None. It must be read on a thread, which tells those who
    asked what is wrong. All methods belong to one event loop and never keep it waiting.
    """

    def get(self, operation_id: str) -> Record | None:
        """The operation, at once. Raises OperationNotFound."""

    def origin(self, operation_id: str) -> Origin | None:
        """Who may see the operation, at once. Raises OperationNotFound."""

    async def find(self, ids: Sequence[str]) -> list[Record | Exception] | None:
        """For each id the operation, or OperationNotFound."""

    async def origins(self, ids: Sequence[str]) -> list[Origin | Exception] | None:
        """For each id who may see the operation, or OperationNotFound."""

    def give_up(self) -> None:
        """An answer takes too long: those who wait get None, and the next read uses a new connection."""

    def close(self) -> None:
        """For good: every result is None from now on."""


class Run(Protocol):
    """Calls a function on a thread that may wait for the database."""

    async def __call__(self, function: Callable[[], Result], /) -> Result: ...


class Read(Protocol):
    """Runs work on a connection of the reader, as Database.read does."""

    def __call__(self, work: Callable[[Connection], Result], /) -> Result: ...


class Notifications(Protocol):
    """What processes on the same database tell each other of their changes.

    They only make followers quicker. Nothing is lost with them: whoever follows also polls.
    """

    @property
    def sends(self) -> bool:
        """Whether `send` does anything. It need not where every commit shows by itself."""

    async def send(self, operation_ids: Iterable[str]) -> None:
        """Tells other processes that these operations have changed. Raises a StoreError."""

    def receive(self) -> AsyncGenerator[Sequence[str] | None]:
        """The ids of operations that another process changed, or None when any may have changed.

        Raises a StoreError when the connection is lost; may be called again.
        """


class Driver(Protocol):
    """One database, of one kind. Making a driver connects to nothing."""

    @property
    def writer(self) -> Engine:
        """Its transactions may write. On a database with one lock for all they exclude one another."""

    @property
    def reader(self) -> Engine:
        """In autocommit: each statement sees all that was committed before it."""

    @property
    def embedded(self) -> bool:
        """The database is a file of this server, which migrates it at start and tidies it up."""

    def unfit(self, connection: Connection) -> str | None:
        """Why the server must not use this database, and what to do; else None."""

    def lasting_fault(self, error: DBAPIError) -> str | None:
        """Why no connection can be made, when trying again would not help; else None."""

    def warnings(self, connection: Connection) -> list[str]:
        """What an operator should know of how far this database keeps its promises."""

    def through_pooler(self, connection: Connection) -> bool:
        """Whether something between the server and the database shares connections out."""

    def retry(self, error: DBAPIError) -> Retry | None:
        """Whether work that raised this may be done once more; mends what must be mended before.

        Raises StoreFileLost when the file is not there any more.
        """

    def store_error(self, error: DBAPIError) -> StoreError:
        """Our error for a driver's. The driver's stays its cause, for the log, and out of the message."""

    def refuse_if_lost(self) -> None:
        """Raises StoreFileLost when it was noticed that the file is gone; costs next to nothing."""

    def check_files(self) -> None:
        """Looks whether the file is still there. Raises StoreFileLost when it is not."""

    def when_lost(self, tell: Callable[[], object]) -> None:
        """Has `tell` called, on whatever thread, when it is noticed that the file is gone."""

    def limit_lock_waits(self, connection: Connection, milliseconds: int) -> None:
        """Until the end of the transaction no statement waits longer for a lock."""

    def lift_time_limits(self, connection: Connection) -> None:
        """Until the end of the transaction statements may take as long as they need."""

    def prove_write(self, connection: Connection) -> None:
        """Changes nothing, but its COMMIT waits for the disk and a synchronous standby, as others do."""

    def checkpoint(self, connection: Connection) -> None:
        """Has the database copy its log into its file, as far as nobody is kept waiting."""

    def fast_reads(self, records: Lookup[Record], origins: Lookup[Origin]) -> FastReads:
        """Reads by these queries. A connection is made when something is read the first time."""

    def notifications(self, read: Read, run: Run) -> Notifications:
        """Those of this process. `read` and `run` are used for what must wait for the database."""

    async def shut_down_frozen(self, seconds: float) -> int:
        """How many connections were shut down that had been used for `seconds` and more, for nothing.

        Raises StoreUnavailable when no new connection can be made.
        """

    def close(self) -> None:
        """Closes all connections."""


def connection_lost(error: DBAPIError) -> bool:
    """Whether the connection is gone, or was never there."""
    # Drivers raise an OperationalError without a statement when they cannot connect.
    never_connected = error.statement is None and type(error.orig).__name__ in {
        "OperationalError",
        "ConnectionTimeout",
    }
    return error.connection_invalidated or never_connected
