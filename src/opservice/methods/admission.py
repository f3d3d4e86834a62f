"""What a call passes before it is made: who its caller is, and how much of the server they take up.

All limits count per process. A caller is known by their subject or, where nobody is asked who they are,
by the address that they call from.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from grpc.aio import ServicerContext

from opservice.auth.authenticator import Authenticator, Caller, Credentials, set_caller
from opservice.domain.errors import RateLimited, TooManyFailures, TooManyWaits, Unauthenticated
from opservice.domain.identity import ANYBODY, Identity, Right
from opservice.methods.lasting import LastingCalls
from opservice.methods.policies import Method, Who

Context: TypeAlias = "ServicerContext[Any, Any]"
Metadata: TypeAlias = Sequence[tuple[str, Any]]
Door: TypeAlias = Callable[[Context, Metadata], Awaitable[Caller]]
"""Finds out who calls. Raises what refuses them."""

Waiting: TypeAlias = Callable[["Caller | None", Context], AbstractContextManager[None]]

MAX_REFLECTIONS, MAX_REFLECTIONS_PER_CALLER = 100, 10
"""Streams of reflection, in a worker."""

MAX_OPEN_WAITS, MAX_OPEN_WAITS_PER_CALLER = 1_000, 100
"""Watches of the server's health, for which nobody is asked who they are."""

_FAILURES_AT_ONCE = 10
"""Times the rate, so that a client of many threads with an old token is told what is wrong with it."""

_MAX_BUCKETS = 10_000


class Rates:
    """A token bucket for each caller: `per_second` calls on average, up to `burst` at once.

    `clock` returns seconds.
    """

    def __init__(
        self, per_second: int, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> None:
        """Raises RateLimited, which says when there will be a token again."""
        wait = self.seconds_until(caller)
        if wait > 0:
            message = f"You make more than {self._per_second} calls a second"
            raise RateLimited(message, caller, wait)
        self.spend(caller)

    def seconds_until(self, caller: str) -> float:
        """Until there is a token."""
        tokens, _ = self._tokens(caller)
        return max(0.0, (1 - tokens) / self._per_second)

    def spend(self, caller: str) -> None:
        """Takes a token, when there is one."""
        tokens, now = self._tokens(caller)
        self._buckets[caller] = max(0.0, tokens - 1), now
        self._buckets.move_to_end(caller)
        if len(self._buckets) > _MAX_BUCKETS:
            # Of who has not called for the longest time; most likely it is full again.
            self._buckets.popitem(last=False)

    def _tokens(self, caller: str) -> tuple[float, float]:
        """How many there are, and the time."""
        now = self._clock()
        tokens, at = self._buckets.get(caller, (float(self._burst), now))
        return min(self._burst, tokens + (now - at) * self._per_second), now


class Waits:
    """The calls that wait or watch: so many of one caller at a time, and so many in all.

    `them` are what a caller waits for, for people.
    """

    def __init__(self, most: int, most_of_caller: int, them: str = "operations") -> None:
        self._them = them
        self._most = most
        self._most_of_caller = most_of_caller
        self._in_all = 0
        self._of: Counter[str] = Counter()

    @contextmanager
    def counted(self, caller: str) -> Iterator[None]:
        """Raises TooManyWaits."""
        if self._of[caller] >= self._most_of_caller:
            most = self._most_of_caller
            message = f"You wait for or watch {most} {self._them}, which is the limit"
            raise TooManyWaits(message, caller)
        if self._in_all >= self._most:
            raise TooManyWaits("The server has as many calls that wait as it takes on", "server")
        self._in_all += 1
        self._of[caller] += 1
        try:
            yield
        finally:
            self._in_all -= 1
            self._of[caller] -= 1
            if not self._of[caller]:
                del self._of[caller]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """How much of a process one caller may take up; the settings of the same names say more."""

    rate_limit: int = 0
    """Calls a second; 0 is no limit."""
    rate_burst: int = 0
    """Calls at once; 0 is those of a second."""
    failed_auth_rate: int = 100
    """Calls a second with bad credentials from one address; 0 is no limit."""
    max_waits: int = 20_000
    max_waits_per_caller: int = 2_000


class Admission:
    """Without an authenticator callers are not asked who they are."""

    def __init__(
        self,
        limits: AdmissionLimits,
        authenticator: Authenticator | None,
        *,
        asks_for_certificates: bool = False,
    ) -> None:
        self._authenticator = authenticator
        self._lasting = LastingCalls(authenticator)
        self._asks_for_certificates = asks_for_certificates
        burst = limits.rate_burst or limits.rate_limit
        self._rates = Rates(limits.rate_limit, burst) if limits.rate_limit else None
        failures = limits.failed_auth_rate
        self._failures = Rates(failures, _FAILURES_AT_ONCE * failures) if failures else None
        self._waits = Waits(limits.max_waits, limits.max_waits_per_caller)
        self._reflections = Waits(
            MAX_REFLECTIONS, MAX_REFLECTIONS_PER_CALLER, "streams of reflection"
        )
        # Apart, so that whoever has no credentials cannot take up the waits of those who have.
        self._open_waits = Waits(MAX_OPEN_WAITS, MAX_OPEN_WAITS_PER_CALLER)

    def door(self, method: Method) -> Door | None:
        """What the callers of a method pass; None when there is nothing to find out or to count."""
        asks = self._authenticator is not None and method.takes is not Who.ANYBODY
        if method.probe or not (asks or self._rates or method.audited):
            return None
        right = method.takes if isinstance(method.takes, Right) else Right.SEE

        async def enter(context: Context, metadata: Metadata) -> Caller:
            if asks:
                assert self._authenticator is not None
                peer = context.auth_context() if self._asks_for_certificates else {}
                credentials = Credentials.of(metadata, peer)
                identity = self._authenticator.known(credentials) or await self._identify(
                    self._authenticator, credentials, context
                )
                caller = Caller(identity, right, credentials)
            else:
                caller = Caller(ANYBODY, right)
            if self._rates is not None:
                self._rates.take(name_of(caller, context))
            set_caller(caller)
            return caller

        return enter

    def waiting(self, method: Method) -> Waiting | None:
        """What the calls of a method wait within, which raises TooManyWaits; None when it does not wait."""
        if not method.waits:
            return None
        if method.takes is Who.ANYBODY:
            waits = self._open_waits
        else:
            waits = self._reflections if method.takes is Who.AUTHENTICATED else self._waits
        return lambda caller, context: waits.counted(name_of(caller, context))

    def lasting(self, method: Method) -> LastingCalls | None:
        """The calls of a method that end with their callers' credentials, and when the server stops.

        None of those that are about an operation, which the store ends (guard.py), or the server's health.
        """
        return self._lasting if method.takes is Who.AUTHENTICATED else None

    def stop(self) -> None:
        """Ends the streams of reflection, in which nothing may be asked for as long as the client likes."""
        self._lasting.stop()

    async def _identify(
        self, authenticator: Authenticator, credentials: Credentials, context: Context
    ) -> Identity:
        """Checks credentials that were not seen before, unless too many from there were bad."""
        if self._failures is None:
            return await authenticator.identify(credentials)
        address = address_of(context.peer())
        wait = self._failures.seconds_until(address)
        if wait > 0:
            raise TooManyFailures(
                "Too many calls from your address have credentials that are not valid",
                address,
                wait,
            )
        try:
            return await authenticator.identify(credentials)
        except Unauthenticated:
            self._failures.spend(address)
            raise


def address_of(peer: str) -> str:
    """Without the port: `peer:ipv4:10.0.0.7`; all callers on a Unix socket are `peer:unix`."""
    return f"peer:{peer.rpartition(':')[0]}"


def name_of(caller: Caller | None, context: Context) -> str:
    """What a caller is known by."""
    if caller is not None and caller.identity.subject:
        return f"subject:{caller.identity.subject}"
    return address_of(context.peer())
