"""A call of the tests' own: what a front would receive, and what it would send, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from google.protobuf.message import Message

from opservice.methods.call import Call, ClientGone, Headers


class ReceivedCall(Call):
    """Has received requests, and keeps what is sent.

    Its client reads as many responses as `reads`; asked for more it leaves, as `leaves` says: the server is
    told by an error, or by the cancelling of the call's task.
    """

    def __init__(
        self,
        *requests: Message,
        peer: str = "ipv4:10.0.0.7:50123",
        headers: Headers = (),
        pem: bytes | None = None,
        deadline: float | None = None,
        reads: int | None = None,
    ) -> None:
        super().__init__(peer, headers)
        self._requests: Sequence[Message] = requests
        self._pem = pem
        self._deadline = deadline
        self._reads = reads
        self.received = 0
        self.waited = False
        self.sent: list[Message] = []
        self.sent_headers: Headers = ()
        self.trailers: Headers = ()
        self.sending = asyncio.Event()
        """Set once a response is sent."""

    def certificate(self) -> bytes | None:
        return self._pem

    def seconds_left(self) -> float | None:
        return self._deadline

    async def wait_for_turn(self) -> None:
        self.waited = True

    async def receive(self) -> Message:
        self.received += 1
        return self._requests[0]

    async def requests(self) -> AsyncIterator[Message]:
        for request in self._requests:
            self.received += 1
            yield request

    async def send(self, response: Message) -> None:
        if self._reads is not None and len(self.sent) >= self._reads:
            raise ClientGone
        self.sent.append(response)
        self.sending.set()

    async def send_headers(self, headers: Headers) -> None:
        self.sent_headers = headers

    def set_trailers(self, trailers: Headers) -> None:
        self.trailers = trailers
