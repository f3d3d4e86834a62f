"""The grpc.aio server: its options, the address that it listens on, and what is served there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from opservice.common.addresses import cannot_listen, socket_path, split_address

_READ_BYTES = 64 << 10
_ALGORITHMS = "grpc.compression_enabled_algorithms_bitset"
_IDENTITY = 1
"""The bit of requests that are sent as they are."""

UnixSocket = Callable[[Path, Callable[[], object]], AbstractContextManager[None]]
"""Given a path and what binds it, the block during which the socket is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcOptions:
    """The settings of the same names; durations in microseconds.

    With `share_port` other processes of this user may listen on the same port. Without `compression` only
    requests that are not compressed are taken.
    """

    max_message_bytes: int
    max_concurrent_streams: int
    max_connections: int
    max_pending_requests: int
    handshake_timeout: int
    keepalive: int
    compression: bool = True
    share_port: bool = False


def new_server(options: GrpcOptions) -> grpc.aio.Server:
    """A server that serves nothing yet."""
    return grpc.aio.server(options=server_options(options))


def server_options(options: GrpcOptions) -> list[tuple[str, Any]]:
    """As gRPC names them."""
    return [
        *([] if options.compression else [(_ALGORITHMS, _IDENTITY)]),
        # By default a second server would silently share the port.
        ("grpc.so_reuseport", int(options.share_port)),
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_concurrent_streams", options.max_concurrent_streams),
        # By default streams that have ended count too: a fifth of the calls of a client at the limit fails.
        ("grpc.http.overload_protection", 0),
        ("grpc.max_allowed_incoming_connections", options.max_connections),
        ("grpc.server_handshake_timeout_ms", options.handshake_timeout // 1000),
        # By default core refuses calls, at random, once 1,000 wait to be accepted.
        ("grpc.server.max_pending_requests", options.max_pending_requests),
        ("grpc.server.max_pending_requests_hard_limit", 2 * options.max_pending_requests),
        # By default Go clients would be sent away for pinging while idle; and a flood of pings costs core the
        # square of their number when it is about to send their sender away, but little to answer.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        # By default a connection that sends much has megabytes taken, and kept, at a time: SETTINGS frames of
        # 4 MiB keep a thread busy for 0.4 s.
        ("grpc.experimental.tcp_max_read_buffer_size", _READ_BYTES),
        ("grpc.keepalive_time_ms", options.keepalive // 1000),
    ]


def listen(
    server: grpc.aio.Server,
    address: str,
    credentials: grpc.ServerCredentials | None,
    unix_socket: UnixSocket,
    listening: ExitStack,
) -> str:
    """Binds HOST:PORT or unix:PATH, until `listening` ends; without credentials, in plaintext.

    Returns the address with the port that it got: port 0 picks a free one. Raises StartupError.
    """

    def bind() -> int:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)

    path = socket_path(address)
    if path is not None:
        listening.enter_context(unix_socket(path, bind))
        return address
    host, _ = split_address(address)
    try:
        return f"{host}:{bind()}"
    except RuntimeError as error:
        raise cannot_listen(address) from error
