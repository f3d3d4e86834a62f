"""Calls that last end when the server stops, and when their callers may not go on.

A caller is checked again when their token or certificate expires, and when tokens, keys or grants have
changed. From that moment on the call is told nothing more before its caller was checked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from opservice.auth.authenticator import Authenticator, Caller
from opservice.common.loggers import get_logger
from opservice.domain.errors import OpserviceError, ServerStopping, Unauthenticated
from opservice.domain.identity import Identity
from opservice.domain.operation import Record

_CHECKED_AT_ONCE = 20
"""Calls whose credentials are checked again before others get their turn."""

Request = TypeVar("Request")
End = Callable[[OpserviceError], None]
"""Ends a call with an error, which is the first that this is given."""

log = get_logger("opservice.guard")


class LastingCalls:
    """The calls that last at the moment."""

    def __init__(self, authenticator: Authenticator | None) -> None:
        """Without an authenticator they end only when the server stops."""
        self._authenticator = authenticator
        self._calls: set[Lasting] = set()
        self._checking: asyncio.Task[None] | None = None
        self._stopped = False
        if authenticator is not None:
            authenticator.listeners.append(self._check_all)

    @contextmanager
    def of(self, caller: Caller) -> Iterator[Lasting]:
        """A call of this caller, which lasts as long as this. With an authenticator there is one."""
        call = Lasting(caller, self._authenticator)
        if self._stopped:
            call.refuse(ServerStopping())
        self._calls.add(call)
        try:
            yield call
        finally:
            self._calls.discard(call)
            call.close()

    def stop(self) -> None:
        """Ends whichever there are, or will be."""
        self._stopped = True
        for call in self._calls:
            call.refuse(ServerStopping())

    def _check_all(self) -> None:
        for call in self._calls:
            call.stale = True
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check_each())

    async def _check_each(self) -> None:
        while stale := [call for call in self._calls if call.stale]:
            for call in stale[:_CHECKED_AT_ONCE]:
                call.check()
            await asyncio.sleep(0)


class Lasting:
    """A call that goes on only while its caller may see the operation that it is about, if there is one."""

    def __init__(self, caller: Caller, authenticator: Authenticator | None) -> None:
        self._caller = caller
        self._authenticator = authenticator
        self._end: End | None = None
        self._record: Record | None = None
        self.stale = False
        """Whether what is known of the caller may not be true any more."""
        self._refusal: OpserviceError | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self.when_identified: Callable[[Identity], None] = lambda _identity: None
        """Given who the caller is, each time that they were looked at again."""

    def begin(self, end: End) -> None:
        """Has `end` called when the call may not go on: at once when that is known already."""
        self._end = end
        if self._refusal is None:
            self.check()
        else:
            end(self._refusal)

    def admit(self, record: Record) -> None:
        """Raises why the caller may not see the operation, or not any more."""
        self.confirm()
        self._caller.admit(record)
        self._record = record

    def confirm(self) -> None:
        """Raises why the call may not go on."""
        if self.stale:
            self.check()
        if self._refusal is not None:
            raise self._refusal

    def check(self) -> None:
        """Looks again at who the caller is, and ends the call when it may not go on."""
        self.close()
        self.stale = False
        if self._authenticator is None:
            return
        try:
            identity = _identify_again(self._caller, self._authenticator)
            self._caller.identity = identity
            if self._record is not None:
                self._caller.admit(self._record)
            self.when_identified(identity)
        except OpserviceError as error:
            self.refuse(error)
            return
        except Exception:  # whatever it is, the caller is not known to be allowed to go on
            log.exception("a caller could not be checked")
            self.refuse(Unauthenticated())
            return
        if identity.expires_at is not None:
            left = identity.expires_at - self._authenticator.clock()
            self._expiry = asyncio.get_running_loop().call_later(left, self.check)

    def refuse(self, refusal: OpserviceError) -> None:
        """Ends the call."""
        self._refusal = refusal
        if self._end is not None:
            self._end(refusal)

    def close(self) -> None:
        """Does not wait for the credentials to expire any more."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None


def _identify_again(caller: Caller, authenticator: Authenticator) -> Identity:
    """Raises Unauthenticated."""
    identity = authenticator.identify_now(caller.credentials)
    if identity is None:
        raise Unauthenticated("The token is signed with a key that is not accepted any more")
    return identity


async def until_ended(requests: AsyncIterator[Request], call: Lasting) -> AsyncIterator[Request]:
    """The requests of a stream. Raises what the call ends with, also while no request comes."""
    ended: asyncio.Future[OpserviceError] = asyncio.get_running_loop().create_future()

    def end(refusal: OpserviceError) -> None:
        if not ended.done():
            ended.set_result(refusal)

    call.begin(end)
    while True:
        # Not cancelled, which grpc may not survive: it ends with the call.
        reading = asyncio.ensure_future(anext(requests))
        reading.add_done_callback(_retrieve)
        await asyncio.wait((reading, ended), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            raise ended.result()
        try:
            request = reading.result()
        except StopAsyncIteration:
            return
        yield request


def _retrieve(reading: asyncio.Future[Any]) -> None:
    """So that asyncio does not complain of an error that nobody asks for."""
    if not reading.cancelled():
        reading.exception()
