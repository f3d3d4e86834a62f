"""How much of the server a caller may take up: calls a second, and calls that wait."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opservice.auth.authenticator import Authenticator, Caller
from opservice.auth.policy import Policy
from opservice.domain.errors import CredentialsMissing, RateLimited, TooManyWaits
from opservice.domain.identity import ANYBODY, NOBODY, Right
from opservice.methods import admission
from opservice.methods.admission import Admission, AdmissionLimits, Rates, wait_slots
from opservice.methods.method_policy import METHOD_POLICIES, MethodPolicy
from opservice.methods.slots import Slots
from support.calls import ReceivedCall


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def taken(rates: Rates, caller: str = "alice") -> int:
    """How many calls they make until one is refused."""
    for made in range(1000):
        try:
            rates.take(caller)
        except RateLimited:
            return made
    return 1000


def test_a_caller_may_make_a_burst_of_calls() -> None:
    assert taken(Rates(2, 5, Clock())) == 5


def test_calls_come_back_with_time() -> None:
    clock = Clock()
    rates = Rates(2, 5, clock)
    taken(rates)

    clock.now += 1.5

    assert taken(rates) == 3


def test_no_more_calls_come_back_than_a_burst() -> None:
    clock = Clock()
    rates = Rates(2, 5, clock)
    taken(rates)

    clock.now += 3600

    assert taken(rates) == 5


def test_parts_of_a_call_add_up() -> None:
    clock = Clock()
    rates = Rates(1, 1, clock)
    taken(rates)

    for _ in range(2):
        clock.now += 0.25
        assert taken(rates) == 0
    clock.now += 0.5

    assert taken(rates) == 1


def test_each_caller_has_his_own_rate() -> None:
    rates = Rates(2, 5, Clock())
    taken(rates)

    assert taken(rates, "bob") == 5


def test_who_is_refused_is_told_when_to_try_again() -> None:
    clock = Clock()
    rates = Rates(4, 1, clock)
    rates.take("alice")

    with pytest.raises(RateLimited, match="You make more than 4 calls a second") as caught:
        rates.take("alice")

    assert caught.value.subject == "alice"
    assert caught.value.retry_seconds == 0.25
    clock.now += caught.value.retry_seconds
    assert taken(rates) == 1


def test_calls_that_are_refused_do_not_count() -> None:
    clock = Clock()
    rates = Rates(1, 1, clock)
    taken(rates)

    for _ in range(9):
        clock.now += 0.125
        taken(rates)

    assert clock.now > 101
    assert taken(rates) == 0  # one was made when the second was over
    clock.now += 0.875
    assert taken(rates) == 1


@settings(deadline=None)
@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.lists(st.floats(0, 2, allow_subnormal=False), max_size=60),
)
def test_no_caller_makes_more_calls_than_his_rate_and_burst(
    per_second: int, burst: int, pauses: list[float]
) -> None:
    clock = Clock()
    rates = Rates(per_second, burst, clock)
    begin, made = clock.now, 0

    for pause in pauses:
        clock.now += pause
        made += taken(rates)

        assert made <= burst + per_second * (clock.now - begin) + 1e-6


def test_who_has_not_called_for_long_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory for callers is bounded, whoever calls."""
    monkeypatch.setattr(admission, "_MAX_BUCKETS", 2)
    rates = Rates(1, 1, Clock())
    for caller in ("alice", "bob", "carol"):
        rates.take(caller)

    assert len(rates._buckets) == 2
    assert [taken(rates, caller) for caller in ("carol", "bob")] == [0, 0]
    assert taken(rates, "alice") == 1


def refusal(waits: Slots, caller: str) -> TooManyWaits:
    with pytest.raises(TooManyWaits) as caught, waits.held(caller):
        pass
    return caught.value


def test_a_caller_may_wait_so_many_times_at_once() -> None:
    waits = wait_slots(most=10, most_of_caller=2)

    with waits.held("alice"), waits.held("alice"):
        assert refusal(waits, "alice").message.startswith("You have 2 Waits and Watches open")
        assert refusal(waits, "alice").subject == "alice"
        with waits.held("bob"):
            pass


def test_all_callers_may_wait_so_many_times_at_once() -> None:
    waits = wait_slots(most=2, most_of_caller=2)

    with waits.held("alice"), waits.held("bob"):
        assert refusal(waits, "carol").message.startswith("The server has as many waiting calls")
        assert refusal(waits, "carol").subject == "server"


def test_a_wait_that_has_ended_makes_room_however_it_ended() -> None:
    waits = wait_slots(most=1, most_of_caller=1)

    for _ in range(3):
        with pytest.raises(ZeroDivisionError), waits.held("alice"):
            raise ZeroDivisionError

    with waits.held("alice"):
        pass


def test_a_wait_that_is_refused_takes_no_room() -> None:
    waits = wait_slots(most=1, most_of_caller=1)
    with waits.held("alice"):
        assert refusal(waits, "alice")
        assert refusal(waits, "bob")

    with waits.held("bob"):
        pass


def test_who_does_not_wait_any_more_is_forgotten() -> None:
    waits = wait_slots(most=10, most_of_caller=10)
    with waits.held("alice"), waits.held("alice"):
        pass

    assert not waits._of


HEALTH = METHOD_POLICIES["/grpc.health.v1.Health/Check"]
GET = METHOD_POLICIES["/yandex.cloud.operation.OperationService/Get"]
ENDPOINTS = METHOD_POLICIES["/yandex.cloud.endpoint.ApiEndpointService/List"]
START = METHOD_POLICIES["/opservice.v1.ProducerService/Start"]


async def admitted(admission: Admission, policy: MethodPolicy, calls: int = 1) -> Caller:
    """The caller of the last of so many calls, all without credentials, from one address."""
    for _ in range(calls):
        await admission.admit(call := ReceivedCall(), policy)
    return call.caller


async def test_a_probe_is_neither_authenticated_nor_counted() -> None:
    strict = Admission(AdmissionLimits(rate_limit=1), Authenticator(Policy(), {}))

    assert (await admitted(strict, HEALTH, calls=2)).identity is NOBODY


async def test_the_caller_of_an_open_method_is_nobody_and_counts() -> None:
    admission = Admission(AdmissionLimits(rate_limit=1), Authenticator(Policy(), {}))

    assert (await admitted(admission, ENDPOINTS)).identity is NOBODY
    with pytest.raises(RateLimited):
        await admitted(admission, ENDPOINTS)


async def test_without_authentication_the_caller_is_anybody() -> None:
    caller = await admitted(Admission(AdmissionLimits(), None), START)

    assert caller.identity is ANYBODY
    assert caller.right is Right.PRODUCE


async def test_with_authentication_whoever_shows_nothing_is_refused() -> None:
    admission = Admission(AdmissionLimits(), Authenticator(Policy(), {}))

    with pytest.raises(CredentialsMissing):
        await admitted(admission, GET)


def test_what_does_not_wait_is_not_counted_among_the_waits() -> None:
    admission = Admission(AdmissionLimits(), None)

    assert admission.slots(GET) is None
    assert admission.slots(METHOD_POLICIES["/opservice.v1.OperationRecordService/Wait"]) is not None
