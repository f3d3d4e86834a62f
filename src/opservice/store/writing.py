"""Applies commands in batches, each batch in one transaction.

A command that cannot be applied, or that waits too long for a lock, fails alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from opservice.common.metrics import LOCK_TIMEOUTS
from opservice.domain.errors import (
    OperationNotFound,
    OpserviceError,
    StoreBusy,
    StoreError,
    StoreUnavailable,
)
from opservice.domain.operation import Command, Delete, Outcome, Renew
from opservice.store.engine import Database
from opservice.store.repository import Repository

LOCKED_SECONDS = 1.0
"""How long an id is remembered after its row was found locked by somebody else."""

_WARY_MILLISECONDS = 100
"""How long a batch waits for a lock while any id is remembered: others may be locked as well."""
_LOCKED_MILLISECONDS = 10
"""How long a command that is applied by itself waits for a lock."""
_MANY_LOCKED = 50
"""After so many locks were waited for in vain, a batch waits for each further one for 1 ms."""


class Writer:
    """Applies batches, one at a time. It belongs to one thread."""

    def __init__(
        self,
        database: Database,
        repository: Repository,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` returns seconds, and is never set."""
        self._database = database
        self._repository = repository
        self._clock = clock
        self._locked_lately: dict[str, float] = {}
        """The ids that were locked lately, with the time until which that is remembered."""

    def write(self, commands: Sequence[Command]) -> list[Outcome | Exception]:
        """Applies the commands in one transaction; an outcome for each, in order.

        A refusal is an outcome, too. When the transaction fails because of one command, or one waits too long
        for a lock, there is a second transaction. In it every command is applied by itself and waits for
        locks only shortly, and only the commands that are at fault fail: with StoreBusy or StoreError.
        Commands on operations that were locked within the last LOCKED_SECONDS are applied by themselves at
        once, after the others.

        Raises StoreUnavailable or StoreFull, which concern all commands.
        """
        self._forget_locked()
        apart = {
            index for index, command in enumerate(commands) if command.id in self._locked_lately
        }
        attempts: list[list[Outcome | Exception]] = []
        try:
            self._write(commands, apart, attempts)
        except Exception as error:
            if isinstance(error, StoreError) and type(error) not in (StoreError, StoreBusy):
                raise
            self._write(commands, set(range(len(commands))), attempts)
        outcomes = attempts[0]
        for again in attempts[1:]:
            outcomes = [*map(reconcile, commands, outcomes, again)]
        self._remember_locked(commands, outcomes)
        return outcomes

    def _write(
        self,
        commands: Sequence[Command],
        apart: set[int],
        attempts: list[list[Outcome | Exception]],
    ) -> None:
        """One transaction, in which the commands with the indexes in `apart` are applied each by itself.

        The transaction may be made several times. Each time that all commands were applied, their outcomes
        are added to `attempts`. Only of the last ones it is known that they were committed.
        """
        driver = self._database.driver
        together = [index for index in range(len(commands)) if index not in apart]

        def apply(connection: Connection) -> None:
            if self._locked_lately:
                driver.limit_lock_waits(connection, _WARY_MILLISECONDS)
            applied: dict[int, Outcome | Exception] = dict(
                zip(
                    together,
                    self._repository.apply(connection, [commands[index] for index in together]),
                    strict=True,
                )
            )
            if apart:
                applied |= self._apply_apart(connection, {i: commands[i] for i in apart})
            attempts.append([applied[index] for index in range(len(commands))])

        self._database.write(apply)

    def _apply_apart(
        self, connection: Connection, commands: dict[int, Command]
    ) -> dict[int, Outcome | Exception]:
        """Applies each command by itself, within the transaction, by the order of their ids."""
        outcomes: dict[int, Outcome | Exception] = {}
        locked: set[str] = set()
        driver = self._database.driver
        driver.limit_lock_waits(connection, _LOCKED_MILLISECONDS)
        for index in sorted(commands, key=lambda i: (commands[i].id, i)):
            command = commands[index]
            if command.id in locked:
                outcomes[index] = StoreBusy()
                continue
            try:
                with connection.begin_nested():
                    (outcomes[index],) = self._repository.apply(connection, [command])
            except Exception as error:
                failed = StoreError()
                if isinstance(error, DBAPIError):
                    failed = driver.store_error(error)
                if type(failed) not in (StoreError, StoreBusy):
                    raise
                failed.__cause__ = error
                outcomes[index] = failed
                if type(failed) is StoreBusy:
                    locked.add(command.id)
                    if len(locked) == _MANY_LOCKED:
                        driver.limit_lock_waits(connection, 1)
        return outcomes

    def _forget_locked(self) -> None:
        now = self._clock()
        self._locked_lately = {
            id_: until for id_, until in self._locked_lately.items() if until > now
        }

    def _remember_locked(
        self, commands: Sequence[Command], outcomes: Sequence[Outcome | Exception]
    ) -> None:
        until = self._clock() + LOCKED_SECONDS
        for command, outcome in zip(commands, outcomes, strict=True):
            if isinstance(outcome, StoreBusy):
                LOCK_TIMEOUTS.inc()
                self._locked_lately[command.id] = until
            else:
                self._locked_lately.pop(command.id, None)


def reconcile(
    command: Command, first: Outcome | Exception, second: Outcome | Exception
) -> Outcome | Exception:
    """The outcome of a command that was applied twice; whether `first` was committed is not known.

    What matters is an outcome that is refused the second time: the first time may have brought about the
    very state for which it is refused.
    """
    if not (isinstance(first, Outcome) and isinstance(second, OpserviceError)):
        return second
    if isinstance(command, Delete) and isinstance(second, OperationNotFound):
        return first  # it is not found because this command has deleted it
    if isinstance(command, Renew):
        # It may have happened before the operation was ended, in this batch or by others.
        return StoreUnavailable()
    return second
