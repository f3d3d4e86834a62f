"""The store as the caller of the present call may use it: what he may not see is not there.

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

import structlog

from opservice.api.auth import Authenticator, Caller, current_caller
from opservice.errors import (
    OpserviceError,
    PermissionDenied,
    ServerStopping,
    TooManyLists,
    Unauthenticated,
)
from opservice.filters import ListQuery
from opservice.identity import Identity
from opservice.operation import SECOND, Command, Outcome, Record, Start
from opservice.store.changes import Follower
from opservice.store.listing import Listed
from opservice.store.operations import MAX_LISTS, OperationStore

MAX_LISTS_PER_CALLER = MAX_LISTS // 8
"""At once: they are read one by one, and those of a caller with many operations may each take long."""

_CHECKED_AT_ONCE = 20
"""Followers whose credentials are checked again before others get their turn."""

log = structlog.stdlib.get_logger("opservice.guard")


class GuardedStore:
    """As OperationStore; everything raises OperationNotFound for what the caller may not see, and
    PermissionDenied for what he may see, but not change as his call would.
    """

    def __init__(self, store: OperationStore, authenticator: Authenticator | None) -> None:
        """Without an authenticator everybody may do everything."""
        self._store = store
        self._authenticator = authenticator
        self._lists: Counter[str] = Counter()
        self._following: set[_Following] = set()
        self._checking: asyncio.Task[None] | None = None
        if authenticator is not None:
            authenticator.listeners.append(self._check_followers)

    async def get(self, operation_id: str) -> Record:
        caller = current_caller()
        if caller is None:
            return await self._store.get(operation_id)
        if not caller.identity.sees_everything:
            await self._admit(caller, operation_id)
        record = await self._store.get(operation_id)
        caller.admit(record)
        return record

    async def page(self, query: ListQuery) -> Listed:
        caller = current_caller()
        if caller is None or self._authenticator is None:
            return await self._store.page(query)
        subject = caller.identity.subject
        if self._lists[subject] >= MAX_LISTS_PER_CALLER:
            raise TooManyLists(
                f"{MAX_LISTS_PER_CALLER} of your lists are being read, which is the limit",
                f"subject:{subject}",
            )
        self._lists[subject] += 1
        try:
            return await self._store.page(replace(query, scope=caller.identity.scope()), subject)
        finally:
            self._lists[subject] -= 1
            if not self._lists[subject]:
                del self._lists[subject]

    async def apply(self, command: Command) -> Outcome:
        caller = current_caller()
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
        caller, authenticator = current_caller(), self._authenticator
        if caller is None or authenticator is None:
            following = None
            records = self._store.follow(operation_id, repeat_after)
        else:
            if not caller.identity.sees_everything:
                await self._admit(caller, operation_id)
            following = _Following(caller, authenticator)
            self._following.add(following)
            records = self._store.follow(operation_id, repeat_after, following.begin)
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

    async def _admit(self, caller: Caller, operation_id: str) -> None:
        """Raises why the caller may not do with an operation what the call does."""
        origin = await self._store.origin(operation_id)
        try:
            caller.admit(origin)
        except PermissionDenied:
            await self._store.get(operation_id)  # one that has expired is not found, not denied
            raise

    def _check_followers(self) -> None:
        """What they may see is found out again before they are told anything more."""
        for following in self._following:
            following.stale = True
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check_each())

    async def _check_each(self) -> None:
        while stale := [following for following in self._following if following.stale]:
            for following in stale[:_CHECKED_AT_ONCE]:
                following.check()
            await asyncio.sleep(0)


class _Following:
    """A follow that goes on only while its caller may see the operation."""

    def __init__(self, caller: Caller, authenticator: Authenticator) -> None:
        self._caller = caller
        self._authenticator = authenticator
        self._follower: Follower | None = None
        self._record: Record | None = None
        self.stale = False
        """Whether what is known of the caller may not be true any more."""
        self._refusal: OpserviceError | None = None
        self._expiry: asyncio.TimerHandle | None = None

    def begin(self, follower: Follower) -> None:
        self._follower = follower
        self.check()

    def admit(self, record: Record) -> None:
        """Raises why the caller may not see the operation, or not any more."""
        if self.stale:
            self.check()
        if self._refusal is not None:
            raise self._refusal
        self._caller.admit(record)
        self._record = record

    def check(self) -> None:
        """Looks again at who the caller is, and ends the follow when he may not see the operation."""
        assert self._follower is not None
        self.close()
        self.stale = False
        try:
            identity = self._identity()
            self._caller.identity = identity
            if self._record is not None:
                self._caller.admit(self._record)
        except OpserviceError as error:
            self._end(error)
            return
        except Exception:  # whatever it is, he is not known to be allowed to go on
            log.exception("a caller could not be checked")
            self._end(Unauthenticated())
            return
        if identity.expires_at is not None:
            left = identity.expires_at - self._authenticator.clock()
            self._expiry = asyncio.get_running_loop().call_later(left, self.check)

    def _identity(self) -> Identity:
        """Raises Unauthenticated."""
        identity = self._authenticator.identify_now(self._caller.credentials)
        if identity is None:
            raise Unauthenticated("The token is signed with a key that is not accepted any more")
        return identity

    def _end(self, refusal: OpserviceError) -> None:
        assert self._follower is not None
        self._refusal = refusal
        self._follower.end(refusal)

    def close(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
