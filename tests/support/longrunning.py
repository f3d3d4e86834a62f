"""A client of google.longrunning.Operations, without any help of Google's."""

from __future__ import annotations

from typing import Any

from google.longrunning.operations_pb2_grpc import OperationsStub
from google.longrunning.operations_proto_pb2 import (
    CancelOperationRequest,
    DeleteOperationRequest,
    GetOperationRequest,
    ListOperationsRequest,
    ListOperationsResponse,
    Operation,
    WaitOperationRequest,
)
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty

from support.client import Client


class Operations:
    """The methods, with fields of requests as arguments."""

    def __init__(self, client: Client) -> None:
        self._stub: Any = OperationsStub(client.channel)  # type: ignore[no-untyped-call] # has no stub

    def get(self, name: str) -> Operation:
        operation: Operation = self._stub.GetOperation(GetOperationRequest(name=name))
        return operation

    def list(self, name: str = "", **fields: Any) -> ListOperationsResponse:
        request = ListOperationsRequest(name=name, **fields)
        response: ListOperationsResponse = self._stub.ListOperations(request)
        return response

    def cancel(self, name: str) -> Empty:
        empty: Empty = self._stub.CancelOperation(CancelOperationRequest(name=name))
        return empty

    def delete(self, name: str) -> Empty:
        empty: Empty = self._stub.DeleteOperation(DeleteOperationRequest(name=name))
        return empty

    def wait(self, name: str, timeout: Duration | None = None) -> Operation:
        request = WaitOperationRequest(name=name, timeout=timeout)
        operation: Operation = self._stub.WaitOperation(request)
        return operation
