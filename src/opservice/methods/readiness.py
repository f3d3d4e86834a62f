"""Whether the server can serve, and if not, why: what whoever sends calls here should know before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from opservice.auth.keys import KeySource
from opservice.common.loggers import get_logger
from opservice.domain.errors import StoreBusy, StoreFileLost, StoreFull, StoreUnavailable
from opservice.methods.serving import FILE_LOST, ServingState
from opservice.store.service import OperationStore

PATIENCE_SECONDS = 2.0
"""How long the database may take to answer before the server is not ready."""

FRESH_SECONDS = 1.0
"""How long an answer of the database counts, and the pause between two looks while somebody watches."""

NO_KEYS = "the keys that check tokens were not read yet"
NO_ANSWER = f"the database did not answer within {PATIENCE_SECONDS:g} s"
NO_WRITE = f"the database did not finish a write within {PATIENCE_SECONDS:g} s"
UNAVAILABLE = "the database is not available"
TAKES_NO_WRITES = "the database takes no writes"
BUSY = "another transaction has locked the database for too long"
FULL = "the database has no space left"
FAULTY = "the database does not work as it should: see the server's log"

log = get_logger("opservice.readiness")


@dataclass(frozen=True, slots=True)
class Ready:
    """The server can serve when there is no reason why not.

    The reasons are in plain words, made from constants: they name no host, user, file or statement, and may
    be told to anybody.
    """

    reasons: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether the server can serve."""
        return not self.reasons


class Readiness:
    """Finds out whether the server can serve: it is not stopping, it has its keys, and its database works.

    The database works when it has the schema, and a write that changes nothing becomes durable. A server
    that cannot write takes no Start and no Renew, so it is not ready, although it may still read. However
    many ask, a process asks the database once in FRESH_SECONDS, and not again while it waits for the answer.

    A front that tells of it needs `check` alone. For `/readyz`: 200 when `ready`, else 503, with
    `{"ready": …, "reasons": […]}`, for everybody, and not to be stored by caches. `/livez` needs nothing from
    here: a process that answers is alive, whatever its database does.

    It belongs to one event loop.
    """

    def __init__(self, state: ServingState, store: OperationStore, keys: KeySource | None) -> None:
        """`keys` is None when there are none to read."""
        self._state = state
        self._keys = keys
        self._reading = _Question(store.schema_fault, NO_ANSWER, UNAVAILABLE)
        self._writing = _Question(store.prove_writes, NO_WRITE, TAKES_NO_WRITES)
        self._last = Ready()
        self._changed = asyncio.Event()
        self._watching = 0
        self._poller: asyncio.Task[None] | None = None

    async def check(self) -> Ready:
        """How it is now, or was FRESH_SECONDS ago. Takes PATIENCE_SECONDS at most, and never raises.

        When the server does not serve any more, that is the only reason, and the database is not asked.
        """
        reasons = () if self._state.reason else await self._reasons()
        if self._state.reason:  # maybe since
            reasons = (self._state.reason,)
        ready = Ready(reasons)
        if ready != self._last:
            self._last = ready
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()
            if ready.ready:
                log.info("ready again")
            elif self._state.serving:
                log.warning("not ready", reasons=reasons)
        return ready

    async def watch(self) -> AsyncGenerator[Ready]:
        """How it is, and again when that changes. Ends when the server does not serve any more, after that.

        The database is asked every FRESH_SECONDS for all who watch, and not when nobody does.
        """
        self._watching += 1
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        try:
            ready = await self.check()
            while True:
                changed = self._changed
                yield ready
                if self._state.reason in ready.reasons:
                    return
                await changed.wait()
                ready = self._last
        finally:
            self._watching -= 1
            if not self._watching:
                self._poller.cancel()
                self._poller = None

    async def _poll(self) -> None:
        while self._state.serving:
            with suppress(TimeoutError):
                async with asyncio.timeout(FRESH_SECONDS):
                    await self._state.stopped()
            await self.check()

    async def _reasons(self) -> tuple[str, ...]:
        # A database that cannot be read cannot be written either: one reason is enough.
        database, writes = await asyncio.gather(self._reading.answer(), self._writing.answer())
        keys = NO_KEYS if self._keys is not None and not self._keys.has_keys else None
        return tuple(reason for reason in (keys, database or writes) if reason is not None)


class _Question:
    """Something that is asked of the database, once at a time, with an answer for all who want to know."""

    def __init__(
        self, ask: Callable[[], Awaitable[str | None]], when_late: str, when_unavailable: str
    ) -> None:
        """`ask` returns what is wrong, or raises a StoreError; the others are what is wrong then."""
        self._ask = ask
        self._when_late = when_late
        self._when_unavailable = when_unavailable
        self._asking: asyncio.Task[str | None] | None = None
        self._began = 0.0
        self._ended = 0.0

    async def answer(self) -> str | None:
        """What is wrong, or None. Takes PATIENCE_SECONDS at most."""
        loop = asyncio.get_running_loop()
        asking = self._asking
        if asking is None or (asking.done() and loop.time() - self._ended >= FRESH_SECONDS):
            self._began = loop.time()
            asking = self._asking = loop.create_task(self._outcome())
        if not asking.done():
            # It goes on when it is late, and when who asked has left.
            left = self._began + PATIENCE_SECONDS - loop.time()
            await asyncio.wait((asking,), timeout=max(left, 0))
        return asking.result() if asking.done() else self._when_late

    async def _outcome(self) -> str | None:
        try:
            return await self._ask()
        except StoreFileLost:
            return FILE_LOST
        except StoreBusy:
            return BUSY
        except StoreUnavailable:
            return self._when_unavailable
        except StoreFull:
            return FULL
        except Exception:  # whatever it is, the server is not ready
            log.exception("the database could not be checked")
            return FAULTY
        finally:
            self._ended = asyncio.get_running_loop().time()
