"""Tokens: fresh for each attempt, never in plaintext beyond this machine, and refused for a while."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.code_pb2 import Code

from opservice_client import CancelPolicy, StartFailed
from support.client import refused
from support.identities import TokenFile, calling_with
from support.producers import KINDS, Kind, Steps, WorkLike, returning
from support.server import ServerProcess, eventually, serving

from .conftest import SETTINGS, Connect


class Rotating:
    """A server whose token is taken away and given back, and the token that its producer has."""

    def __init__(self, server: ServerProcess, tokens: TokenFile, admin: str) -> None:
        self.server = server
        self.admin = admin
        self._tokens = tokens
        self.token = "not yet"

    def fresh(self) -> str:
        return self.token

    def revoke(self) -> None:
        self._tokens.remove("scanner")
        self._reload(is_known=False)

    def grant(self) -> None:
        self.token = self._tokens.add("scanner", "producer:*")
        self._reload(is_known=True)

    def refusals(self, method: str) -> list[dict[str, Any]]:
        return self.server.log(method=f"/opservice.v1.{method}", code="UNAUTHENTICATED")

    def _reload(self, *, is_known: bool) -> None:
        self.server.send_signal(signal.SIGHUP)
        expected = grpc.StatusCode.NOT_FOUND if is_known else grpc.StatusCode.UNAUTHENTICATED

        def is_loaded() -> bool:
            with refused() as refusal:
                calling_with(self.server.channel(), self.token).get("nowhere")
            return refusal.code == expected

        eventually(is_loaded)


@pytest.fixture
def rotating(tmp_path: Path) -> Iterator[Rotating]:
    tokens = TokenFile(tmp_path)
    admin = tokens.add("admin", "admin:*")
    url = f"sqlite:///{tmp_path}/operations.db"
    with serving(tmp_path, url, tokens=tokens.file, **SETTINGS) as server:
        rotating = Rotating(server, tokens, admin)
        rotating.grant()
        yield rotating


@pytest.mark.slow
def test_a_result_outlasts_credentials_that_fail_for_a_while(
    connect: Connect, rotating: Rotating
) -> None:
    def body(work: WorkLike) -> Steps:
        while not go_on.is_set():
            yield
        return "the result of hours"

    go_on = threading.Event()
    producer = connect(rotating.server.address, token=rotating.fresh)
    work = producer.start()
    producer.run(work, body)
    rotating.revoke()
    go_on.set()
    eventually(lambda: rotating.refusals("ProducerService/Complete"))
    rotating.grant()

    eventually(lambda: work.operation.done)
    assert work.operation.HasField("response")


@pytest.mark.slow
def test_a_cancel_is_noticed_after_credentials_failed_for_a_while(
    connect: Connect, rotating: Rotating
) -> None:
    def body(work: WorkLike) -> Steps:
        while not work.cancelled.is_set():
            yield
        return None

    producer = connect(rotating.server.address, token=rotating.fresh)
    old = rotating.token
    rotating.grant()
    work = producer.start(cancel_policy=CancelPolicy.COOPERATIVE)
    rotating.token, new = old, rotating.token
    producer.run(work, body)
    eventually(lambda: rotating.refusals("OperationRecordService/Watch"))
    rotating.token = new
    calling_with(rotating.server.channel(), rotating.admin).cancel(work.id)

    eventually(work.cancelled.is_set)


def test_a_start_that_is_not_authenticated_fails_at_once(
    connect: Connect, server: ServerProcess
) -> None:
    def none() -> str:
        raise OSError("the token service is away")

    with pytest.raises(StartFailed, match="the token service is away") as caught:
        connect(server.address, token=none).start()
    assert caught.value.code == grpc.StatusCode.UNAUTHENTICATED


def test_a_token_that_does_not_come_fails_the_start_in_time(
    connect: Connect, server: ServerProcess
) -> None:
    come = threading.Event()

    def late() -> str:
        come.wait(60)
        return "x"

    producer = connect(server.address, token=late, start_timeout=timedelta(milliseconds=200))
    try:
        with pytest.raises(StartFailed, match="the token could not be had: TimeoutError") as caught:
            producer.start()
        assert not come.is_set()
    finally:
        come.set()
    assert caught.value.code == grpc.StatusCode.UNAUTHENTICATED


def test_a_token_may_be_a_text_a_function_or_a_coroutine_function(
    connect: Connect, server: ServerProcess
) -> None:
    async def token() -> str:
        return "x"

    kinds: list[str | Callable[[], Any]] = ["x", lambda: "x", lambda: token(), token]
    for each in kinds:
        producer = connect(server.address, token=each)
        work = producer.start()
        producer.run(work, returning(None))
        eventually(lambda done=work: done.operation.done)  # type: ignore[misc] # a default has no type
        assert work.operation.error.code == Code.OK


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_token_is_not_sent_in_plaintext_beyond_this_machine(kind: str) -> None:
    with pytest.raises(ValueError, match="plaintext"):
        KINDS[kind]("opservice.example:443", token="secret")


def test_a_token_is_sent_with_tls(connect: Connect) -> None:
    producer: Kind = connect(
        "opservice.example:443", token="secret", credentials=grpc.ssl_channel_credentials()
    )
    assert producer
