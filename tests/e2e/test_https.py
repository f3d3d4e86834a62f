"""HTTP over TLS, from several processes, and at the end of a server."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import pytest

from e2e.test_tls_reload import BOTH, TAKEN, der, hang_up, renew, settings_of
from support.certificates import Authority, Pair, client_context
from support.server import ServerProcess, eventually, serving

HTTP: dict[str, Any] = {"http_listen": "127.0.0.1:0"}
LARGE = 900_000
EVENTS = {"accept": "text/event-stream"}


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue("https")


def client_of(server: ServerProcess, tls: ssl.SSLContext | None = None) -> httpx.Client:
    """A connection of its own."""
    verify: Any = False if tls is None else tls
    return httpx.Client(base_url=server.http_url, verify=verify, trust_env=False, timeout=60)


def started(client: httpx.Client, **fields: Any) -> str:
    answer = client.post("/v1/producer/operations:start", json=fields)
    assert answer.status_code == 200, answer.text
    id_: str = answer.json()["operation"]["id"]
    return id_


def shown_certificate(client: httpx.Client) -> bytes | None:
    """In DER, by the server on a new connection."""
    with client.stream("GET", "/livez") as answer:
        stream = answer.extensions["network_stream"]
        encrypted: ssl.SSLObject = stream.get_extra_info("ssl_object")
        return encrypted.getpeercert(True)


def test_https_has_the_same_files_and_asks_for_client_certificates(
    tmp_path: Path, sqlite_url: str, authority: Authority, pair: Pair
) -> None:
    stranger = Authority(tmp_path, "stranger").issue("stranger-client")
    settings = {**HTTP, **settings_of(pair), "tls_client_ca": authority.certificate}
    with serving(tmp_path, sqlite_url, **settings) as server:
        assert server.http_url.startswith("https://")
        with client_of(server, client_context(authority, authority.issue("client"))) as known:
            large = {"@type": "a.com/a.B", "value": "A" * LARGE}
            id_ = started(known, metadata=large)
            assert known.get(f"/operations/{id_}").json()["metadata"] == large
            assert shown_certificate(known) == der(pair.certificate)
        for shown in (None, stranger):
            context = client_context(authority, shown)
            with client_of(server, context) as unknown, pytest.raises(httpx.TransportError):
                unknown.get("/livez")
        plain = httpx.URL(server.http_url).copy_with(scheme="http")
        with pytest.raises(httpx.TransportError):
            httpx.get(plain.join("/livez"), trust_env=False)
        old = client_context(authority, authority.issue("old-client"))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with client_of(server, old) as client:
            assert client.get("/livez").status_code == 200


@BOTH
def test_new_connections_get_the_new_certificate_and_the_others_go_on(
    tmp_path: Path, sqlite_url: str, authority: Authority, pair: Pair, workers: int
) -> None:
    context = client_context(authority)
    settings = {**HTTP, **settings_of(pair), "workers": workers}
    with serving(tmp_path, sqlite_url, **settings) as server:
        before = der(pair.certificate)
        with client_of(server, context) as kept:
            id_ = started(kept)
            path = f"/v1/operationRecords/{id_}:watch"
            with kept.stream("GET", path, headers=EVENTS) as watch:
                lines = watch.iter_lines()
                assert next(lines) == "id: 1"
                assert shown_certificate(kept) == before

                renew(authority, pair)
                hang_up(server, TAKEN, workers)

                after = der(pair.certificate)
                assert after != before
                eventually(lambda: certificates(server, context) == {after})
                assert kept.post(f"/operations/{id_}:cancel").status_code == 200
                assert any('"done":true' in line for line in lines)


def certificates(server: ServerProcess, context: ssl.SSLContext) -> set[bytes | None]:
    """Of so many connections that all workers have some."""
    found = set()
    for _ in range(12):
        with client_of(server, context) as client:
            found.add(shown_certificate(client))
    return found


class Answers:
    """Of clients that ask again and again, on connections that they keep, until the block ends."""

    def __init__(self, server: ServerProcess, count: int) -> None:
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]
        self.answered = 0
        self.wrong: list[object] = []

    def _ask(self) -> None:
        with client_of(self._server) as client:
            while not self._stop.is_set():
                try:
                    answer = client.get("/endpoints")
                except httpx.ConnectError:  # there is no server any more
                    return
                except httpx.TransportError as error:
                    # An idle connection may be closed just as a request comes: those may be repeated.
                    if "disconnected without sending" in str(error) or "reset" in str(error):
                        continue
                    self.wrong.append(error)
                    return
                self.answered += 1
                if answer.status_code != 200:
                    self.wrong.append(answer.text)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def in_background(work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Has what it returned once the block has ended."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    yield results
    thread.join()


@BOTH
def test_a_server_that_is_stopped_ends_what_it_has_begun(
    tmp_path: Path, sqlite_url: str, workers: int
) -> None:
    """A Wait, a stream, and a large answer that is read slowly; and nobody else is refused."""
    settings = {**HTTP, "workers": workers, "drain": "30s"}
    with serving(tmp_path, sqlite_url, **settings) as server, client_of(server) as client:
        id_ = started(client)
        parent = "folders/large"
        metadata = {"@type": "a.com/a.B", "value": "A" * LARGE}
        for _ in range(4):
            started(client, parent=parent, metadata=metadata)

        def wait() -> httpx.Response:
            with client_of(server) as waiter:
                return waiter.get(f"/v1/operationRecords/{id_}:wait", params={"timeout": "50s"})

        path = f"/v1/operationRecords/{id_}:watch"
        with (
            Answers(server, 4) as answers,
            in_background(wait) as waited,
            client.stream("GET", path, headers=EVENTS) as watch,
            slow_reader(server, f"/v1/operationRecords?parent={parent}") as download,
        ):
            events = watch.iter_lines()
            assert next(events) == "id: 1"
            eventually(lambda: answers.answered > 20)

            server.send_signal(signal.SIGTERM)

            eventually(lambda: server.log(event="draining"))
            assert any(line == "event: failure" for line in events)
            eventually(lambda: not accepts(server))
            # A worker may have nothing to end. The one that sends the large answer has.
            assert len(server.log(event="stopped")) < workers
            answer = HTTPResponse(download)
            answer.begin()
            assert len(json.loads(answer.read())["operationRecords"]) == 4
        assert answers.wrong == []
        assert [(each.status_code, each.json()["operation"]["done"]) for each in waited] == [
            (200, False)
        ]
        assert server.wait() == 0
        assert server.log(level="error") == []


@contextmanager
def slow_reader(server: ServerProcess, path: str) -> Iterator[socket.socket]:
    """Has asked, and has no room for the answer."""
    place = urlsplit(server.http_url)
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.connect((place.hostname, place.port))
        made.sendall(f"GET {path} HTTP/1.1\r\nHost: {place.netloc}\r\n\r\n".encode())
        made.recv(1, socket.MSG_PEEK)
        yield made


def accepts(server: ServerProcess) -> bool:
    """Whether a new connection is taken."""
    try:
        httpx.get(f"{server.http_url}/livez", trust_env=False, timeout=5)
    except httpx.TransportError as error:
        return not isinstance(error, httpx.ConnectError)
    return True


@pytest.mark.slow
def test_workers_share_the_port_of_http(tmp_path: Path, sqlite_url: str) -> None:
    with serving(tmp_path, sqlite_url, workers=2, log_level="debug", **HTTP) as server:
        ids = set()
        for _ in range(30):
            with client_of(server) as client:
                ids.add(started(client))
        lines = eventually(
            lambda: found if len(found := server.log(event="call")) >= len(ids) else None
        )
        assert {line["worker"] for line in lines} == {1, 2}
        with client_of(server) as client:
            assert all(client.get(f"/operations/{id_}").json()["id"] == id_ for id_ in ids)


@pytest.mark.slow
def test_two_servers_on_one_machine_have_ports_of_their_own(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("one", "two")]
    with serving(tmp_path, urls[0], **HTTP) as one, serving(tmp_path, urls[1], **HTTP) as two:
        assert urlsplit(one.http_url).port != urlsplit(two.http_url).port
        with client_of(one) as first, client_of(two) as second:
            id_ = started(first)
            assert first.get(f"/operations/{id_}").status_code == 200
            assert second.get(f"/operations/{id_}").status_code == 404
