"""The store as the caller of the present call may use it: what they may not see is not there.

Whether a caller may see an operation is decided before its payloads are read: how long that takes would tell
that there is one. An operation's parent and creator never change, so what was found of them holds when
it is read or changed afterwards. But an id that was derived from an idempotency key may come again, as
another operation; so what is read is checked as well.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace

from opservice.auth.authenticator import Authenticator, Caller, current_caller
from opservice.domain.errors import (
    OperationNotFound,
    PermissionDenied,
    ServerStopping,
    TooManyLists,
    Unauthenticated,
)
from opservice.domain.filters import ListQuery
from opservice.domain.operation import SECOND, Command, Outcome, Record, Start
from opservice.methods.lasting import LastingCalls
from opservice.store.listing import Listed
from opservice.store.operations import MAX_LISTS, OperationStore

MAX_LISTS_PER_CALLER = MAX_LISTS // 8
"""At once: they are read one by one, and those of a caller with many operations may each take long."""


class GuardedStore:
    """As OperationStore; everything raises OperationNotFound for what the caller may not see, and
    PermissionDenied for what they may see, but not change as their call would.
    """

    def __init__(self, store: OperationStore, authenticator: Authenticator | None) -> None:
        """Without an authenticator everybody may do everything; with one, nothing is done for nobody."""
        self._store = store
        self._authenticator = authenticator
        self._lists: Counter[str] = Counter()
        self._lasting = None if authenticator is None else LastingCalls(authenticator)

    async def get(self, operation_id: str) -> Record:
        caller = self._caller()
        if caller is None:
            return await self._store.get(operation_id)
        if not caller.identity.sees_everything:
            await self._admit(caller, operation_id)
        record = await self._store.get(operation_id)
        caller.admit(record)
        return record

    async def page(self, query: ListQuery, name: str) -> Listed:
        """For a caller who is known by this name. Raises TooManyLists, or as the store does."""
        if self._lists[name] >= MAX_LISTS_PER_CALLER:
            raise TooManyLists(
                f"{MAX_LISTS_PER_CALLER} of your lists are being read, which is the limit", name
            )
        caller = self._caller()
        scope = None if caller is None else caller.identity.scope()
        self._lists[name] += 1
        try:
            return await self._store.page(replace(query, scope=scope), name)
        finally:
            self._lists[name] -= 1
            if not self._lists[name]:
                del self._lists[name]

    async def apply(self, command: Command) -> Outcome:
        caller = self._caller()
        if caller is None:
            return await self._store.apply(command)
        caller.command = command
        if isinstance(command, Start):
            caller.admit_start(command.parent)
        elif self._authenticator is not None:
            await self._admit(caller, command.id)
        caller.outcome = await self._store.apply(command)
        return caller.outcome

    async def follow(
        self, operation_id: str, repeat_after: float | None = None
    ) -> AsyncGenerator[Record]:
        """Ends with an error once the caller may not see the operation any more."""
        caller = self._caller()
        if caller is None or self._lasting is None:
            async with aclosing(self._store.follow(operation_id, repeat_after)) as records:
                async for record in records:
                    yield record
            return
        if not caller.identity.sees_everything:
            await self._admit(caller, operation_id)
        with self._lasting.of(caller) as lasting:
            following = self._store.follow(
                operation_id, repeat_after, lambda follower: lasting.begin(follower.end)
            )
            async with aclosing(following) as records:
                async for record in records:
                    lasting.admit(record)
                    yield record

    async def wait(self, operation_id: str, at_most: int) -> Record:
        """The operation once it is done, or as it is after `at_most` microseconds.

        When the server stops, the operation as it is then.
        """
        if at_most > 0:
            with suppress(TimeoutError, ServerStopping):
                async with asyncio.timeout(at_most / SECOND):
                    async with aclosing(self.follow(operation_id)) as records:
                        async for record in records:
                            if record.done:
                                return record
        return await self.get(operation_id)

    def _caller(self) -> Caller | None:
        """Raises Unauthenticated when nobody was asked who calls, though that has to be asked."""
        caller = current_caller()
        if caller is None and self._authenticator is not None:
            raise Unauthenticated("This call has no caller")
        return caller

    async def _admit(self, caller: Caller, operation_id: str) -> None:
        """Raises why the caller may not do with an operation what the call does."""
        origin = await self._store.origin(operation_id)
        try:
            caller.admit(origin)
        except OperationNotFound:
            if isinstance(origin, Record):
                # It was in memory: the database is asked as it is for one that does not exist.
                await self._store.origin(operation_id, remembered=False)
            raise
        except PermissionDenied:
            await self._store.get(operation_id)  # one that has expired is not found, not denied
            raise
