"""The store as one caller may use it: for them, an operation that they may not see does not exist.

Whether a caller may see an operation is decided before its payloads are read. The time that reading them
takes would tell that the operation exists. Its parent and its creator never change, so the decision still
holds when it is read or changed afterwards. But an id that was derived from an idempotency key may come
again, as another operation. So what is read is checked as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing, nullcontext, suppress
from dataclasses import replace
from functools import partial
from weakref import WeakValueDictionary

from opservice.auth.authenticator import Authenticator, Caller
from opservice.domain.errors import (
    InvalidArgument,
    OperationNotFound,
    PermissionDenied,
    ServerStopping,
    TooManyLists,
    Unauthenticated,
    Violation,
    WatchOutdated,
)
from opservice.domain.filters import ListQuery
from opservice.domain.identity import ANYBODY, Identity, Right
from opservice.domain.operation import SECOND, Change, Command, Outcome, Record, Start
from opservice.methods.catching_up import AT_ONCE, CatchingUp
from opservice.methods.followed import Followed
from opservice.methods.lasting import LastingCalls
from opservice.methods.slots import Slots
from opservice.store.following import Event
from opservice.store.listing import PAGE_BYTES, Listed
from opservice.store.service import MAX_LISTS, OperationStore

MAX_LISTS_PER_CALLER = MAX_LISTS // 8
"""Lists of one caller at a time, and batches. Lists are read one by one, and each may take long."""

_TOO_LARGE = Violation(
    "operation_ids",
    f"have records of more than {PAGE_BYTES} bytes together, ask for fewer at a time",
)


class GuardedStore:
    """Does what OperationStore does, once it is known that the caller may have it done.

    Every method takes the caller first. Every method raises

    * Unauthenticated, when the server authenticates its callers and this one was not authenticated;
    * OperationNotFound, for an operation that the caller may not see;
    * PermissionDenied, for one that they may see, but without the right that their call requires;
    * a StoreError, or what the command is refused with, as OperationStore does.
    """

    def __init__(self, store: OperationStore, authenticator: Authenticator | None) -> None:
        """Without an authenticator ANYBODY may do everything; with one, only who was authenticated may."""
        self._store = store
        self._authenticator = authenticator
        self._lists = Slots(MAX_LISTS_PER_CALLER, partial(_too_many, "lists"))
        self._batches = Slots(MAX_LISTS_PER_CALLER, partial(_too_many, "batches"))
        self._lasting = LastingCalls(authenticator)
        self._reading: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By the names of those whose streams read what there is: of each name one at a time.

        The others wait. A stream that was refused, as a list is, would have told much in vain.
        """

    async def get(self, caller: Caller, operation_id: str) -> Record:
        """The operation as it is now."""
        if self._may_do_everything(caller):
            return await self._store.get(operation_id)
        if not caller.identity.sees_everything:
            await self._admit(caller, operation_id)
        record = await self._store.get(operation_id)
        caller.admit(record)
        return record

    async def get_each(
        self, caller: Caller, operation_ids: Sequence[str], name: str
    ) -> list[Record | None]:
        """The operations as they are now, None for each that is not there; `name` as for `page`.

        Raises InvalidArgument when they are too large for one answer, and TooManyLists as `page` does.
        """
        trusted = self._may_do_everything(caller) or caller.identity.sees_everything
        found: list[Record | None] = []
        size = 0
        with self._batches.held(name):
            for start in range(0, len(operation_ids), AT_ONCE):
                for record in await asyncio.gather(
                    *(
                        self._find(caller, operation_id, trusted)
                        for operation_id in operation_ids[start : start + AT_ONCE]
                    )
                ):
                    size += 0 if record is None else record.payload_bytes
                    if size > PAGE_BYTES and len(operation_ids) > 1:
                        raise InvalidArgument([_TOO_LARGE])
                    found.append(record)
                await asyncio.sleep(0)  # what is in memory is found without a pause
        return found

    async def _find(self, caller: Caller, operation_id: str, trusted: bool) -> Record | None:
        try:
            if not trusted:
                await self._admit(caller, operation_id)
            record = await self._store.get(operation_id)
            caller.admit(record)
        except OperationNotFound:
            if not trusted:
                caller.note_not_found(operation_id)
            return None
        return record

    async def page(self, caller: Caller, query: ListQuery, name: str) -> Listed:
        """The operations of the query that the caller may see; `name` is what they are known by.

        Raises TooManyLists when as many lists of that name are being read as one caller may have.
        """
        with self._lists.held(name):
            return await self._page(caller, query, name)

    async def _page(self, caller: Caller, query: ListQuery, name: str) -> Listed:
        scope = None if self._may_do_everything(caller) else caller.identity.scope()
        return await self._store.page(replace(query, scope=scope), name)

    async def apply(self, caller: Caller, command: Command) -> Outcome:
        """Applies the command. Notes it and its outcome with the caller, for the audit log."""
        trusted = self._may_do_everything(caller)
        caller.command = command
        if trusted:
            pass
        elif isinstance(command, Start):
            caller.admit_start(command.parent)
        else:
            await self._admit(caller, command.id)
        caller.outcome = await self._store.apply(command)
        return caller.outcome

    async def follow(
        self, caller: Caller, operation_id: str, repeat_after: float | None = None
    ) -> AsyncGenerator[Record]:
        """The operation as it is, then as it becomes, until it is done; see OperationStore.follow.

        Ends with an error once the caller's credentials expire, or they may not see the operation any more.
        """
        if self._may_do_everything(caller):
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

    async def follow_many(
        self, caller: Caller, followed: Followed, name: str, repeat_after: float | None = None
    ) -> AsyncGenerator[Event]:
        """What there is of the operations, then what becomes of them; see OperationStore.follow_many.

        `name` is as for `page`. Ends with an error once the caller's credentials expire. Raises WatchOutdated
        when what they may see changes, or when a stream cannot be continued.
        """
        trusted = self._may_do_everything(caller)
        scope = None if trusted else caller.identity.scope()
        if followed.has_ended:
            yield Event(None, followed.resumed, is_last=True)
            return

        def admits(change: Record | Change) -> bool:
            return scope is None or caller.identity.may(Right.SEE, change.parent, change.created_by)

        follower = followed.follower(admits)

        def find(operation_id: str) -> Awaitable[Record | None]:
            return self._find(caller, operation_id, trusted=scope is None)

        async def page(query: ListQuery) -> Listed:
            async with self._turn_of(name):
                return await self._page(caller, query, name)

        async def changes(
            since: int, after: Change | None, expired: bool
        ) -> tuple[Sequence[Change], Change | None]:
            async with self._turn_of(name):
                return await self._store.changes(since, after, name, expired=expired)

        catching_up = CatchingUp(followed, follower, find, page, changes if scope is None else None)

        def compare(identity: Identity) -> None:
            if identity.scope() != scope:
                follower.end(WatchOutdated())

        with nullcontext() if trusted else self._lasting.of(caller) as lasting:
            if lasting is not None:
                lasting.when_identified = compare
                lasting.begin(follower.end)
            following = self._store.follow_many(follower, catching_up.tell, repeat_after)
            async with aclosing(following) as events:
                async for event in events:
                    if lasting is not None:
                        lasting.confirm()
                        follower.check()
                    yield event

    def _turn_of(self, name: str) -> asyncio.Lock:
        return self._reading.setdefault(name, asyncio.Lock())

    async def wait(self, caller: Caller, operation_id: str, at_most: int) -> Record:
        """The operation once it is done, or as it is after `at_most` microseconds.

        When the server stops, the operation as it is then.
        """
        if at_most > 0:
            with suppress(TimeoutError, ServerStopping):
                async with asyncio.timeout(at_most / SECOND):
                    async with aclosing(self.follow(caller, operation_id)) as records:
                        async for record in records:
                            if record.done:
                                return record
        return await self.get(caller, operation_id)

    def _may_do_everything(self, caller: Caller) -> bool:
        """Whether nothing needs to be asked about the caller, because the server authenticates nobody.

        Raises Unauthenticated when it does, and this caller was not authenticated, whoever forgot that.
        """
        if self._authenticator is None:
            return caller.identity is ANYBODY
        if not caller.identity.subject:
            raise Unauthenticated("The caller was not authenticated")
        return False

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


def _too_many(what: str, name: str | None) -> TooManyLists:
    message = f"{MAX_LISTS_PER_CALLER} of your {what} are being read, which is the limit"
    return TooManyLists(message, name or "")
