"""google.longrunning.Operations: the same operations under names, as Google's clients know them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from google.longrunning.operations_proto_pb2 import (
    DESCRIPTOR,
    CancelOperationRequest,
    DeleteOperationRequest,
    GetOperationRequest,
    ListOperationsRequest,
    ListOperationsResponse,
    Operation,
    WaitOperationRequest,
)
from google.protobuf.empty_pb2 import Empty

from opservice.auth.authenticator import Caller
from opservice.domain.errors import OperationNotFound
from opservice.domain.operation import Cancel, Delete, Record
from opservice.methods.call import Call
from opservice.methods.convert import (
    CANCELLED,
    name_from_pb,
    operation_to_longrunning_pb,
    parent_from_pb,
)
from opservice.methods.guard import GuardedStore
from opservice.methods.listing import list_page
from opservice.methods.pages import fill
from opservice.methods.read import read
from opservice.methods.registry import Method, methods_of
from opservice.methods.validation import wait_time


class LongrunningService:
    """Operations as Google's clients know them."""

    def __init__(self, store: GuardedStore, max_wait: int) -> None:
        """`max_wait` is microseconds."""
        self._store = store
        self._max_wait = max_wait

    def methods(self) -> tuple[Method, ...]:
        """As they are served."""
        return methods_of(DESCRIPTOR.services_by_name["Operations"], self)

    async def GetOperation(self, request: GetOperationRequest, call: Call) -> Operation:
        parent, id_ = name_from_pb(request.name)
        with _not_found_as(request.name):
            if parent and call.seconds_to_wait():
                await self._get(call.caller, parent, id_)
            record = await read(self._store, call, id_, self._max_wait)
            _check_parent(record, parent)
        return operation_to_longrunning_pb(record)

    async def ListOperations(
        self, request: ListOperationsRequest, call: Call
    ) -> ListOperationsResponse:
        page = await list_page(
            self._store,
            call,
            parent=parent_from_pb(request.name),
            page_size=request.page_size,
            page_token=request.page_token,
            filter_=request.filter,
            parent_field="name",
        )
        response = ListOperationsResponse(next_page_token=page.next_page_token)
        await fill(response.operations, page.records, operation_to_longrunning_pb)
        return response

    async def CancelOperation(self, request: CancelOperationRequest, call: Call) -> Empty:
        caller = call.caller
        with _not_found_as(request.name):
            id_ = await self._id(caller, request.name)
            await self._store.apply(caller, Cancel(id_, CANCELLED, caller.identity.subject))
        return Empty()

    async def DeleteOperation(self, request: DeleteOperationRequest, call: Call) -> Empty:
        with _not_found_as(request.name):
            await self._store.apply(call.caller, Delete(await self._id(call.caller, request.name)))
        return Empty()

    async def WaitOperation(self, request: WaitOperationRequest, call: Call) -> Operation:
        timeout = request.timeout if request.HasField("timeout") else None
        at_most = wait_time(timeout, self._max_wait, call.seconds_left())
        with _not_found_as(request.name):
            id_ = await self._id(call.caller, request.name)
            call.found = await self._store.wait(call.caller, id_, at_most)
        return operation_to_longrunning_pb(call.found)

    async def _id(self, caller: Caller, name: str) -> str:
        """The id in the name, once its parent, if it tells one, is known to be the operation's.

        A parent never changes, so what is done by the id afterwards is done to what was named.
        Raises InvalidArgument or OperationNotFound.
        """
        parent, id_ = name_from_pb(name)
        if parent:
            await self._get(caller, parent, id_)
        return id_

    async def _get(self, caller: Caller, parent: str, id_: str) -> Record:
        """Raises OperationNotFound also when the name tells another parent than the operation's."""
        record = await self._store.get(caller, id_)
        _check_parent(record, parent)
        return record


def _check_parent(record: Record, parent: str) -> None:
    """Raises OperationNotFound for an operation of another parent; an empty one is not asked for."""
    if parent not in ("", record.parent):
        raise OperationNotFound(record.id)


@contextmanager
def _not_found_as(name: str) -> Iterator[None]:
    """What is not found is called as the caller calls it, so that a wrong parent tells nothing."""
    try:
        yield
    except OperationNotFound as error:
        named = OperationNotFound(name, hidden=error.hidden)
        named.operation_id = error.operation_id
        raise named from None
