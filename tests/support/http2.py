"""HTTP/2 by hand, for what no gRPC library would send."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = (
    0, 1, 2, 3, 4, 6, 8, 9,
)  # fmt: skip
END_STREAM, END_HEADERS = 1, 4
INITIAL_WINDOW_SIZE = 4

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LARGEST_FRAME = 16_384
"""Of what a peer accepts that has not said otherwise."""


def call(address: str, path: str, headers: Mapping[str, bytes], message: bytes) -> bytes:
    """The frames that a server sends until its answer ends. Its header values are not Huffman-coded."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            PREFACE
            + frame(SETTINGS)
            + request_headers(1, path, headers)
            + frame(DATA, END_STREAM, 1, grpc_message(message))
        )
        received = b""
        with connection.makefile("rb") as answer:
            while True:
                head = answer.read(9)
                assert len(head) == 9, f"the server hung up after {received!r}"
                received += answer.read(int.from_bytes(head[:3], "big"))
                if head[3] == HEADERS and head[4] & END_STREAM:
                    return received


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def setting(identifier: int, value: int) -> bytes:
    return struct.pack(">HI", identifier, value)


def grpc_message(message: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """With a length that is not the message's, if one is given."""
    return struct.pack(">BI", flag, len(message) if length is None else length) + message


def request_headers(
    stream: int, path: str, headers: Mapping[str, bytes] | None = None, flags: int = END_HEADERS
) -> bytes:
    """The HEADERS frame that begins a call."""
    return frame(HEADERS, flags, stream, header_block(path, headers or {}))


def header_block(path: str, headers: Mapping[str, bytes]) -> bytes:
    fields = {
        ":method": b"POST",
        ":scheme": b"http",
        ":path": path.encode(),
        ":authority": b"127.0.0.1",
        "te": b"trailers",
        "content-type": b"application/grpc",
        **headers,
    }
    return b"".join(literal(name, value) for name, value in fields.items())


def literal(name: str, value: bytes, *, indexed: bool = False) -> bytes:
    """A header of RFC 7541, section 6.2; the peer remembers one that is indexed."""
    return (b"\x40" if indexed else b"\0") + _text(name.encode()) + _text(value)


def _text(value: bytes) -> bytes:
    """A string literal of RFC 7541, section 5.2, without Huffman coding."""
    length, prefix = len(value), b""
    if length < 127:
        return bytes([length]) + value
    prefix, length = b"\x7f", length - 127
    while length >= 128:
        prefix, length = prefix + bytes([length % 128 + 128]), length // 128
    return prefix + bytes([length]) + value
