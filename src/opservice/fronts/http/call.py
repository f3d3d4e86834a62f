"""One call by HTTP, as the pipeline sees it. A response that is no stream is kept for the end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from opservice.domain.errors import InvalidArgument, Violation
from opservice.fronts.backpressure import UnreadResponses
from opservice.fronts.http.conditions import is_met, matching, preferred_wait, wants_events
from opservice.fronts.http.conversions import Conversions
from opservice.fronts.http.exchange import Exchange, HttpHeaders
from opservice.fronts.http.requests import count_values, merge_path, parse_body, query_to_json
from opservice.fronts.http.streams import MessageStream
from opservice.methods.call import Call, Headers, name_of
from opservice.methods.json_messages import NotJson
from opservice.methods.method_policy import MethodPolicy
from opservice.methods.pages import slices
from opservice.methods.read import poll_seconds
from opservice.methods.registry import Method
from opservice.methods.wire import decoder_of

_TIMES_OF_JSON = 3
"""Many clients write `\\ud83d\\ude00` for the four bytes of a character."""
_ROOM_OF_JSON = 16 << 10
"""What the JSON of a request may have beyond that: names, spaces."""
_BYTES_OF_VALUE = 32
"""Of text that is read in the time of one value of JSON, however short."""
_ENDPOINTS = "yandex.cloud.endpoint.ApiEndpointService"


class Codec:
    """How requests of one method are read, and its responses written, by HTTP."""

    def __init__(
        self,
        method: Method,
        policy: MethodPolicy,
        conversions: Conversions,
        max_message_bytes: int,
    ) -> None:
        self.method = method
        self.policy = policy
        self.conversions = conversions
        self.max_body = _TIMES_OF_JSON * (policy.max_bytes or max_message_bytes) + _ROOM_OF_JSON
        self._decode = decoder_of(method.request, policy)

    def request(
        self, body: bytes, query: bytes, path: dict[str, str], *, takes_body: bool
    ) -> Message:
        """The request's message. Raises MalformedRequest, RequestTooLarge or InvalidArgument."""
        kind = cast("Descriptor", self.method.request.DESCRIPTOR)
        if takes_body:
            value = parse_body(body)
            in_query = query_to_json(query, kind)
            if in_query:
                raise InvalidArgument(
                    [Violation(name, "must be in the body, not in the query") for name in in_query]
                )
        else:
            value = query_to_json(query, kind)
        merge_path(value, path, kind)
        message = self.method.request()
        try:
            self.conversions.json.fill(message, value)
        except NotJson as error:
            raise InvalidArgument([Violation(error.field or "request", str(error))]) from error
        # As bytes it meets the same limits as by gRPC.
        return self._decode(message.SerializeToString())

    async def read(
        self, caller: str, body: bytes, query: bytes, path: dict[str, str], *, takes_body: bool
    ) -> Message:
        """As `request`, when it is the caller's turn."""
        read = partial(self.request, body, query, path, takes_body=takes_body)
        size = max(len(body), len(query), _BYTES_OF_VALUE * count_values(body))
        return await self.conversions.run(size, caller, read)

    async def response(self, message: Message, caller: str) -> bytes:
        """The JSON of a response, when it is the caller's turn. Pages are made in slices."""
        if not self.policy.pages:
            return await self.conversions.to_json(message, caller)
        lists: list[bytes] = []
        page = type(message)()
        for field, value in message.ListFields():
            if not field.is_repeated:
                setattr(page, field.name, value)
            elif field.message_type is None:
                getattr(page, field.name).extend(value)
        shown = self.conversions.json.to_dict(page, with_defaults=True)
        for field, value in message.ListFields():
            if field.is_repeated and field.message_type is not None:
                records: list[bytes] = []
                for index, slice_ in enumerate(slices(value)):
                    if index:
                        await asyncio.sleep(0)
                    size = sum(each.ByteSize() for each in slice_)
                    records += await self.conversions.run(size, caller, partial(self._each, slice_))
                del shown[field.json_name]
                lists.append(b'"%s":[%s]' % (field.json_name.encode(), b",".join(records)))
        rest = json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode()[1:-1]
        return b"{" + b",".join(part for part in (*lists, rest) if part) + b"}"

    def _each(self, messages: Sequence[Message]) -> list[bytes]:
        to_json = self.conversions.json.to_json
        return [to_json(each, with_defaults=True) for each in messages]


class HttpCall(Call):
    """A call that came as an HTTP request."""

    front = "http"

    __slots__ = (
        "_codec",
        "_exchange",
        "_path",
        "_read",
        "_seconds",
        "_takes_body",
        "_trailers",
        "_unread",
        "_watching",
        "answer",
        "etag",
        "gone",
        "is_other_version",
        "sent_headers",
        "stream",
        "wait",
    )

    def __init__(
        self,
        exchange: Exchange,
        codec: Codec,
        path: dict[str, str],
        unread: UnreadResponses,
        *,
        takes_body: bool,
        wait: int,
        seconds: float | None,
    ) -> None:
        """`wait` is the seconds for which a read is to wait, `seconds` those until the caller's deadline."""
        super().__init__(exchange.peer, exchange.headers)
        self._exchange = exchange
        self._codec = codec
        self._path = path
        self._takes_body = takes_body
        self._unread = unread
        self._watching: asyncio.Task[None] | None = None
        self._read: Callable[[], None] | None = None
        self._seconds = seconds
        self.wait = wait
        self.gone = False
        """Whether the client has left before the end."""
        self.answer: bytes | None = None
        """The JSON of the response; None for a client that has this version already."""
        self.etag: str | None = None
        self.is_other_version = False
        """Whether the client has asked for another version than there is."""
        self.sent_headers: list[tuple[str, str]] = []
        self.stream: MessageStream | None = None
        if codec.method.streams_responses:
            self.stream = MessageStream(
                exchange, codec.conversions, as_events=wants_events(exchange.header("accept"))
            )

    @property
    def _name(self) -> str:
        """What the caller is known by."""
        return name_of(self.caller, self.peer)

    def certificate(self) -> bytes | None:
        return self._exchange.certificate

    def seconds_left(self) -> float | None:
        spent = time.perf_counter() - self.started
        return None if self._seconds is None else self._seconds - spent

    def seconds_to_wait(self) -> float:
        left = self.seconds_left()
        return self.wait if left is None else min(self.wait, max(0.0, left / 2))

    def wait_for_turn(self) -> Awaitable[None]:
        return self._unread.wait_for_turn(self.peer)

    async def receive(self) -> Message:
        exchange, codec = self._exchange, self._codec
        body = await exchange.body(codec.max_body if self._takes_body else 0)
        if self._codec.policy.waits or self.wait:
            self._watching = asyncio.create_task(self._watch(asyncio.current_task()))
        message = await codec.read(
            self._name, body, exchange.query, self._path, takes_body=self._takes_body
        )
        if self.stream is not None:
            self.stream.resume(message, exchange.header("last-event-id"))
        return message

    async def send(self, response: Message) -> None:
        if self.stream is not None:
            headers = self._headers_of_stream()
            name, is_last = self._name, self.is_last
            await self.stream.send(response, headers, self._unread, name, is_last=is_last)
            return
        if self.found is not None:
            self.etag = f'"{self.found.revision}"'
        self.is_other_version = not is_met(self._exchange.header("if-match"), self.etag)
        if self.is_other_version:
            return
        if self.etag is not None:
            held = matching(self._exchange.header("if-none-match"), self.etag)
            if held is not None:
                self.etag = held
                return
        answer = await self._codec.response(response, self._name)
        self._read = self._unread.add(self.peer, len(answer))
        self.answer = answer

    def was_read(self) -> None:
        """The answer, if there was one: it does not count as unread any more."""
        if self._read is not None:
            self._read()
            self._read = None

    async def send_headers(self, headers: Headers) -> None:
        self.sent_headers += [(name, str(value)) for name, value in headers]

    def set_trailers(self, trailers: Headers) -> None:
        """Nothing: what gRPC tells in trailers is in a header here."""

    def forget_payloads(self) -> None:
        super().forget_payloads()
        self.answer = None

    def headers_of_answer(self) -> HttpHeaders:
        """Those of a response that is no stream."""
        headers = [
            ("content-type", "application/json"),
            # Whoever keeps it asks each time whether it is still so, and nobody keeps it for others.
            ("cache-control", "private, no-cache" if self.etag else "no-store"),
            *self.sent_headers,
        ]
        if self.etag:
            headers.append(("etag", self.etag))
        if self.found is not None and not self.found.done:
            headers.append(("retry-after", str(poll_seconds(self.found, time.time()))))
        if self.wait:
            headers.append(("preference-applied", f"wait={self.wait}"))
        return headers

    def _headers_of_stream(self) -> HttpHeaders:
        return [*self.sent_headers, ("x-request-id", self.request_id)]

    async def close(self) -> None:
        """Nothing is watched any more."""
        if self.stream is not None:
            self.stream.close()
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching

    async def _watch(self, work: asyncio.Task[Any] | None) -> None:
        """Ends the call when the client leaves."""
        await self._exchange.gone()
        self.gone = True
        if work is not None:
            work.cancel()


def wait_of(exchange: Exchange, method: Method) -> int:
    """The seconds that a client prefers to wait for the end of the operation that they read."""
    is_read = method.name in {"Get", "GetOperation"} and method.service != _ENDPOINTS
    return preferred_wait(exchange.header("prefer")) if is_read else 0
