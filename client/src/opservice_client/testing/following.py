"""BatchWatch of the server in memory: what one stream tells, and where another one continues it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from sys import maxsize

from google.protobuf.empty_pb2 import Empty

from opservice_client._proto.opservice.v1.operation_record_service_pb2 import (
    BatchWatchOperationRecordsRequest,
    OperationRecordEvent,
)
from opservice_client.testing.changes import Change
from opservice_client.testing.checks import SECOND, Check
from opservice_client.testing.operations import Operations
from opservice_client.testing.refusals import Refusal, invalid, outdated, stopping, unimplemented
from opservice_client.testing.tokens import place_of, token_of

_RESUMABLE = 480 * SECOND
"""Microseconds for which a token can be used."""
_ENDED = maxsize
"""The position of a stream by ids that was told all that it ever will be."""


class Following:
    """One stream. How far it was told is the number of a change, and that is what its tokens have."""

    def __init__(self, operations: Operations, request: BatchWatchOperationRecordsRequest) -> None:
        """Raises a Refusal when the request is wrong, or asks to continue what cannot be continued."""
        self._operations = operations
        self._parent = request.parent
        self._ids = dict.fromkeys(request.operation_ids) if request.operation_ids else None
        """Those that are not done and not removed, as far as was told; None when it follows a parent."""
        self._asked = ("BatchWatch", request.parent, *(self._ids or ()))
        self._position = _checked(request, self._asked, operations.changes.clock())
        """Until there all changes were told; None before all was told that there is."""
        if self._position == _ENDED:
            self._ids = {}
        self._told: dict[str, int] = {}
        """How far the changes of each operation were told."""

    async def events(self, repeat_seconds: float) -> AsyncGenerator[OperationRecordEvent, None]:
        """What there is, or has changed since the stream that it continues, then what becomes of it.

        After what there is, and then every `repeat_seconds`, it tells that it is caught up. Raises a Refusal
        when the server stops.
        """
        changes, loop = self._operations.changes, asyncio.get_running_loop()
        position = changes.clock()
        for id_ in self._first():
            event = self._event(id_)
            if self._position is None or event.removed_id:
                yield event
        if self._position is None:
            self._position = position
        due = loop.time()
        while not self._operations.is_stopping:
            changed, position = changes.next, changes.clock()
            for change in changes.after(self._position):
                self._position = change.number
                if self._is_news(change):
                    yield self._event(change.operation_id)
            self._position = position
            if loop.time() >= due:
                yield OperationRecordEvent(caught_up=Empty(), resume_token=self._token())
                due = loop.time() + repeat_seconds
            if self._ids is not None and not self._ids:
                return
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(changed.wait(), due - loop.time())
        raise stopping()

    def _first(self) -> list[str]:
        """Operations to look at first: all that there are, or its ids of which nothing has changed."""
        if self._ids is None:
            if self._position is not None:
                return []
            return [entry.record.operation.id for entry in self._operations.of_parent(self._parent)]
        position = self._position
        return [
            id_
            for id_ in self._ids
            if position is None or self._operations.changes.last_of(id_) <= position
        ]

    def _is_news(self, change: Change) -> bool:
        if self._ids is None:
            is_followed = self._parent in ("-", change.parent)
        else:
            is_followed = change.operation_id in self._ids
        return is_followed and self._told.get(change.operation_id, 0) < change.number

    def _event(self, operation_id: str) -> OperationRecordEvent:
        """The operation as it is now."""
        event = OperationRecordEvent()
        self._told[operation_id] = self._operations.changes.last_of(operation_id)
        try:
            record = self._operations.find(operation_id).record
        except Refusal:
            event.removed_id = operation_id
        else:
            event.record.CopyFrom(record)
        if self._ids is not None and (event.removed_id or event.record.operation.done):
            del self._ids[operation_id]
        event.resume_token = self._token()
        return event

    def _token(self) -> str:
        if self._position is None:
            return ""
        position = _ENDED if self._ids == {} else self._position
        return token_of(str(position), self._asked)


def _checked(
    request: BatchWatchOperationRecordsRequest, asked: tuple[str, ...], clock: int
) -> int | None:
    """How far the stream was told that the request continues, None when it continues none."""
    check = Check()
    if request.operation_ids:
        check.ids(request.operation_ids)
        for field, value in (("parent", request.parent), ("filter", request.filter)):
            if value:
                check.wrong(field, "must be empty when there are operation_ids")
    elif request.filter:
        raise unimplemented("filters")
    elif request.parent != "-":
        check.parent(request.parent)
    check.finish()
    if not request.resume_token:
        return None
    place = place_of(request.resume_token, asked)
    if place is None:
        raise invalid([("resume_token", "is not one that this server gave for this request")])
    position = int(place)
    if position != _ENDED and not clock - _RESUMABLE <= position <= clock:
        raise outdated()
    return position
