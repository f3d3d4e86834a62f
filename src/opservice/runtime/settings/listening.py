"""The settings of where the server listens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

from opservice.common.addresses import is_loopback, overlap, socket_path, split_address
from opservice.domain.errors import StartupError
from opservice.runtime.settings.setting import setting

WITH_HTTP = "http"
"""The address of metrics that are served on that of HTTP."""
OFF = "off"
"""The address of a listener that there is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListeningSettings:
    """Where the server listens."""

    TITLE: ClassVar = "Listening"

    listen: str = setting(
        "text",
        "127.0.0.1:50051",
        "Address to listen on for gRPC: HOST:PORT or unix:PATH. Port 0 picks a free port.",
        change_when="other machines connect, or the port is taken.",
        essential=True,
    )
    unix_socket_mode: str = setting(
        "text",
        "0600",
        "Mode of the socket of --listen unix:PATH, in octal. Whoever may write to the socket may connect."
        " It does not protect --http-listen: set that to off, or use authentication.",
        change_when="callers run as another user than the server.",
    )

    http_listen: str = setting(
        "text",
        "127.0.0.1:50080",
        "Address to listen on for HTTP: HOST:PORT, or off for no HTTP. Port 0 picks a free port. REST,"
        " server-sent events, probes and metrics are served there, with the same TLS files.",
        change_when="other machines use HTTP, the port is taken, or nobody uses HTTP (off).",
        essential=True,
    )
    cors_origin: tuple[str, ...] = setting(
        "texts",
        (),
        "Origin whose web pages may call this server by HTTP, such as https://ops.example.com; * is every"
        " origin, which needs authentication by tokens only. May be repeated. The server refuses calls by"
        " pages of other origins.",
        change_when="a web page that another server serves uses this one.",
    )

    metrics_listen: str = setting(
        "text",
        "",
        "Address to listen on for metrics (/metrics, for Prometheus) and probes, in plaintext and without"
        " credentials: HOST:PORT. With http, metrics are on --http-listen, for everybody who can reach it;"
        " with off they are nowhere. Unless this is set, they are on --http-listen if that is on loopback.",
        change_when="Prometheus runs on another machine.",
    )

    def __post_init__(self) -> None:
        if not re.fullmatch(r"0?[0-7]{3}", self.unix_socket_mode):
            raise StartupError(
                f"--unix-socket-mode is {self.unix_socket_mode!r}: expected three octal digits, such as 0660"
            )
        self._check_addresses()
        if self.metrics_listen == WITH_HTTP and not self.serves_http:
            raise StartupError("--metrics-listen http needs --http-listen, which is off")
        for origin in self.cors_origin:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
                raise StartupError(
                    f"--cors-origin {origin}: expected an origin, such as https://ops.example.com, or *"
                )

    def _check_addresses(self) -> None:
        """Raises StartupError when one is malformed, or two cannot both be listened on."""
        addresses: dict[str, str] = {}
        if socket_path(self.listen) is None:
            addresses["--listen"] = self.listen
        if self.serves_http:
            addresses["--http-listen"] = self.http_listen
        if self.has_metrics_listener:
            addresses["--metrics-listen"] = self.metrics_listen
        for flag, address in addresses.items():
            split_address(address, flag)
        for (flag, address), (other_flag, other) in combinations(addresses.items(), 2):
            if overlap(address, other):
                raise StartupError(
                    f"{flag} {address} and {other_flag} {other} are one port: give each a port of its own"
                )

    @property
    def serves_http(self) -> bool:
        """Whether the server listens for HTTP."""
        return self.http_listen != OFF

    @property
    def has_metrics_listener(self) -> bool:
        """Whether metrics have an address of their own."""
        return self.metrics_listen not in {"", OFF, WITH_HTTP}

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.grpc_is_local and self.http_is_local

    @property
    def grpc_is_local(self) -> bool:
        """Whether only this machine can reach the server by gRPC."""
        return socket_path(self.listen) is not None or is_loopback(split_address(self.listen)[0])

    @property
    def http_is_local(self) -> bool:
        """Whether only this machine can reach the server by HTTP, or nobody."""
        return not self.serves_http or is_loopback(split_address(self.http_listen)[0])
