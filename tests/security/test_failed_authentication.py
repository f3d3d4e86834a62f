"""Bad credentials cost their address: not those who are known, and not the audit log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from opservice._proto.yandex.cloud.operation.operation_service_pb2 import (
    CancelOperationRequest,
    GetOperationRequest,
)
from opservice.methods.audit import LINES_A_SECOND
from opservice.methods.pipeline import MAX_HEADERS
from security.calls import OF_NOTHING, REFLECTION, PendingCall
from support.client import Client, Refusal, refusal_from, refused
from support.fixtures import held_up_writes
from support.identities import Issuer, bearer, calling_with, with_another_signature
from support.server import ServerProcess, eventually, serving
from support.tools import stable_port

CALLS = 200


@dataclass(frozen=True)
class Site:
    server: ServerProcess
    issuer: Issuer

    def client(self, token: str) -> Client:
        return calling_with(self.server.client.channel, token)

    def refusals(self, token: str, calls_at_once: int = CALLS) -> list[Refusal]:
        method = self.client(token).operations.Get
        request = GetOperationRequest(operation_id="none")
        calls = [method.future(request) for _ in range(calls_at_once)]
        return [refusal_from(cast("grpc.RpcError", call.exception())) for call in calls]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("failures")
    issuer = Issuer(directory)
    settings = {**issuer.settings, "failed_auth_rate": 1}
    with serving(directory, f"sqlite:///{directory}/o.db", **settings) as server:
        yield Site(server, issuer)


def test_bad_credentials_beyond_the_rate_are_refused_unchecked_but_who_is_known_goes_on(
    site: Site,
) -> None:
    known = site.client(site.issuer.token("ann", "admin:*"))
    id_ = known.started()
    bad = with_another_signature(site.issuer.token("eve", "admin:*"))

    refusals = site.refusals(bad)

    limited = [refusal for refusal in refusals if refusal.reason == "TOO_MANY_FAILURES"]
    assert {refusal.reason for refusal in refusals} == {"CREDENTIALS_INVALID", "TOO_MANY_FAILURES"}
    assert len(limited) >= CALLS // 2
    assert {refusal.code for refusal in limited} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all(0 < refusal.retry_seconds <= 1 for refusal in limited)
    assert known.get(id_).id == id_

    # Once a token has come back, who was never seen here gets in again.
    newcomer = site.client(site.issuer.token("bob", "admin:*"))

    def gets_in() -> bool:
        try:
            return newcomer.get(id_).id == id_
        except grpc.RpcError as error:
            if refusal_from(error).reason != "TOO_MANY_FAILURES":
                raise
            return False

    assert eventually(gets_in)


def test_beyond_a_number_of_lines_a_second_refusals_are_summed_up(site: Site) -> None:
    before = len(lines(site.server)), summed(site.server)
    calls = 20 * LINES_A_SECOND

    site.refusals("no-token-at-all", calls)

    all_are_told(site.server, before, calls)


def test_refused_calls_of_reflection_have_fewer_lines(site: Site) -> None:
    before = len(lines(site.server)), summed(site.server)
    metadata = bearer("no-token-at-all")
    channel = site.server.client.channel
    calls = [
        PendingCall(channel, REFLECTION[number % 2], OF_NOTHING[REFLECTION[0]], metadata)
        for number in range(LINES_A_SECOND)
    ]

    for call in calls:
        with refused():
            call.answer()

    all_are_told(site.server, before, LINES_A_SECOND)


@pytest.mark.slow
def test_tokens_that_cannot_be_checked_for_want_of_keys_are_summed_up(
    tmp_path: Path, site: Site
) -> None:
    nobody = f"http://127.0.0.1:{stable_port()}/jwks.json"
    settings = {**site.issuer.settings, "jwks": nobody}
    with serving(tmp_path, f"sqlite:///{tmp_path}/o.db", **settings) as server:
        before = len(lines(server)), summed(server)

        refusals = Site(server, site.issuer).refusals(site.issuer.token("eve"))

        assert {refusal.reason for refusal in refusals} == {"KEYS_UNAVAILABLE"}
        all_are_told(server, before, CALLS)


def test_calls_beyond_the_limit_of_calls_are_summed_up(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/o.db"
    calls = 4 * LINES_A_SECOND
    with serving(tmp_path, database, max_calls=1) as server:
        cancel = CancelOperationRequest(operation_id=server.client.started())
        with held_up_writes(database):
            held = server.client.operations.Cancel.future(cancel)
            method, request = server.client.operations.Get, GetOperationRequest(operation_id="none")
            eventually(lambda: code_of(method.future(request)) == BUSY)
            before = len(lines(server)), summed(server)
            asked = [method.future(request) for _ in range(calls)]
            assert {code_of(each) for each in asked} == {BUSY}
        assert held.result().done

        all_are_told(server, before, calls)


BUSY = grpc.StatusCode.RESOURCE_EXHAUSTED


def code_of(call: grpc.Future[Any]) -> grpc.StatusCode:
    return refusal_from(cast("grpc.RpcError", call.exception())).code


@pytest.mark.parametrize(
    ("method", "headers", "code"),
    [
        ("/yandex.cloud.iam.v1.IamTokenService/Create", 0, grpc.StatusCode.UNIMPLEMENTED),
        (
            "/yandex.cloud.operation.OperationService/Get",
            MAX_HEADERS,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ),
    ],
)
def test_what_is_refused_before_it_is_read_is_summed_up_too(
    site: Site, method: str, headers: int, code: grpc.StatusCode
) -> None:
    before = len(lines(site.server)), summed(site.server)
    calls = 20 * LINES_A_SECOND
    ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = site.server.client.channel.unary_unary(method)
    metadata = tuple((f"x-{number}", "") for number in range(headers))
    asked = [ask.future(b"", metadata=metadata) for _ in range(calls)]

    assert {each.code() for each in asked} == {code}
    all_are_told(site.server, before, calls)


def all_are_told(server: ServerProcess, before: tuple[int, int], calls: int) -> None:
    """Each call by a line of its own or in a sum, and some in one."""

    def all_told() -> bool:
        told = len(lines(server)) - before[0]
        return told + summed(server) - before[1] == calls

    assert eventually(all_told)
    assert summed(server) > before[1]


def lines(server: ServerProcess) -> list[dict[str, object]]:
    found = server.log(logger="opservice.audit", event="call")
    return [line for line in found if line["code"] != "OK"]


def summed(server: ServerProcess) -> int:
    event = "more calls were refused in the last second"
    return sum(line["calls"] for line in server.log(logger="opservice.audit", event=event))
