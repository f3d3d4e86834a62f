"""How much of the server a caller may take up: calls a second, and calls that wait."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opservice.auth.authenticator import Authenticator
from opservice.auth.policy import Policy
from opservice.domain.errors import RateLimited, TooManyWaits
from opservice.methods import admission
from opservice.methods.admission import Admission, AdmissionLimits, Rates, Waits
from opservice.methods.policies import METHODS


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


def refusal(waits: Waits, caller: str) -> TooManyWaits:
    with pytest.raises(TooManyWaits) as caught, waits.counted(caller):
        pass
    return caught.value


def test_a_caller_may_wait_so_many_times_at_once() -> None:
    waits = Waits(most=10, most_of_caller=2)

    with waits.counted("alice"), waits.counted("alice"):
        assert refusal(waits, "alice").message.startswith("You wait for or watch 2 operations")
        assert refusal(waits, "alice").subject == "alice"
        with waits.counted("bob"):
            pass


def test_all_callers_may_wait_so_many_times_at_once() -> None:
    waits = Waits(most=2, most_of_caller=2)

    with waits.counted("alice"), waits.counted("bob"):
        assert refusal(waits, "carol").message.startswith("The server has as many calls that wait")
        assert refusal(waits, "carol").subject == "server"


def test_a_wait_that_has_ended_makes_room_however_it_ended() -> None:
    waits = Waits(most=1, most_of_caller=1)

    for _ in range(3):
        with pytest.raises(ZeroDivisionError), waits.counted("alice"):
            raise ZeroDivisionError

    with waits.counted("alice"):
        pass


def test_a_wait_that_is_refused_takes_no_room() -> None:
    waits = Waits(most=1, most_of_caller=1)
    with waits.counted("alice"):
        assert refusal(waits, "alice")
        assert refusal(waits, "bob")

    with waits.counted("bob"):
        pass


def test_who_does_not_wait_any_more_is_forgotten() -> None:
    waits = Waits(most=10, most_of_caller=10)
    with waits.counted("alice"), waits.counted("alice"):
        pass

    assert not waits._of


HEALTH = METHODS["/grpc.health.v1.Health/Check"]
GET = METHODS["/yandex.cloud.operation.OperationService/Get"]
ENDPOINTS = METHODS["/yandex.cloud.endpoint.ApiEndpointService/List"]
START = METHODS["/opservice.v1.ProducerService/Start"]


def test_a_probe_is_neither_asked_nor_counted() -> None:
    strict = Admission(AdmissionLimits(rate_limit=1), Authenticator(Policy(), {}))

    assert strict.door(HEALTH) is None


def test_whoever_may_call_anyhow_is_not_asked() -> None:
    assert Admission(AdmissionLimits(), Authenticator(Policy(), {})).door(ENDPOINTS) is None


def test_without_authentication_and_limits_reads_pass_no_door() -> None:
    admission = Admission(AdmissionLimits(), None)

    assert admission.door(GET) is None
    assert admission.door(START) is not None  # for the audit log


def test_with_authentication_or_a_rate_all_operations_have_a_door() -> None:
    for each in (
        Admission(AdmissionLimits(), Authenticator(Policy(), {})),
        Admission(AdmissionLimits(rate_limit=1), None),
    ):
        assert each.door(GET) is not None


def test_what_does_not_wait_is_not_counted_among_the_waits() -> None:
    admission = Admission(AdmissionLimits(), None)

    assert admission.waiting(GET) is None
    assert admission.waiting(METHODS["/opservice.v1.OperationRecordService/Wait"]) is not None
