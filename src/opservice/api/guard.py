"""The store as the caller of the present call may use it: what he may not see is not there.

An operation's parent and creator never change, so what was found of them by reading it holds when it is
changed afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace

from opservice.api.auth import Authenticator, Caller, current_caller
from opservice.errors import OpserviceError, ServerStopping, Unauthenticated
from opservice.filters import ListQuery
from opservice.operation import SECOND, Command, Outcome, Record, Start
from opservice.store.changes import Follower
from opservice.store.listing import Listed
from opservice.store.operations import OperationStore


class GuardedStore:
    """As OperationStore; everything raises OperationNotFound for what the caller may not see, and
    PermissionDenied for what he may see, but not change as his call would.
    """

    def __init__(self, store: OperationStore, authenticator: Authenticator | None) -> None:
        """Without an authenticator everybody may do everything."""
        self._store = store
        self._authenticator = authenticator
        self._following: set[_Following] = set()
        if authenticator is not None:
            authenticator.listeners.append(self._check_followers)

    async def get(self, operation_id: str) -> Record:
        record = await self._store.get(operation_id)
        caller = current_caller()
        if caller is not None:
            caller.admit(record)
        return record

    async def page(self, query: ListQuery) -> Listed:
        caller = current_caller()
        if caller is not None:
            query = replace(query, scope=caller.identity.scope())
        return await self._store.page(query)

    async def apply(self, command: Command) -> Outcome:
        caller = current_caller()
        if caller is None:
            return await self._store.apply(command)
        if isinstance(command, Start):
            caller.admit_start(command.parent)
        elif self._authenticator is not None:
            caller.admit(await self._store.get(command.id))
        caller.outcome = await self._store.apply(command)
        return caller.outcome

    async def follow(self, operation_id: str) -> AsyncGenerator[Record]:
        """Ends with an error once the caller may not see the operation any more."""
        caller, authenticator = current_caller(), self._authenticator
        if caller is None or authenticator is None:
            following = None
            records = self._store.follow(operation_id)
        else:
            following = _Following(caller, authenticator)
            self._following.add(following)
            records = self._store.follow(operation_id, following.begin)
        try:
            async with aclosing(records):
                async for record in records:
                    if following is not None:
                        following.admit(record)
                    yield record
        finally:
            if following is not None:
                self._following.discard(following)
                following.close()

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

    def _check_followers(self) -> None:
        for following in tuple(self._following):
            following.check()


class _Following:
    """A follow that goes on only while its caller may see the operation."""

    def __init__(self, caller: Caller, authenticator: Authenticator) -> None:
        self._caller = caller
        self._authenticator = authenticator
        self._follower: Follower | None = None
        self._record: Record | None = None
        self._refusal: OpserviceError | None = None
        self._expiry: asyncio.TimerHandle | None = None

    def begin(self, follower: Follower) -> None:
        self._follower = follower
        self.check()

    def admit(self, record: Record) -> None:
        """Raises why the caller may not see the operation, or not any more."""
        if self._refusal is not None:
            raise self._refusal
        self._caller.admit(record)
        self._record = record

    def check(self) -> None:
        """Looks again at who the caller is, and ends the follow when he may not see the operation."""
        assert self._follower is not None
        self.close()
        try:
            identity = self._authenticator.identify_now(self._caller.credentials)
            if identity is None:
                raise Unauthenticated(
                    "The token is signed with a key that is not accepted any more"
                )
            self._caller.identity = identity
            if self._record is not None:
                self._caller.admit(self._record)
        except OpserviceError as error:
            self._refusal = error
            self._follower.end(error)
            return
        if identity.expires_at is not None:
            left = identity.expires_at - self._authenticator.clock()
            self._expiry = asyncio.get_running_loop().call_later(left, self.check)

    def close(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
