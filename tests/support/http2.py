"""HTTP/2 by hand, for headers that no gRPC library would send."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

_HEADERS, _SETTINGS, _DATA = 1, 4, 0
_END_STREAM, _END_HEADERS = 1, 4


def call(address: str, path: str, headers: Mapping[str, bytes], message: bytes) -> bytes:
    """The frames that a server sends until its answer ends. Its header values are not Huffman-coded."""
    host, port = address.rsplit(":", 1)
    fields = {
        ":method": b"POST",
        ":scheme": b"http",
        ":path": path.encode(),
        ":authority": address.encode(),
        "te": b"trailers",
        "content-type": b"application/grpc",
        **headers,
    }
    block = b"".join(b"\0" + _text(name.encode()) + _text(value) for name, value in fields.items())
    body = b"\0" + struct.pack(">I", len(message)) + message
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(_SETTINGS, 0, 0, b"")
            + _frame(_HEADERS, _END_HEADERS, 1, block)
            + _frame(_DATA, _END_STREAM, 1, body)
        )
        received = b""
        with connection.makefile("rb") as answer:
            while True:
                head = answer.read(9)
                assert len(head) == 9, f"the server hung up after {received!r}"
                received += answer.read(int.from_bytes(head[:3], "big"))
                if head[3] == _HEADERS and head[4] & _END_STREAM:
                    return received


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def _text(value: bytes) -> bytes:
    """A string literal of RFC 7541, section 5.2, without Huffman coding."""
    length, prefix = len(value), b""
    if length < 127:
        return bytes([length]) + value
    prefix, length = b"\x7f", length - 127
    while length >= 128:
        prefix, length = prefix + bytes([length % 128 + 128]), length // 128
    return prefix + bytes([length]) + value
