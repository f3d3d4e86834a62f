"""google.longrunning.Operations: the same operations under names, as Google's clients know them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
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
from google.protobuf.message_factory import GetMessageClass
from grpc.aio import Server, ServicerContext

from opservice.domain.errors import OperationNotFound
from opservice.domain.operation import Cancel, Delete
from opservice.methods.convert import (
    CANCELLED,
    name_from_pb,
    operation_to_longrunning_pb,
    parent_from_pb,
)
from opservice.methods.guard import GuardedStore
from opservice.methods.listing import list_page
from opservice.methods.pages import fill
from opservice.methods.policies import methods_of
from opservice.methods.validation import wait_time

_SERVICE = DESCRIPTOR.services_by_name["Operations"]


class Operations:
    """`max_wait` is microseconds."""

    def __init__(self, store: GuardedStore, max_wait: int) -> None:
        self._store = store
        self._max_wait = max_wait

    async def GetOperation(
        self,
        request: GetOperationRequest,
        context: ServicerContext[GetOperationRequest, Operation],
    ) -> Operation:
        parent, id_ = name_from_pb(request.name)
        with _not_found_as(request.name):
            record = await self._store.get(id_)
            if parent not in ("", record.parent):
                raise OperationNotFound(id_)
        return operation_to_longrunning_pb(record)

    async def ListOperations(
        self,
        request: ListOperationsRequest,
        context: ServicerContext[ListOperationsRequest, ListOperationsResponse],
    ) -> ListOperationsResponse:
        page = await list_page(
            self._store,
            context,
            parent=parent_from_pb(request.name),
            page_size=request.page_size,
            page_token=request.page_token,
            filter_=request.filter,
            parent_field="name",
        )
        response = ListOperationsResponse(next_page_token=page.next_page_token)
        await fill(response.operations, page.records, operation_to_longrunning_pb)
        return response

    async def CancelOperation(
        self,
        request: CancelOperationRequest,
        context: ServicerContext[CancelOperationRequest, Empty],
    ) -> Empty:
        with _not_found_as(request.name):
            await self._store.apply(Cancel(await self._id(request.name), CANCELLED))
        return Empty()

    async def DeleteOperation(
        self,
        request: DeleteOperationRequest,
        context: ServicerContext[DeleteOperationRequest, Empty],
    ) -> Empty:
        with _not_found_as(request.name):
            await self._store.apply(Delete(await self._id(request.name)))
        return Empty()

    async def WaitOperation(
        self,
        request: WaitOperationRequest,
        context: ServicerContext[WaitOperationRequest, Operation],
    ) -> Operation:
        timeout = request.timeout if request.HasField("timeout") else None
        at_most = wait_time(timeout, self._max_wait, context.time_remaining())
        with _not_found_as(request.name):
            record = await self._store.wait(await self._id(request.name), at_most)
        return operation_to_longrunning_pb(record)

    async def _id(self, name: str) -> str:
        """The id in the name, once its parent, if it tells one, is known to be the operation's.

        A parent never changes, so what is done by the id afterwards is done to what was named.
        Raises InvalidArgument or OperationNotFound.
        """
        parent, id_ = name_from_pb(name)
        if parent and (await self._store.get(id_)).parent != parent:
            raise OperationNotFound(id_)
        return id_


def add_operations(server: Server, operations: Operations) -> None:
    """Serves these as registered methods, which the code that Google publishes does not know of.

    Only those that are in the table: newer versions of the library may have more.
    """
    methods = map(_SERVICE.methods_by_name.__getitem__, methods_of(_SERVICE.full_name))
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(
            getattr(operations, method.name),
            GetMessageClass(method.input_type).FromString,
            GetMessageClass(method.output_type).SerializeToString,
        )
        for method in methods
    }
    server.add_registered_method_handlers(_SERVICE.full_name, handlers)


@contextmanager
def _not_found_as(name: str) -> Iterator[None]:
    """What is not found is called as the caller calls it, so that a wrong parent tells nothing."""
    try:
        yield
    except OperationNotFound as error:
        named = OperationNotFound(name, hidden=error.hidden)
        named.operation_id = error.operation_id
        raise named from None
