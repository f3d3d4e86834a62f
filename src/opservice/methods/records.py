"""opservice.v1.OperationRecordService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

from google.protobuf.empty_pb2 import Empty

from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    DESCRIPTOR,
    BatchGetOperationRecordsRequest,
    BatchGetOperationRecordsResponse,
    BatchWatchOperationRecordsRequest,
    DeleteOperationRecordRequest,
    GetOperationRecordRequest,
    ListOperationRecordsRequest,
    ListOperationRecordsResponse,
    OperationRecordEvent,
    WaitOperationRecordRequest,
    WatchOperationRecordRequest,
)
from opservice.domain.operation import SECOND, Delete, Record, Removed
from opservice.methods.call import Call, name_of
from opservice.methods.convert import record_to_pb
from opservice.methods.followed import Followed, ResumeTokens
from opservice.methods.guard import GuardedStore
from opservice.methods.listing import ALL_PARENTS, checked_filter, list_page
from opservice.methods.pages import fill
from opservice.methods.read import read
from opservice.methods.registry import Method, methods_of
from opservice.methods.validation import Check, valid_id, valid_ids, wait_time


class OperationRecordService:
    """Operations with what the server keeps beside them."""

    def __init__(
        self,
        store: GuardedStore,
        *,
        max_wait: int,
        watch_repeat: int,
        resume_window: int,
        hide_error: bool,
    ) -> None:
        """`max_wait`, `watch_repeat` and `resume_window` are microseconds.

        With a `watch_repeat` of 0 a Watch never repeats its record. With `hide_error` an operation shows no
        error until it is done.
        """
        self._to_pb = partial(record_to_pb, hide_error=hide_error)
        self._store = store
        self._max_wait = max_wait
        self._resume_window = resume_window
        self._watch_repeat = watch_repeat / SECOND or None

    def methods(self) -> tuple[Method, ...]:
        """As they are served."""
        return methods_of(DESCRIPTOR.services_by_name["OperationRecordService"], self)

    async def Get(self, request: GetOperationRecordRequest, call: Call) -> OperationRecord:
        id_ = valid_id(request.operation_id)
        return self._to_pb(await read(self._store, call, id_, self._max_wait))

    async def BatchGet(
        self, request: BatchGetOperationRecordsRequest, call: Call
    ) -> BatchGetOperationRecordsResponse:
        ids = valid_ids(request.operation_ids)
        found = await self._store.get_each(call.caller, ids, name_of(call.caller, call.peer))
        missing = [id_ for id_, record in zip(ids, found, strict=True) if record is None]
        response = BatchGetOperationRecordsResponse(not_found_ids=missing)
        await fill(response.operation_records, [*filter(None, found)], self._to_pb)
        return response

    async def Watch(
        self, request: WatchOperationRecordRequest, call: Call
    ) -> AsyncIterator[OperationRecord]:
        following = self._store.follow(
            call.caller, valid_id(request.operation_id), self._watch_repeat
        )
        async with aclosing(following) as records:
            async for record in records:
                call.found = record
                yield self._to_pb(record)

    async def BatchWatch(
        self, request: BatchWatchOperationRecordsRequest, call: Call
    ) -> AsyncIterator[OperationRecordEvent]:
        followed, tokens = self._followed(request, call)
        name = name_of(call.caller, call.peer)
        following = self._store.follow_many(call.caller, followed, name, self._watch_repeat)
        async with aclosing(following) as events:
            async for event in events:
                token = tokens.encode(event.point)
                call.is_last = event.is_last
                match event.news:
                    case Record():
                        yield OperationRecordEvent(
                            record=self._to_pb(event.news), resume_token=token
                        )
                    case Removed(id_):
                        yield OperationRecordEvent(removed_id=id_, resume_token=token)
                    case None:
                        yield OperationRecordEvent(caught_up=Empty(), resume_token=token)

    def _followed(
        self, request: BatchWatchOperationRecordsRequest, call: Call
    ) -> tuple[Followed, ResumeTokens]:
        """What the request asks for. Raises InvalidArgument that names every violation, or WatchOutdated."""
        check = Check()
        ids = list(dict.fromkeys(request.operation_ids))
        parent, filter_ = request.parent, request.filter
        if ids:
            check.ids("operation_ids", request.operation_ids)
            for field, value in (("parent", parent), ("filter", filter_)):
                if value:
                    check.wrong(field, "must be empty when there are operation_ids")
            condition = None
        else:
            if parent != ALL_PARENTS:
                check.parent("parent", parent)
            condition = checked_filter(filter_, check)
        check.finish()
        tokens = ResumeTokens(ids, parent, filter_, call.caller.identity.scope())
        resumed = tokens.decode(request.resume_token) if request.resume_token else None
        if request.resume_token and resumed is None:
            check.wrong("resume_token", "is not one that this server gave for this request")
        check.finish()
        return (
            Followed(
                ids or None,
                None if parent == ALL_PARENTS else parent,
                condition,
                resumed,
                self._resume_window,
            ),
            tokens,
        )

    async def Wait(self, request: WaitOperationRecordRequest, call: Call) -> OperationRecord:
        id_ = valid_id(request.operation_id)
        timeout = request.timeout if request.HasField("timeout") else None
        at_most = wait_time(timeout, self._max_wait, call.seconds_left())
        call.found = await self._store.wait(call.caller, id_, at_most)
        return self._to_pb(call.found)

    async def List(
        self, request: ListOperationRecordsRequest, call: Call
    ) -> ListOperationRecordsResponse:
        page = await list_page(
            self._store,
            call,
            parent=request.parent,
            page_size=request.page_size,
            page_token=request.page_token,
            filter_=request.filter,
        )
        response = ListOperationRecordsResponse(next_page_token=page.next_page_token)
        await fill(response.operation_records, page.records, self._to_pb)
        return response

    async def Delete(self, request: DeleteOperationRecordRequest, call: Call) -> Empty:
        await self._store.apply(call.caller, Delete(valid_id(request.operation_id)))
        return Empty()
