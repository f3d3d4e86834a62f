"""What one caller, or all of them, may have at a time: beyond it a refusal says what, why and until when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import QuotaFailure

from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    ListOperationRecordsRequest,
    WaitOperationRecordRequest,
    WatchOperationRecordRequest,
)
from opservice._proto.yandex.cloud.endpoint.api_endpoint_service_pb2 import ListApiEndpointsRequest
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from security.calls import HEALTH, OF_NOTHING, PendingCall
from support.client import Client, Refusal, refusal_from, refused
from support.fixtures import empty_database
from support.identities import Issuer, calling_with
from support.server import ServerProcess, eventually, serving

HEADER_LIMIT = 8 * 1024


@dataclass(frozen=True)
class Site:
    server: ServerProcess
    issuer: Issuer

    def client(self, who: str) -> Client:
        return calling_with(self.server.client.channel, self.issuer.token(who, "admin:*"))


def is_limit(refusal: Refusal, reason: str, subject: str) -> bool:
    """Says that it is a limit, whose it is, and when to try again, in what clients accept as headers."""
    (violation,) = refusal.one(QuotaFailure).violations
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
    assert (violation.subject, violation.description) == (subject, refusal.message)
    assert 0 < refusal.retry_seconds <= 1
    assert refusal.header_bytes < HEADER_LIMIT
    return True


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One call a second, and up to five at once."""
    directory = tmp_path_factory.mktemp("rated")
    issuer = Issuer(directory)
    settings = {**issuer.settings, "rate_limit": 1, "rate_burst": 5}
    with serving(directory, f"sqlite:///{directory}/operations.db", **settings) as server:
        yield Site(server, issuer)


def burst(method: Any, request: Any, calls_at_once: int = 20) -> list[Refusal]:
    """The refusals among so many calls."""
    calls = [method.future(request) for _ in range(calls_at_once)]
    return [refusal_from(call.exception()) for call in calls if call.exception()]


def test_calls_of_one_caller_beyond_the_rate_are_refused(rated: Site) -> None:
    ann, bob = rated.client("ann"), rated.client("bob")
    id_ = bob.started()

    refusals = burst(ann.operations.Get, GetOperationRequest(operation_id=id_))

    # While they were made, tokens may have come back.
    assert 5 <= len(refusals) <= 15
    assert all(is_limit(refusal, "RATE_LIMITED", "subject:ann") for refusal in refusals)
    assert refusals[0].message == "You make more than 1 calls a second"
    assert bob.get(id_).id == id_
    time.sleep(max(refusal.retry_seconds for refusal in refusals))
    assert ann.get(id_).id == id_


def test_a_caller_has_one_rate_whatever_token_he_shows(rated: Site) -> None:
    id_ = rated.client("bob").started()
    assert burst(rated.client("carol").operations.Get, GetOperationRequest(operation_id=id_))

    with refused() as refusal:
        for _ in range(5):
            rated.client("carol").get(id_)

    assert is_limit(refusal, "RATE_LIMITED", "subject:carol")


def test_callers_who_are_not_asked_who_they_are_are_known_by_their_address(rated: Site) -> None:
    refusals = burst(rated.server.client.endpoints.List, ListApiEndpointsRequest())

    assert refusals
    assert all(is_limit(refusal, "RATE_LIMITED", "peer:ipv4:127.0.0.1") for refusal in refusals)
    # Nor does that take anything from those who show who they are.
    assert rated.client("dora").started()


def test_health_checks_have_no_rate(rated: Site) -> None:
    method = f"{HEALTH}/Check"
    channel = rated.server.client.channel

    for _ in range(20):
        PendingCall(channel, method, OF_NOTHING[method]).answer()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def limited(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("limited")
    issuer = Issuer(directory)
    settings = {
        **issuer.settings,
        "max_waits": 3,
        "max_waits_per_caller": 2,
        "max_running_per_parent": 2,
    }
    with serving(directory, empty_database(request, directory), **settings) as server:
        yield Site(server, issuer)


def watch(client: Client, id_: str) -> Any:
    """A Watch that has begun."""
    call = client.records.Watch(WatchOperationRecordRequest(operation_id=id_))
    next(call)
    return call


def wait(client: Client, id_: str) -> Any:
    request = WaitOperationRecordRequest(operation_id=id_, timeout=Duration(seconds=50))
    return client.records.Wait(request)


def test_one_caller_may_wait_for_so_much_and_all_together_for_so_much(limited: Site) -> None:
    ann, bob, carol = map(limited.client, ("ann", "bob", "carol"))
    id_ = ann.started(parent="folders/waits")
    anns = [watch(ann, id_), watch(ann, id_)]

    with refused() as refusal:
        watch(ann, id_)
    assert is_limit(refusal, "TOO_MANY_WAITS", "subject:ann")
    assert refusal.message == "You have 2 Waits and Watches open, which is the limit"
    with refused() as refusal:
        wait(ann, id_)
    assert is_limit(refusal, "TOO_MANY_WAITS", "subject:ann")

    bobs = watch(bob, id_)
    with refused() as refusal:
        watch(carol, id_)
    assert is_limit(refusal, "TOO_MANY_WAITS", "server")
    assert refusal.message == "The server has as many waiting calls as it allows"
    assert carol.get(id_).id == id_  # what does not wait goes on

    anns.pop().cancel()
    carols = eventually(lambda: once_allowed(carol, id_))
    bobs.cancel()
    anns += [eventually(lambda: once_allowed(ann, id_))]
    ann.complete(id_)
    for call in (*anns, carols):
        assert [record.operation.done for record in call] == [True]


def test_a_caller_has_so_many_lists_read_at_a_time(limited: Site) -> None:
    ann, bob = limited.client("ann"), limited.client("bob")
    request = ListOperationRecordsRequest(parent="-")

    refusals = eventually(lambda: burst(ann.records.List, request, 60))

    assert all(is_limit(refusal, "TOO_MANY_LISTS", "subject:ann") for refusal in refusals)
    assert refusals[0].message == "8 of your lists are being read, which is the limit"
    anns = [ann.records.List.future(request) for _ in range(60)]
    assert burst(bob.records.List, request, 8) == []
    for call in anns:
        call.exception()
    assert burst(ann.records.List, request, 8) == []


def test_where_nobody_is_asked_who_he_is_an_address_has_so_many_lists_read_at_a_time(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path}/o.db") as server:
        request = ListOperationRecordsRequest(parent="-")

        refusals = eventually(lambda: burst(server.client.records.List, request, 60))

        assert all(
            is_limit(refusal, "TOO_MANY_LISTS", "peer:ipv4:127.0.0.1") for refusal in refusals
        )


def once_allowed(client: Client, id_: str) -> Any:
    """A Watch, or None while there are too many."""
    try:
        return watch(client, id_)
    except grpc.RpcError as error:
        if refusal_from(error).reason != "TOO_MANY_WAITS":
            raise
        return None


@pytest.mark.parametrize("parent", ["folders/full", "folders/a/very/deep/" + "x" * 230, ""])
def test_so_many_operations_of_a_parent_run_at_a_time(limited: Site, parent: str) -> None:
    ann = limited.client("ann")
    first = ann.start(parent=parent, idempotency_key="first")
    ann.started(parent=parent)

    with refused() as refusal:
        ann.started(parent=parent)
    assert is_limit(refusal, "TOO_MANY_OPERATIONS", f"parent:{parent}")
    where = parent or "the operations without a parent"
    assert refusal.message == (
        f"The limit on the maximum number of active operations is reached: 2 in {where}"
    )
    with refused() as refusal:  # it is the parent's, not the caller's
        limited.client("bob").started(parent=parent)
    assert refusal.reason == "TOO_MANY_OPERATIONS"

    again = ann.start(parent=parent, idempotency_key="first")  # which starts nothing
    assert again.operation == first.operation
    assert ann.started(parent=f"{parent}/below" if parent else "folders/another")
    ann.cancel(first.operation.id)
    assert ann.started(parent=parent)
