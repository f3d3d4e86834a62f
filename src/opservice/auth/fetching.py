"""One HTTP GET for the keys that decide who gets in, with bounds on time and size.

It uses no proxy but the given one, and ignores `http_proxy` and similar variables. It follows no redirect. It
checks certificates against the system's trust store, or that of SSL_CERT_FILE.
"""

from __future__ import annotations

import io
import socket
import ssl
import time
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, cast
from urllib.parse import urlsplit

from opservice.common.addresses import is_loopback

_OK = 200


class FetchFailed(Exception):
    """The fetch failed. The message says why."""


def fetch(url: str, *, seconds: float, most_bytes: int, proxy: str = "") -> bytes:
    """Returns the body. Raises FetchFailed.

    Blocks for `seconds` at most, not counting the lookup of names. `proxy` is an http URL; it is used for
    https (CONNECT), but never for loopback.
    """
    deadline = time.monotonic() + seconds
    try:
        connection = _connection(url, proxy, deadline)
        try:
            return _get(connection, url, most_bytes)
        finally:
            connection.close()
    except TimeoutError as error:
        raise FetchFailed(f"no answer within {seconds:g} s") from error
    except (OSError, HTTPException, ValueError) as error:
        raise FetchFailed(str(error) or type(error).__name__) from error


def _connection(url: str, proxy: str, deadline: float) -> HTTPConnection:
    """Not connected yet."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    seconds = _left(deadline)
    if parts.scheme != "https":
        connection = HTTPConnection(host, port, timeout=seconds)
    elif proxy and not is_loopback(host):
        via = urlsplit(proxy)
        connection = _tls(via.hostname or "", via.port, seconds)
        connection.set_tunnel(host, port)
    else:
        connection = _tls(host, port, seconds)
    # For the answer of a proxy as well.
    connection.response_class = cast("type[HTTPResponse]", partial(_response, deadline))
    return connection


def _tls(host: str, port: int | None, seconds: float) -> HTTPConnection:
    return HTTPSConnection(host, port, timeout=seconds, context=ssl.create_default_context())


def _get(connection: HTTPConnection, url: str, most_bytes: int) -> bytes:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("GET", target, headers={"Accept": "application/json"})
    with connection.getresponse() as response:
        if response.status != _OK:
            raise FetchFailed(f"the answer is HTTP {response.status}")
        body = response.read(most_bytes + 1)
    if len(body) > most_bytes:
        raise FetchFailed(f"the answer is longer than {most_bytes} bytes")
    return body


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Until(io.RawIOBase):
    """Reads from a socket until the deadline. A timeout of the socket would hold for each read alone."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._socket = connection
        self._raw = connection.makefile("rb", buffering=0)
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(_left(self._deadline))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Received:
    """The part of a socket that HTTPResponse uses."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw

    def makefile(self, _mode: str) -> Any:
        return io.BufferedReader(self._raw)


def _response(deadline: float, connection: socket.socket, **options: Any) -> HTTPResponse:
    received = cast("socket.socket", _Received(_Until(connection, deadline)))
    return HTTPResponse(received, **options)
