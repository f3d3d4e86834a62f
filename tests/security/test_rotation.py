"""Keys of tokens are rotated while calls are made, and no good call is refused."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from security.calls import RECORDS, PendingCall, request_for
from support.client import TOKEN, open_channel, refusal_from, refused
from support.identities import (
    AUDIENCE,
    ISSUER,
    Issuer,
    KeyServer,
    SigningKey,
    bearer,
    calling_with,
    make_key,
    serving_keys,
)
from support.server import ServerProcess, eventually, serving

pytestmark = pytest.mark.slow  # many servers are started, and stopped

ROTATIONS = 3


@dataclass
class Load:
    """Threads that call with the token of the moment, each on a connection of its own."""

    token: str
    refusals: list[str] = field(default_factory=list)
    made: dict[int, str] = field(default_factory=dict)
    """The token of each thread's last call that succeeded."""

    def takes(self, token: str) -> None:
        """Returns once every thread has called with it, and nobody calls with another any more."""
        self.token = token
        eventually(lambda: self.refusals or set(self.made.values()) == {token})


@contextmanager
def under_load(address: str, token: str, id_: str, threads: int = 3) -> Iterator[Load]:
    load, end = Load(token), Event()

    def call(number: int) -> None:
        with open_channel(address) as channel:
            while not end.wait(0.02):
                token = load.token
                client = calling_with(channel, token)
                try:
                    client.get(id_)
                    client.started(parent="folders/load")
                    load.made[number] = token
                except grpc.RpcError as error:
                    load.refusals.append(f"{refusal_from(error)}")

    workers = [Thread(target=call, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    try:
        eventually(lambda: load.refusals or len(load.made) == threads)
        yield load
    finally:
        end.set()
        for worker in workers:
            worker.join()


def rotate(issuer: Issuer, publish: Callable[..., None], server: ServerProcess) -> None:
    """New key beside the old, new tokens at once, then the new key alone."""
    root = issuer.token("root", "admin:*")
    id_ = calling_with(server.client.channel, root).started(parent="folders/load")
    with under_load(server.address, root, id_) as load:
        for number in range(ROTATIONS):
            old = load.token
            new_key = make_key(f"rotated-{number}", "RS256" if number % 2 else "ES256")
            publish(new_key, *issuer.keys)
            new = issuer.token("root", "admin:*", key=new_key)

            load.takes(new)
            publish(new_key)
            server.send_signal(signal.SIGHUP)

            eventually(lambda token=old: refused_with(server, token, id_))  # type: ignore[misc] # mypy does not see the default's type
            issuer.keys = (new_key,)
        load.takes(issuer.token("root", "admin:*"))
        assert load.refusals == []


def refused_with(server: ServerProcess, token: str, id_: str) -> bool:
    try:
        calling_with(server.client.channel, token).get(id_)
    except grpc.RpcError as error:
        return refusal_from(error).code == grpc.StatusCode.UNAUTHENTICATED
    return False


@pytest.mark.parametrize(
    "workers", [pytest.param(1, id="alone"), pytest.param(2, id="two", marks=pytest.mark.slow)]
)
def test_keys_of_a_file_are_rotated_and_no_good_call_is_refused(
    tmp_path: Path, workers: int
) -> None:
    issuer = Issuer(tmp_path)
    database = f"sqlite:///{tmp_path}/operations.db"
    with serving(tmp_path, database, workers=workers, **issuer.settings) as server:
        rotate(issuer, issuer.publish, server)


@pytest.fixture
def key_server() -> Iterator[KeyServer]:
    with serving_keys(make_key("first")) as served:
        yield served


@pytest.fixture
def issuer(tmp_path: Path, key_server: KeyServer) -> Issuer:
    return Issuer(tmp_path, *key_server.keys)


@pytest.fixture
def server(tmp_path: Path, key_server: KeyServer) -> Iterator[ServerProcess]:
    settings = {"jwks": key_server.url, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    with serving(tmp_path, f"sqlite:///{tmp_path}/operations.db", **settings) as running:
        yield running


def test_keys_of_a_url_are_rotated_and_no_good_call_is_refused(
    issuer: Issuer, key_server: KeyServer, server: ServerProcess
) -> None:
    def publish(*keys: SigningKey) -> None:
        key_server.keys = keys

    rotate(issuer, publish, server)


def test_while_the_keys_are_away_the_known_ones_go_on(
    issuer: Issuer, key_server: KeyServer, server: ServerProcess
) -> None:
    old, new = issuer.keys[0], make_key("new")
    id_ = calling_with(server.client.channel, issuer.token("root", "admin:*")).started()
    key_server.available = False
    key_server.keys = (new, old)
    of_new = calling_with(server.client.channel, issuer.token("ann", "viewer:*", key=new))

    with refused() as refusal:
        of_new.get(id_)

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "KEYS_UNAVAILABLE")
    assert refusal.retry_seconds > 0
    assert server.log(event="the previous keys stay in use", level="error")
    assert server.log(logger="opservice.audit", error="KeysUnavailable", code="UNAVAILABLE")
    # A token that was never seen, of a key that is known.
    assert calling_with(server.client.channel, issuer.token("bob", "viewer:*")).get(id_).id == id_

    key_server.available = True
    assert of_new.get(id_).id == id_


def test_a_server_starts_without_its_keys_and_has_them_once_they_are_there(
    tmp_path: Path, issuer: Issuer, key_server: KeyServer
) -> None:
    key_server.available = False
    settings = {"jwks": key_server.url, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    with serving(tmp_path, f"sqlite:///{tmp_path}/operations.db", **settings) as server:
        client = calling_with(server.client.channel, issuer.token("root", "admin:*"))
        with refused() as refusal:
            client.started()
        assert refusal.reason == "KEYS_UNAVAILABLE"
        assert server.log(event="tokens cannot be checked yet", level="error")

        key_server.available = True

        assert client.started()


def test_no_lease_lapses_while_there_are_no_keys_to_know_its_holder_by(
    tmp_path: Path, issuer: Issuer, key_server: KeyServer
) -> None:
    settings = {"jwks": key_server.url, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    quick = {
        "restart_grace": "0s",
        "housekeeping_interval": "100ms",
        "resume_window": "0s",
    }
    url = f"sqlite:///{tmp_path}/operations.db"
    with serving(tmp_path, url, **settings, **quick) as server:
        client = calling_with(server.client.channel, issuer.token("root", "admin:*"))
        client.complete(client.started(retention=Duration(seconds=5)))
        client.started(lease=Duration(seconds=1), lease_token=TOKEN)
        server.kill()
        key_server.available = False
        server.start()

        # It expires after the lease.
        eventually(lambda: server.log(event="swept", sweep="DeleteExpired"))
        assert not server.log(event="swept", sweep="LapseLeases")

        key_server.available = True
        eventually(lambda: server.log(event="swept", sweep="LapseLeases"))


def test_invented_keys_do_not_have_the_source_asked_for_each(
    issuer: Issuer, key_server: KeyServer, server: ServerProcess
) -> None:
    asked = key_server.asked
    method = f"{RECORDS}/Get"
    key = make_key("invented")
    calls = [
        PendingCall(
            server.client.channel,
            method,
            request_for(method, "ops", ""),
            bearer(issuer.token("nobody", key=SigningKey(f"invented-{number}", key.private))),
        )
        for number in range(100)
    ]
    for call in calls:
        with refused() as refusal:
            call.answer()
        assert refusal.code == grpc.StatusCode.UNAUTHENTICATED

    assert 1 <= key_server.asked - asked <= 10
