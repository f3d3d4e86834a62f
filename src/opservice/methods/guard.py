"""The store as one caller may use it: for them, an operation that they may not see does not exist.

Whether a caller may see an operation is decided before its payloads are read. The time that reading them
takes would tell that the operation exists. Its parent and its creator never change, so the decision still
holds when it is read or changed afterwards. But an id that was derived from an idempotency key may come
again, as another operation. So what is read is checked as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
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
from opservice.methods.followed import Followed
from opservice.methods.lasting import LastingCalls
from opservice.methods.slots import Slots
from opservice.store.following import Event, Follower
from opservice.store.listing import PAGE_BYTES, Listed
from opservice.store.service import MAX_LISTS, OperationStore

MAX_LISTS_PER_CALLER = MAX_LISTS // 8
"""Lists of one caller at a time, and batches. Lists are read one by one, and each may take long."""

_AT_ONCE = 20
"""Operations of a batch that are read together: each may have payloads of megabytes."""
_FOLLOWED_PAGE = 500
"""Operations of a parent that are read at a time."""
_MOST_PASSED = 10_000
"""Changes that are looked at before a parent's operations are walked instead: a twentieth of a second."""
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
            for start in range(0, len(operation_ids), _AT_ONCE):
                for record in await asyncio.gather(
                    *(
                        self._find(caller, operation_id, trusted)
                        for operation_id in operation_ids[start : start + _AT_ONCE]
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

        async def read_all(clock: int) -> AsyncGenerator[None]:
            since = followed.since(clock)
            if followed.ids is not None:
                reading = self._tell_ids(caller, followed.ids, follower, since, scope is None)
            elif since is not None and scope is None:
                reading = self._tell_changed(caller, followed, name, follower, clock, since)
            else:
                reading = self._tell_parent(caller, followed, name, follower, clock, since)
            async with aclosing(reading):
                async for _ in reading:
                    yield

        def compare(identity: Identity) -> None:
            if identity.scope() != scope:
                follower.end(WatchOutdated())

        with nullcontext() if trusted else self._lasting.of(caller) as lasting:
            if lasting is not None:
                lasting.when_identified = compare
                lasting.begin(follower.end)
            following = self._store.follow_many(follower, read_all, repeat_after)
            async with aclosing(following) as events:
                async for event in events:
                    if lasting is not None:
                        lasting.confirm()
                        follower.check()
                    yield event

    async def _tell_ids(
        self,
        caller: Caller,
        ids: Sequence[str],
        follower: Follower,
        since: int | None,
        sees_all: bool,
    ) -> AsyncGenerator[None]:
        """Tells the follower of the operations with these ids as they are; `since` is as in was_told."""
        for start in range(0, len(ids), _AT_ONCE):
            slice_ = ids[start : start + _AT_ONCE]
            finding = (self._find(caller, id_, sees_all) for id_ in slice_)
            for id_, record in zip(slice_, await asyncio.gather(*finding), strict=True):
                if record is None:
                    follower.remove(id_)
                elif since is None or not follower.was_told(record, since):
                    follower.tell(record)
            yield

    async def _tell_parent(
        self,
        caller: Caller,
        followed: Followed,
        name: str,
        follower: Follower,
        clock: int,
        since: int | None,
    ) -> AsyncGenerator[None]:
        """The same of a parent's operations, of which `since` says which may have changed."""
        query = ListQuery(
            followed.parent,
            _FOLLOWED_PAGE,
            followed.condition if since is None else None,
            changed_since=since,
        )

        def tell(records: Sequence[Record]) -> None:
            for record in records:
                if record.expires_at is not None and record.expires_at <= clock:
                    follower.tell_gone(Change.end_of(record))
                elif since is None or not follower.was_told(record, since):
                    follower.tell(record)

        while True:
            async with self._turn_of(name):
                page = await self._page(caller, query, name)
            tell(page.records)
            end = page.end
            del page  # it may be large, and its reader slow
            yield
            if end is None:
                return
            query = replace(query, after=end)

    async def _tell_changed(
        self,
        caller: Caller,
        followed: Followed,
        name: str,
        follower: Follower,
        clock: int,
        since: int,
    ) -> AsyncGenerator[None]:
        """The same of those that have changed since then, which are found by when they changed.

        Only for who sees everything: how long it takes tells how much has changed, whoever may see it. When
        that is much, the parent's operations are walked after all, which may be few.
        """
        passed = 0
        for expired in (False, True):
            after: Change | None = None
            while True:
                async with self._turn_of(name):
                    page, after = await self._store.changes(since, after, name, expired=expired)
                wanted = [change for change in page if follower.wants(change)]
                for change in wanted:
                    if change.gone:
                        follower.tell_gone(change)
                yield
                ids = [change.id for change in wanted if not change.gone]
                for start in range(0, len(ids), _AT_ONCE):
                    slice_ = ids[start : start + _AT_ONCE]
                    finding = (self._find(caller, id_, trusted=True) for id_ in slice_)
                    for record in await asyncio.gather(*finding):
                        if record is not None:  # else the feed tells of what became of it meanwhile
                            follower.tell(record)
                    yield
                if after is None:
                    break
                passed += len(page)
                if passed >= _MOST_PASSED and followed.parent is not None:
                    walk = self._tell_parent(caller, followed, name, follower, clock, since)
                    async with aclosing(walk):
                        async for _ in walk:
                            yield
                    return

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
