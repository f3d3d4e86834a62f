"""SIGHUP has the TLS files read again: for new connections, and only when they are of use."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

import grpc
import pytest
from grpc import StatusCode

from support.certificates import Authority, Pair
from support.client import Client, open_channel, refused
from support.server import ServerProcess, eventually, serving

TAKEN = "new connections use the new TLS files"
KEPT = "SIGHUP: the previous content stays in use"

BOTH = pytest.mark.parametrize(
    "workers", [pytest.param(1, id="alone"), pytest.param(2, id="two", marks=pytest.mark.slow)]
)


def settings_of(pair: Pair) -> dict[str, Any]:
    return {"tls_cert": pair.certificate, "tls_key": pair.key}


def shown_certificate(address: str) -> bytes:
    """What a new connection is shown, in DER."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port))) as plain,
        context.wrap_socket(plain) as connection,
    ):
        certificate = connection.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


def shown_certificates(server: ServerProcess) -> set[bytes]:
    """By all workers: so many connections hardly ever lead to one."""
    return {shown_certificate(server.address) for _ in range(16)}


def der(certificate: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.read_text())


def hang_up(server: ServerProcess, event: str, times: int = 1) -> dict[str, Any]:
    """Sends SIGHUP, and returns what is logged of it, once it is logged so many times."""
    wanted = len(server.log(event=event)) + times
    server.send_signal(signal.SIGHUP)
    eventually(lambda: len(server.log(event=event)) == wanted)
    line: dict[str, Any] = server.log(event=event)[-1]
    return line


class Callers:
    """One who keeps a connection, and some who make one for every call, until the block ends."""

    def __init__(self, address: str, trusted: bytes) -> None:
        self._address, self._trusted = address, trusted
        self._end = Event()
        self.refusals: list[grpc.RpcError] = []
        self.calls = 0

    def __enter__(self) -> Self:
        kinds = [self._on_one_connection, self._on_new_ones, self._on_new_ones]
        self._threads = [Thread(target=kind) for kind in kinds]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _on_one_connection(self) -> None:
        with open_channel(self._address, self._trusted) as channel:
            while not self._end.is_set():
                self._call(channel)

    def _on_new_ones(self) -> None:
        while not self._end.is_set():
            with open_channel(self._address, self._trusted) as channel:
                self._call(channel)

    def _call(self, channel: grpc.Channel) -> None:
        try:
            Client(channel).started()
            self.calls += 1
        except grpc.RpcError as error:
            self.refusals.append(error)


@pytest.fixture
def pair(authority: Authority) -> Iterator[Pair]:
    made = authority.issue("reload")
    yield made
    made.certificate.unlink()
    made.key.unlink()


def renew(authority: Authority, pair: Pair) -> None:
    """A new certificate and key in the same files, as certbot or cert-manager leave them."""
    renewed = authority.issue("renewed")
    renewed.key.replace(pair.key)
    renewed.certificate.replace(pair.certificate)


@pytest.mark.slow
@pytest.mark.parametrize(
    "workers", [pytest.param(1, id="alone"), pytest.param(2, id="two", marks=pytest.mark.slow)]
)
def test_new_connections_get_the_new_certificate_and_no_call_is_refused(
    tmp_path: Path, sqlite_url: str, authority: Authority, pair: Pair, workers: int
) -> None:
    trusted = authority.certificate.read_bytes()
    with serving(tmp_path, sqlite_url, workers=workers, **settings_of(pair)) as server:
        with Callers(server.address, trusted) as callers:
            for _ in range(2):
                assert shown_certificates(server) == {der(pair.certificate)}
                made = callers.calls
                eventually(lambda n=made: callers.calls > n + 10)  # type: ignore[misc] # mypy does not see the default's type
                renew(authority, pair)

                line = hang_up(server, TAKEN, workers)

                digest = hashlib.sha256(der(pair.certificate)).hexdigest()
                assert line["certificate_sha256"].replace(":", "").lower() == digest
            assert shown_certificates(server) == {der(pair.certificate)}

        assert callers.refusals == []
        assert server.terminate() == 0


@BOTH
def test_files_that_do_not_fit_leave_the_old_ones_in_use(
    tmp_path: Path, sqlite_url: str, authority: Authority, pair: Pair, workers: int
) -> None:
    old, key = der(pair.certificate), pair.key.read_bytes()
    with serving(tmp_path, sqlite_url, workers=workers, **settings_of(pair)) as server:
        authority.issue("another").key.replace(pair.key)
        line = hang_up(server, KEPT)
        assert line["level"] == "error"
        assert line["of"] == "TLS files"
        assert "the TLS key does not belong to the certificate" in line["cause"]
        assert shown_certificates(server) == {old}

        pair.key.unlink()
        assert "No such file or directory" in hang_up(server, KEPT)["cause"]
        assert shown_certificates(server) == {old}

        pair.key.write_bytes(key)
        renew(authority, pair)
        hang_up(server, TAKEN, workers)
        assert shown_certificates(server) == {der(pair.certificate)}


@pytest.mark.slow
def test_a_worker_that_is_replaced_gets_the_files_that_were_good(
    tmp_path: Path, sqlite_url: str, authority: Authority, pair: Pair
) -> None:
    with serving(tmp_path, sqlite_url, workers=2, **settings_of(pair)) as server:
        renew(authority, pair)
        hang_up(server, TAKEN, 2)
        new = der(pair.certificate)
        pair.certificate.write_text("half of a certifi")
        hang_up(server, KEPT)

        os.kill(server.log(event="started a worker", worker=1)[0]["pid"], signal.SIGKILL)
        eventually(lambda: len(server.log(event="serving", logger="opservice.server")) == 3)

        assert shown_certificates(server) == {new}


@BOTH
def test_client_certificates_are_checked_by_the_new_authority(
    tmp_path: Path, sqlite_url: str, authority: Authority, pair: Pair, workers: int
) -> None:
    old, new = (Authority(tmp_path, name) for name in ("old", "new"))
    accepted = tmp_path / "clients.pem"
    accepted.write_bytes(old.certificate.read_bytes())
    trusted = authority.certificate.read_bytes()
    identities = [
        (each.key.read_bytes(), each.certificate.read_bytes())
        for each in (old.issue("of-old"), new.issue("of-new"))
    ]
    settings = {**settings_of(pair), "tls_client_ca": accepted, "workers": workers}
    with (
        serving(tmp_path, sqlite_url, **settings) as server,
        open_channel(server.address, trusted, *identities[0]) as before,
    ):
        id_ = Client(before).started()
        accepted.write_bytes(new.certificate.read_bytes())
        hang_up(server, TAKEN, workers)

        for _ in range(12):
            with open_channel(server.address, trusted, *identities[1]) as channel:
                assert Client(channel).get(id_).id == id_
        with open_channel(server.address, trusted, *identities[0]) as late, refused() as refusal:
            Client(late).get(id_)
        assert refusal.code == StatusCode.UNAVAILABLE
        assert Client(before).get(id_).id == id_  # it was let in before
