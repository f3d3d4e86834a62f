"""Responses of a method that streams: server-sent events, or one line of JSON for each message.

Events: https://html.spec.whatwg.org/multipage/server-sent-events.html. The id of an event is what a client
that connects again sends as `Last-Event-ID`, which browsers do by themselves: the record's revision, or the
resume token. 204 tells them to stay away, once there is nothing more to come.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from google.rpc.status_pb2 import Status

from opservice.domain.errors import InvalidArgument, Violation
from opservice.fronts.backpressure import UnreadResponses
from opservice.fronts.http.conversions import Conversions
from opservice.fronts.http.exchange import Exchange, HttpHeaders
from opservice.fronts.http.statuses import error_to_json
from opservice.methods.call import ClientGone

HEARTBEAT_SECONDS = 15.0
FAILURE_EVENT = "failure"
"""The name of the event that tells the error which ends a stream. `error` is what browsers call their own."""

_NO_EVENT_ID = Violation("Last-Event-ID", "is not the id of an event of this stream")
_HEARTBEAT = b": still there\n\n"


class MessageStream:
    """The response to one call."""

    def __init__(self, exchange: Exchange, conversions: Conversions, *, as_events: bool) -> None:
        self._exchange = exchange
        self._conversions = conversions
        self._as_events = as_events
        self._known = 0
        """The revision that the client has."""
        self._is_continued = False
        """Whether the client has followed before, and has told which event it received last."""
        self._beating: asyncio.Task[None] | None = None
        self._sent_at = 0.0

    @property
    def started(self) -> bool:
        """Whether anything was sent."""
        return self._exchange.started

    def resume(self, request: Any, last_event_id: str | None) -> None:
        """Goes on after the event that the client has received last. Raises InvalidArgument."""
        if not last_event_id or not self._as_events:
            return
        if "resume_token" in request.DESCRIPTOR.fields_by_name:
            # It is later than what the URL has: browsers come back with the URL that they began with.
            request.resume_token = last_event_id
            self._is_continued = True
        elif last_event_id.isdecimal() and len(last_event_id) < 20:
            self._known = int(last_event_id)
        else:
            raise InvalidArgument([_NO_EVENT_ID])

    async def send(
        self,
        message: Any,
        headers: HttpHeaders,
        unread: UnreadResponses,
        caller: str,
        *,
        is_last: bool,
    ) -> None:
        """Sends a message when it is the caller's turn, unless the client has it.

        Raises ServerBusy or ClientGone.
        """
        if is_last and self._is_continued and not self.started:
            return  # it says no more than that there is nothing more to come
        id_ = _event_id(message)
        if self._as_events and id_.isdecimal():
            revision = int(id_)
            if revision < self._known and not self.started:
                self._known = 0  # another operation has the id now: a revision never goes back
            if revision <= self._known:
                if not (self.started or message.operation.done):
                    await self._start(headers)  # a proxy takes silence for a failure
                return
            self._known = revision
        line = await self._conversions.to_json(message, caller)
        with unread.written(self._exchange.peer, len(line)):
            if not self.started:
                await self._start(headers)
            if self._as_events:
                await self._write(b"id: %s\ndata: %s\n\n" % (id_.encode(), line))
            else:
                await self._write(line + b"\n")

    async def end(self, status: Status | None, headers: HttpHeaders) -> None:
        """Ends the response that has started, or one to which there is nothing to say."""
        if not self.started:
            await self._exchange.respond(204, headers, b"")
            return
        if status is not None:
            said = error_to_json(status, is_yandex=False)
            if self._as_events:
                said = b"event: %s\ndata: %s\n" % (FAILURE_EVENT.encode(), said)
            await self._write(said + b"\n")
        await self._exchange.finish()

    def close(self) -> None:
        """No heartbeat is sent any more."""
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None  # else they keep each other, and wait for garbage collection

    async def _start(self, headers: HttpHeaders) -> None:
        kind = "text/event-stream" if self._as_events else "application/x-ndjson"
        await self._exchange.start(
            200,
            [
                ("content-type", kind),
                ("cache-control", "no-store"),
                ("x-accel-buffering", "no"),  # nginx would keep events back until it has many
                *headers,
            ],
        )
        if self._as_events:
            self._beating = asyncio.create_task(self._beat())

    async def _write(self, part: bytes) -> None:
        self._sent_at = asyncio.get_running_loop().time()
        await self._exchange.write(part)

    async def _beat(self) -> None:
        with suppress(ClientGone):  # who watches the connection ends the call
            await self._keep_beating()

    async def _keep_beating(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            pause = self._sent_at + HEARTBEAT_SECONDS - loop.time()
            if pause > 0:
                await asyncio.sleep(pause)
            else:
                await self._write(_HEARTBEAT)


def _event_id(message: Any) -> str:
    fields = message.DESCRIPTOR.fields_by_name
    if "resume_token" in fields:
        token: str = message.resume_token
        return token
    return str(message.revision) if "revision" in fields else ""
