"""Reflection takes nothing from those who wait for operations, and each question counts as a call."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from opservice._proto.opservice.v1.operation_record_service_pb2 import WatchOperationRecordRequest
from opservice.auth.authenticator import LEEWAY_SECONDS
from opservice.methods.admission import MAX_REFLECTIONS_PER_CALLER
from security.calls import REFLECTION
from support.client import refusal_from
from support.identities import Issuer, TokenFile, bearer, calling_with
from support.server import PATIENCE, ServerProcess, eventually, serving

QUESTION = ServerReflectionRequest(list_services="").SerializeToString()


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("issuer"))


@pytest.fixture
def over() -> Iterator[Event]:
    """Set when the test is over, so that no thread waits on."""
    event = Event()
    yield event
    event.set()


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
        assert refusal.message == "You have 10 streams of reflection open, which is the limit"

        ann = calling_with(server.client.channel, issuer.token("ann", "admin:*"))
        assert next(ann.records.Watch(WatchOperationRecordRequest(operation_id=ann.started())))
        over.set()


def silent(server: ServerProcess, token: str, over: Event) -> Any:
    """A stream that was answered once, and in which nothing more is asked."""

    def questions() -> Iterator[bytes]:
        yield QUESTION
        over.wait(PATIENCE)

    call = stream(server, token, questions())
    assert next(call)
    return call


def end(call: Any) -> str:
    """Why a stream ends."""
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    return refusal_from(caught.value).reason


def test_a_silent_stream_ends_when_its_token_is_taken_away(tmp_path: Path, over: Event) -> None:
    tokens = TokenFile(tmp_path)
    gone, kept = tokens.add("eve", "viewer:*"), tokens.add("ann", "viewer:*")
    with serving(tmp_path, f"sqlite:///{tmp_path}/o.db", tokens=tokens.file) as server:
        eves = [silent(server, gone, over) for _ in range(MAX_REFLECTIONS_PER_CALLER)]
        anns = silent(server, kept, over)

        tokens.remove("eve")
        server.send_signal(signal.SIGHUP)

        assert {end(call) for call in eves} == {"CREDENTIALS_INVALID"}
        assert anns.is_active()
        anns.cancel()


def test_a_silent_stream_ends_when_its_token_expires(
    tmp_path: Path, issuer: Issuer, over: Event
) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path}/o.db", **issuer.settings) as server:
        for seconds in (3, 10, 30):  # on a busy machine it may expire before it is used
            token = issuer.token("eve", exp=int(time.time()) + seconds - LEEWAY_SECONDS)
            with suppress(grpc.RpcError):
                call = silent(server, token, over)
                break

        assert end(call) == "CREDENTIALS_EXPIRED"


@pytest.mark.parametrize("callers", ["known", "not known"])
def test_a_silent_stream_ends_when_the_server_stops(
    tmp_path: Path, issuer: Issuer, over: Event, callers: str
) -> None:
    settings = issuer.settings if callers == "known" else {}
    with serving(tmp_path, f"sqlite:///{tmp_path}/o.db", drain="1h", **settings) as server:
        call = silent(server, issuer.token("eve"), over)

        server.send_signal(signal.SIGTERM)

        assert end(call) == "SERVER_STOPPING"
        assert server.wait() == 0


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
        changed = "SIGHUP: the files were reloaded, and the changes are in use"
        assert eventually(lambda: server.log(event=changed))
        gone.set()
        with pytest.raises(grpc.RpcError) as caught:
            next(call)

        assert refusal_from(caught.value).reason == "CREDENTIALS_INVALID"
