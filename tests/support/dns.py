"""A name server, which a gRPC target names: dns://SERVER/HOST:PORT."""

from __future__ import annotations

import asyncio
import socket
import struct
from types import TracebackType
from typing import Self, cast

_A = 1
_ANSWERS = 0x8180  # a response without an error, and recursion as it was asked for


class NameServer(asyncio.DatagramProtocol):
    """Answers each question for IPv4 addresses with `addresses`, whatever the name, and others with none.

    It belongs to the event loop that entered it.
    """

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.asked = 0
        self.address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
        # After 12 bytes: the name as it is until a zero byte, the type, the class.
        end_of_name = data.index(0, 12) + 1
        (kind,) = struct.unpack_from("!H", data, end_of_name)
        addresses = self.addresses if kind == _A else []
        self.asked += kind == _A
        head = data[:2] + struct.pack("!HHHHH", _ANSWERS, 1, len(addresses), 0, 0)
        # Each record has the name by reference to byte 12, and may be kept for 0 s.
        record = b"\xc0\x0c" + struct.pack("!HHIH", _A, 1, 0, 4)
        records = b"".join(record + socket.inet_aton(address) for address in addresses)
        self._transport.sendto(head + data[12 : end_of_name + 4] + records, source)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        host, port = self._transport.get_extra_info("sockname")
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._transport.close()
