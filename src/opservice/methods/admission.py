"""Admission: who makes a call, and whether they take up too much of the server.

All limits count per process. A caller is known by their subject or, without authentication, by the address
that they call from.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from opservice.auth.authenticator import Authenticator, Caller, Credentials
from opservice.domain.errors import RateLimited, TooManyFailures, TooManyWaits, Unauthenticated
from opservice.domain.identity import ANYBODY, NOBODY, Identity
from opservice.methods.call import Call, address_of, name_of
from opservice.methods.lasting import LastingCalls
from opservice.methods.method_policy import Access, MethodPolicy
from opservice.methods.slots import Slots

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


def wait_slots(most: int, most_of_caller: int, calls: str = "Waits and Watches") -> Slots:
    """Slots of calls that wait or watch. Without one TooManyWaits is raised."""

    def refuse(caller: str | None) -> TooManyWaits:
        if caller is None:
            return TooManyWaits("The server has as many waiting calls as it allows", "server")
        message = f"You have {most_of_caller} {calls} open, which is the limit"
        return TooManyWaits(message, caller)

    return Slots(most_of_caller, refuse, most)


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
    """Authenticates callers and limits them. Without an authenticator every caller is ANYBODY."""

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
        self._waits = wait_slots(limits.max_waits, limits.max_waits_per_caller)
        self._reflections = wait_slots(
            MAX_REFLECTIONS, MAX_REFLECTIONS_PER_CALLER, "streams of reflection"
        )
        # Apart, so that whoever has no credentials cannot take up the waits of those who have.
        self._open_waits = wait_slots(MAX_OPEN_WAITS, MAX_OPEN_WAITS_PER_CALLER)

    async def admit(self, call: Call, policy: MethodPolicy) -> None:
        """Notes in the call who makes it, and counts it towards their rate limit.

        Raises Unauthenticated, KeysUnavailable, TooManyFailures, RateLimited, or PermissionDenied when they
        may make a call of this method for no operation at all.
        """
        authenticator = self._authenticator
        if authenticator is None:
            caller = Caller(ANYBODY, policy.right)
        elif policy.requires is Access.OPEN:
            caller = Caller(NOBODY, policy.right)
        else:
            certificate = call.certificate() if self._asks_for_certificates else None
            credentials = Credentials.of(call.headers, certificate)
            identity = authenticator.known(credentials) or await self._identify(
                authenticator, credentials, call
            )
            caller = Caller(identity, policy.right, credentials)
        if self._rates is not None and not policy.probe:
            self._rates.take(name_of(caller, call.peer))
        call.known_caller = caller
        if (
            caller.identity.subject
        ):  # else nobody was asked: ANYBODY may do everything, NOBODY nothing
            caller.admit_call()

    def slots(self, policy: MethodPolicy) -> Slots | None:
        """Of which each call of a method holds one while it waits; None when the method does not wait."""
        if not policy.waits:
            return None
        if policy.requires is Access.OPEN:
            return self._open_waits
        return self._reflections if policy.requires is Access.AUTHENTICATED else self._waits

    def lasting(self, policy: MethodPolicy) -> LastingCalls | None:
        """The calls of a method that end with their callers' credentials, and when the server stops.

        None of those that are about an operation, which the store ends (guard.py), or the server's health.
        """
        return self._lasting if policy.requires is Access.AUTHENTICATED else None

    def stop(self) -> None:
        """Ends the streams of reflection, in which nothing may be asked for as long as the client likes."""
        self._lasting.stop()

    async def _identify(
        self, authenticator: Authenticator, credentials: Credentials, call: Call
    ) -> Identity:
        """Checks credentials that were not seen before, unless too many from there were bad."""
        if self._failures is None:
            return await authenticator.identify(credentials)
        address = address_of(call.peer)
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
