"""Reflection takes nothing from those who wait for operations, and each question counts as a call."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from threading import Event
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from opservice._proto.opservice.v1.operation_record_service_pb2 import WatchOperationRecordRequest
from opservice.api.admission import MAX_REFLECTIONS_PER_CALLER
from security.calls import REFLECTION
from support.client import refusal_from
from support.identities import Issuer, TokenFile, bearer, calling_with
from support.server import PATIENCE, ServerProcess, eventually, serving

QUESTION = ServerReflectionRequest(list_services="").SerializeToString()


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("issuer"))


def stream(server: ServerProcess, token: str, questions: Iterator[bytes]) -> Any:
    channel: Any = server.client.channel
    return channel.stream_stream(REFLECTION[0])(questions, metadata=bearer(token))


def test_a_caller_has_few_streams_and_they_are_no_waits(
    tmp_path_factory: pytest.TempPathFactory, issuer: Issuer
) -> None:
    directory = tmp_path_factory.mktemp("streams")
    database = f"sqlite:///{directory}/o.db"
    with serving(directory, database, **issuer.settings, max_waits=1) as server:
        token = issuer.token("eve")

        over = Event()

        def held() -> Iterator[bytes]:
            yield QUESTION
            over.wait(PATIENCE)

        calls = []
        for _ in range(MAX_REFLECTIONS_PER_CALLER):
            calls.append(stream(server, token, held()))
            assert next(calls[-1])
        with pytest.raises(grpc.RpcError) as caught:
            next(stream(server, token, held()))
        refusal = refusal_from(caught.value)
        assert refusal.reason == "TOO_MANY_WAITS"
        assert (
            refusal.message == "You wait for or watch 10 streams of reflection, which is the limit"
        )

        ann = calling_with(server.client.channel, issuer.token("ann", "admin:*"))
        assert next(ann.records.Watch(WatchOperationRecordRequest(operation_id=ann.started())))
        over.set()


def test_each_question_of_a_stream_counts_as_a_call(
    tmp_path_factory: pytest.TempPathFactory, issuer: Issuer
) -> None:
    directory = tmp_path_factory.mktemp("questions")
    settings = {**issuer.settings, "rate_limit": 1, "rate_burst": 5}
    with serving(directory, f"sqlite:///{directory}/o.db", **settings) as server:
        call = stream(server, issuer.token("eve"), iter([QUESTION] * 100))

        with pytest.raises(grpc.RpcError) as caught:
            list(call)

        refusal = refusal_from(caught.value)
        assert refusal.reason == "RATE_LIMITED"


def test_a_question_after_the_token_has_gone_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("expiry")
    tokens = TokenFile(directory)
    token = tokens.add("eve", "viewer:*")
    tokens.add("ann", "viewer:*")
    with serving(directory, f"sqlite:///{directory}/o.db", tokens=tokens.file) as server:
        gone = Event()

        def questions() -> Iterator[bytes]:
            yield QUESTION
            assert gone.wait(PATIENCE)
            yield QUESTION

        call = stream(server, token, questions())
        assert next(call)
        tokens.remove("eve")
        server.send_signal(signal.SIGHUP)
        changed = "SIGHUP: the files were read again, what changed is in use"
        assert eventually(lambda: server.log(event=changed))
        gone.set()
        with pytest.raises(grpc.RpcError) as caught:
            next(call)

        assert refusal_from(caught.value).reason == "CREDENTIALS_INVALID"
