"""One call of a method, as the pipeline and the methods see it. Each front has a kind of its own.

The pipeline sets who makes the call. A method reads that, and may send headers before its answer.
"""

from __future__ import annotations

import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, ClassVar, TypeAlias

from google.protobuf.message import Message

from opservice.auth.authenticator import Caller
from opservice.domain.errors import Unauthenticated
from opservice.domain.operation import Record

Headers: TypeAlias = Sequence[tuple[str, Any]]
"""Names in lower case, each with its text, or with its bytes when the name ends with `-bin`."""

REQUEST_ID = "x-request-id"
_REQUEST_ID = re.compile(r"[!-~]{1,128}")


class ClientGone(Exception):
    """Nothing can be sent any more: the client has left, or the server has stopped."""


class Call(ABC):
    """A call, from its arrival to its line in the log.

    `peer` is where it comes from, in gRPC's form: `ipv4:10.0.0.7:50123`, `ipv6:[::1]:50123` or `unix:`.
    A front passes it when the call is made: later there may be nobody to ask.
    """

    front: ClassVar[str]
    """What the call came by."""

    __slots__ = (
        "_request_id",
        "found",
        "headers",
        "is_last",
        "known_caller",
        "peer",
        "request",
        "started",
    )

    def __init__(self, peer: str, headers: Headers) -> None:
        self.started = time.perf_counter()
        self.peer = peer
        self.headers = headers
        self.known_caller: Caller | None = None
        """Who makes the call, once that is known."""
        self.request: Any = None
        """The request, once it was read; None for a stream of requests."""
        self.found: Record | None = None
        """The operation that a method which reads one has found."""
        self.is_last = False
        """Whether a method that streams knows that no response follows the one which it yields now."""
        self._request_id = given_request_id(headers)

    @property
    def caller(self) -> Caller:
        """Who makes the call. Raises Unauthenticated while that is not known."""
        if self.known_caller is None:
            raise Unauthenticated("The caller was not authenticated")
        return self.known_caller

    @property
    def has_request_id(self) -> bool:
        """Whether the caller gave one, or one was made."""
        return self._request_id is not None

    @property
    def request_id(self) -> str:
        """The caller's, if it is 1 to 128 visible characters of ASCII; else a new one."""
        if self._request_id is None:
            self._request_id = str(uuid.uuid4())
        return self._request_id

    def forget_payloads(self) -> None:
        """Lets go of the request and of what was found, which may be large.

        An error waits to be read by the client, who may read nothing.
        """
        self.request = self.found = None
        if self.known_caller is not None:
            self.known_caller.command = self.known_caller.outcome = None

    # What a front knows.

    @abstractmethod
    def certificate(self) -> bytes | None:
        """The certificate that the client showed, as PEM. It was checked when the connection was made."""

    @abstractmethod
    def seconds_left(self) -> float | None:
        """Until the caller's deadline; None when they have none."""

    def seconds_to_wait(self) -> float:
        """How long a method that reads an operation may wait for the operation's end; 0 is not at all."""
        return 0

    @abstractmethod
    def wait_for_turn(self) -> Awaitable[None]:
        """Is over at once, or later for a connection with many unread responses."""

    @abstractmethod
    async def receive(self) -> Message:
        """Reads and decodes the request. Called once, when it is known that the caller may make the call.

        Raises RequestTooLarge or MalformedRequest.
        """

    def requests(self) -> AsyncIterator[Message]:
        """The requests of a method that takes a stream of them. Raises as `receive` does."""
        raise NotImplementedError(f"{type(self).__name__} takes one request")

    @abstractmethod
    async def send(self, response: Message) -> None:
        """Encodes and sends the response, or the next one of a stream.

        Returns when the connection takes more. Raises ServerBusy when too many responses are unread, or
        ClientGone.
        """

    @abstractmethod
    async def send_headers(self, headers: Headers) -> None:
        """Sends headers ahead of the first response. May be called once. Raises ClientGone."""

    @abstractmethod
    def set_trailers(self, trailers: Headers) -> None:
        """What follows the last response. Called once, when the call has succeeded."""


def address_of(peer: str) -> str:
    """Without the port: `peer:ipv4:10.0.0.7`; all callers on a Unix socket are `peer:unix`."""
    return f"peer:{peer.rpartition(':')[0]}"


def name_of(caller: Caller, peer: str) -> str:
    """What a caller is known by: their subject, or else the address that they call from."""
    subject = caller.identity.subject
    return f"subject:{subject}" if subject else address_of(peer)


def given_request_id(headers: Headers) -> str | None:
    """The request id that the caller gave; None without one, or when it is malformed."""
    for name, value in headers:
        if name == REQUEST_ID and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return None
