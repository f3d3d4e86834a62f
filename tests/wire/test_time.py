"""What time does to an operation: leases, timeouts, the cancel grace period, retention.

Waiting takes long, so each fixture starts all that its tests look at, and waits once. What differs between
databases is in store/contract/test_sweeps.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import RpcError, StatusCode

from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from support.client import TOKEN, Client, refusal_from, refused, unpacked
from support.server import ServerProcess, eventually, serving

SHORT = Duration(nanos=200_000_000)
SECOND = Duration(seconds=1)
LONGER = Duration(seconds=2)
"""No stall of a busy machine should last so long."""
HOUR = Duration(seconds=3600)


def ended(client: Client, id_: str) -> Operation:
    """The operation, once it is done without anybody asking."""

    def look() -> Operation | None:
        operation = client.get(id_)
        return operation if operation.done else None

    return eventually(look)


def age(operation: Operation) -> float:
    """Seconds from its creation to its last change."""
    return (operation.modified_at.ToMicroseconds() - operation.created_at.ToMicroseconds()) / 1e6


def reason(operation: Operation) -> str:
    return unpacked(operation.error.details[0], ErrorInfo).reason


def is_gone(client: Client, id_: str) -> bool:
    try:
        client.get(id_)
    except RpcError as error:
        return refusal_from(error).code == StatusCode.NOT_FOUND
    return False


@dataclass(frozen=True)
class Aged:
    """Operations that have been left to time for longer than two seconds."""

    lapsed: Operation
    lapsed_while_cancelling: Operation
    renewed: Operation
    timed_out: Operation
    renewed_until_timed_out: Operation
    completed_in_time: Operation
    running: str
    """Its retention has passed, but counts from the end that it has not come to."""
    expired: str
    expired_key: dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("server")
    settings: dict[str, Any] = {"housekeeping_interval": "500ms", "cancel_grace": "1h"}
    with serving(directory, f"sqlite:///{directory}/o.db", **settings) as running:
        yield running


@pytest.fixture(scope="module")
def aged(server: ServerProcess) -> Aged:
    client, held = server.client, {"lease": SECOND, "lease_token": TOKEN}
    lapsing = client.started(**held)
    cancelling = client.started(**held, cancel_policy=CancelPolicy.COOPERATIVE)
    client.cancel(cancelling)
    renewed = client.started(lease=LONGER, lease_token=TOKEN)
    timing_out = client.started(timeout=SHORT)
    timing_out_renewed = client.started(timeout=SECOND, lease=LONGER, lease_token=TOKEN)
    completed = client.complete(client.started(timeout=SHORT, **held), lease_token=TOKEN)
    running = client.started(retention=SHORT)
    expired_key = {"idempotency_key": "again", "retention": SHORT, "lease_token": TOKEN}
    expired = client.complete(client.started(**expired_key), lease_token=TOKEN).id

    def is_older_than_its_lease() -> bool:
        if not client.get(timing_out_renewed).done:
            _try_to_renew(client, timing_out_renewed)
        return age(client.renew(renewed, lease_token=TOKEN).operation) > 2.3

    eventually(is_older_than_its_lease)
    return Aged(
        lapsed=ended(client, lapsing),
        lapsed_while_cancelling=ended(client, cancelling),
        renewed=client.get(renewed),
        timed_out=ended(client, timing_out),
        renewed_until_timed_out=ended(client, timing_out_renewed),
        completed_in_time=completed,
        running=running,
        expired=expired,
        expired_key=expired_key,
    )


def _try_to_renew(client: Client, id_: str) -> None:
    try:
        client.renew(id_, lease_token=TOKEN)
    except RpcError as error:
        assert refusal_from(error).reason == "OPERATION_DONE"  # noqa: PT017 - it may also succeed


def test_an_operation_whose_lease_lapses_is_aborted(aged: Aged) -> None:
    assert aged.lapsed.error.code == Code.ABORTED
    assert reason(aged.lapsed) == "LEASE_EXPIRED"


def test_a_lease_lapses_no_earlier_than_its_length(aged: Aged) -> None:
    assert age(aged.lapsed) >= 1


def test_a_producer_that_comes_back_too_late_is_refused(client: Client, aged: Aged) -> None:
    with refused() as refusal:
        client.complete(aged.lapsed.id, lease_token=TOKEN)

    assert refusal.code == StatusCode.FAILED_PRECONDITION
    assert refusal.one(Status).code == Code.ABORTED
    assert client.get(aged.lapsed.id) == aged.lapsed


def test_a_lease_that_is_renewed_outlives_its_length(aged: Aged) -> None:
    assert not aged.renewed.done


def test_a_lease_may_lapse_while_cancelling(aged: Aged) -> None:
    assert aged.lapsed_while_cancelling.error.code == Code.ABORTED


def test_an_operation_that_reaches_its_timeout_has_exceeded_its_deadline(aged: Aged) -> None:
    assert aged.timed_out.error.code == Code.DEADLINE_EXCEEDED
    assert reason(aged.timed_out) == "OPERATION_TIMEOUT"
    assert age(aged.timed_out) >= 0.2


def test_renewing_does_not_put_off_the_timeout(aged: Aged) -> None:
    assert aged.renewed_until_timed_out.error.code == Code.DEADLINE_EXCEEDED


def test_a_completed_operation_neither_lapses_nor_times_out(client: Client, aged: Aged) -> None:
    assert client.get(aged.completed_in_time.id) == aged.completed_in_time


def test_an_operation_is_gone_after_its_retention(client: Client, aged: Aged) -> None:
    assert is_gone(client, aged.expired)


def test_retention_counts_from_the_end(client: Client, aged: Aged) -> None:
    assert not client.get(aged.running).done


def test_a_write_on_an_expired_operation_is_not_found(client: Client, aged: Aged) -> None:
    for write in (client.cancel, client.renew, client.complete):
        with refused() as refusal:
            write(aged.expired)
        assert refusal.code == StatusCode.NOT_FOUND


def test_a_key_is_free_again_after_the_retention(client: Client, aged: Aged) -> None:
    again = client.start(**aged.expired_key)

    assert again.owned
    assert not again.operation.done
    assert again.operation.id == aged.expired
    client.complete(aged.expired, lease_token=TOKEN)
    eventually(lambda: is_gone(client, aged.expired))


@dataclass(frozen=True)
class Overruled:
    """Operations whose producers did not heed a cancel, and what the Cancel answered."""

    client: Client
    cancelling: Operation
    silent: Operation
    renewed: Operation
    kept_by_default: str
    kept_for_long: str


@pytest.fixture(scope="module")
def overruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Overruled]:
    """On a server that gives a cancelled producer little time, and keeps nothing for long."""
    directory = tmp_path_factory.mktemp("impatient")
    settings: dict[str, Any] = {
        "cancel_grace": "300ms",
        "housekeeping_interval": "50ms",
        "retention": "1s",
    }
    cooperative = {"cancel_policy": CancelPolicy.COOPERATIVE, "retention": HOUR}
    with serving(directory, f"sqlite:///{directory}/o.db", **settings) as server:
        client = server.client
        kept_by_default = client.complete(client.started()).id
        kept_for_long = client.complete(client.started(retention=HOUR)).id
        silent = client.started(**cooperative)
        renewed = client.started(**cooperative, lease=HOUR, lease_token=TOKEN)
        cancelling = client.cancel(silent)
        client.cancel(renewed)

        def has_ended() -> bool:
            _try_to_renew(client, renewed)
            return client.get(renewed).done

        eventually(has_ended)
        yield Overruled(
            client,
            cancelling,
            silent=ended(client, silent),
            renewed=client.get(renewed),
            kept_by_default=kept_by_default,
            kept_for_long=kept_for_long,
        )


def test_a_producer_that_ignores_a_cancel_is_overruled_after_the_grace(
    overruled: Overruled,
) -> None:
    cancelled_at = overruled.cancelling.modified_at.ToMicroseconds()

    assert not overruled.cancelling.done
    assert overruled.silent.error == overruled.cancelling.error
    assert overruled.silent.modified_at.ToMicroseconds() - cancelled_at >= 300_000


def test_a_producer_that_is_overruled_is_told_so(overruled: Overruled) -> None:
    with refused() as refusal:
        overruled.client.complete(overruled.silent.id)

    assert refusal.code == StatusCode.FAILED_PRECONDITION
    assert refusal.one(Status).code == Code.CANCELLED


def test_renewing_does_not_prolong_the_grace(overruled: Overruled) -> None:
    assert overruled.renewed.error.code == Code.CANCELLED


def test_the_servers_own_retention_holds_unless_a_start_says_otherwise(
    overruled: Overruled,
) -> None:
    eventually(lambda: is_gone(overruled.client, overruled.kept_by_default))

    assert overruled.client.get(overruled.kept_for_long).done
