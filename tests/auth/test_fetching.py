"""Keys are fetched within bounds, and through no proxy that nobody named for it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from opservice.auth import keys
from opservice.auth.fetching import FetchFailed, fetch
from opservice.auth.keys import KeySource, KeysUnreadable, read_keys
from opservice.domain.errors import StartupError
from opservice.domain.operation import SECOND
from opservice.runtime.settings import Settings
from support.certificates import Authority, server_context
from support.identities import make_key, serving_keys
from support.server import PATIENCE

KIB = 1 << 10


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that has `answer` take care of each connection, on a thread of its own."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

        Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


class Drip:
    """Sends a byte of a header, or of a body, now and then and never comes to an end."""

    def __init__(self, begin: bytes) -> None:
        self._begin = begin
        self.hung_up = Event()

    def __call__(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(self._begin)
            while True:
                connection.sendall(b"x")
                self.hung_up.wait(0.02)
        self.hung_up.set()


DRIPS = {
    "a header": b"HTTP/1.1 200 OK\r\nX-Long: ",
    "a body": b"HTTP/1.1 200 OK\r\n\r\n",
    "a body of a known length": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    "a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n",
}


@pytest.mark.parametrize("begin", DRIPS.values(), ids=DRIPS)
def test_a_server_that_drips_is_left_at_the_deadline(begin: bytes) -> None:
    drip = Drip(begin)
    with listening(drip) as port:
        with pytest.raises(FetchFailed, match=r"no answer within 0\.3 s"):
            fetch(f"http://127.0.0.1:{port}/", seconds=0.3, most_bytes=KIB * KIB)

        assert drip.hung_up.wait(PATIENCE)


def test_a_body_that_is_too_long_is_refused() -> None:
    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                connection.sendall(b" " * KIB)

    with listening(answer) as port, pytest.raises(KeysUnreadable, match="longer than 1048576"):
        read_keys(f"http://127.0.0.1:{port}/")


def test_a_file_that_is_too_long_is_refused() -> None:
    with pytest.raises(KeysUnreadable, match="longer than 1048576"):
        read_keys("/dev/zero")


async def test_a_dripping_url_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_FETCH_SECONDS", 0.1)
    with listening(Drip(b"HTTP/1.1 200 OK\r\n\r\n")) as port:
        source = KeySource(f"http://127.0.0.1:{port}/", SECOND, lambda: None)
        for _ in range(3):
            await source.start()

            assert not [each for each in threading.enumerate() if each.name == "keys"]


async def test_a_reading_that_hangs_takes_one_thread_for_all_that_come_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_READ_SECONDS", 0.1)
    asked, go_on = [0], Event()

    def hang(*_: Any) -> Any:
        asked[0] += 1
        go_on.wait(PATIENCE)
        return {}

    monkeypatch.setattr(keys, "read_keys", hang)
    source = KeySource("http://127.0.0.1:1/", SECOND, lambda: None)
    try:
        for _ in range(3):
            await source.start()

        assert asked == [1]
        assert len([each for each in threading.enumerate() if each.name == "keys"]) == 1
    finally:
        go_on.set()


PROXY_VARIABLES = [
    "http_proxy",
    "HTTP_PROXY",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
]


def test_a_proxy_of_the_environment_is_asked_for_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """It could answer with keys of its own."""
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with serving_keys(make_key("of-the-proxy")) as proxy, serving_keys(make_key("good")) as server:
        for name in PROXY_VARIABLES:
            monkeypatch.setenv(name, proxy.url.removesuffix("/jwks.json"))

        assert read_keys(server.url).keys() == {"good"}
        assert proxy.asked == 0


class Tunnel:
    """A proxy that takes CONNECT, and leads to one port whatever it is asked for."""

    def __init__(self, to: int) -> None:
        self._to = to
        self.asked: list[bytes] = []

    def __call__(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self.asked.append(connection.recv(KIB).split(b"\r\n")[0])
            with socket.create_connection(("127.0.0.1", self._to)) as server:
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = Thread(target=_copy, args=(server, connection), daemon=True)
                back.start()
                _copy(connection, server)
                back.join(PATIENCE)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(KIB):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def tls_server(authority: Authority, host: str) -> Iterator[int]:
    context = server_context(authority.issue(host=host))

    def answer(connection: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(KIB)
            secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    with listening(answer) as port:
        yield port


def test_the_proxy_that_is_named_for_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    with tls_server(authority, "id.example") as port:
        tunnel = Tunnel(port)
        with listening(tunnel) as proxy_port:
            proxy = f"http://127.0.0.1:{proxy_port}"

            body = fetch("https://id.example/keys", seconds=PATIENCE, most_bytes=KIB, proxy=proxy)

    assert body == b"hello"
    assert tunnel.asked[0].startswith(b"CONNECT id.example:443 ")


def test_loopback_is_asked_itself_also_when_a_proxy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    with tls_server(authority, "localhost") as port:
        tunnel = Tunnel(port)
        with listening(tunnel) as proxy_port:
            proxy = f"http://127.0.0.1:{proxy_port}"

            body = fetch(
                f"https://localhost:{port}/", seconds=PATIENCE, most_bytes=KIB, proxy=proxy
            )

    assert body == b"hello"
    assert tunnel.asked == []


@pytest.mark.parametrize(
    ("jwks", "proxy", "complaint"),
    [
        ("https://id.example/keys", "https://proxy:1", "expected http://HOST:PORT"),
        ("https://id.example/keys", "http://proxy", "expected http://HOST:PORT"),
        ("https://id.example/keys", "http://me:secret@proxy:1", "expected http://HOST:PORT"),
        ("keys.json", "http://proxy:1", "--jwks-proxy needs --jwks with an https URL"),
        ("", "http://proxy:1", "--jwks-proxy needs --jwks with an https URL"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused(jwks: str, proxy: str, complaint: str) -> None:
    others: dict[str, Any] = {"jwt_issuer": "issuer", "jwt_audience": ("audience",)} if jwks else {}

    with pytest.raises(StartupError, match=complaint) as caught:
        Settings.of(jwks=jwks, jwks_proxy=proxy, **others)

    assert "secret" not in str(caught.value)
