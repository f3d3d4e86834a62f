"""The calls that a work makes for its operation."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import timedelta

from google.protobuf.any_pb2 import Any as AnyPayload
from google.rpc.status_pb2 import Status

from opservice_client._proto.opservice.v1.operation_record_pb2 import OperationRecord, Progress
from opservice_client._proto.opservice.v1.producer_service_pb2 import (
    CompleteRequest,
    FailRequest,
    RenewRequest,
    RenewResponse,
)
from opservice_client._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice_client._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from opservice_client.connection import Connection, Method, attempt_seconds
from opservice_client.retries import is_transient_for_results, is_transient_for_work
from opservice_client.stubs import Request
from opservice_client.traces import Trace

Outcome = AnyPayload | Status


class OperationCalls:
    """Renew, Get and Watch of one operation, and its end. All raise AioRpcError, as Connection's do.

    The end is tried again for `result_timeout`, and all else for as long as the `lease`.
    """

    def __init__(
        self,
        connection: Connection,
        operation_id: str,
        token: str,
        lease: timedelta,
        result_timeout: timedelta,
    ) -> None:
        self._connection = connection
        self._id = operation_id
        self._token = token
        self._lease = lease
        self._result_timeout = result_timeout

    async def end(self, outcome: Outcome, metadata: AnyPayload | None, trace: Trace) -> Operation:
        """Fails it with a status, or completes it with a response."""
        if isinstance(outcome, Status):
            fail = FailRequest(
                operation_id=self._id, lease_token=self._token, error=outcome, metadata=metadata
            )
            return await self._give(lambda stubs: stubs.fail, fail, trace)
        complete = CompleteRequest(
            operation_id=self._id, lease_token=self._token, response=outcome, metadata=metadata
        )
        return await self._give(lambda stubs: stubs.complete, complete, trace)

    async def renew(
        self, progress: Progress | None, metadata: AnyPayload | None, trace: Trace
    ) -> RenewResponse:
        """Renews the lease, and reports."""
        return await self._connection.call(
            lambda stubs: stubs.renew,
            RenewRequest(
                operation_id=self._id,
                lease_token=self._token,
                progress=progress,
                metadata=metadata,
            ),
            within=self._lease,
            attempt=attempt_seconds(self._lease),
            transient=is_transient_for_work,
            trace=trace,
        )

    async def get(self, trace: Trace) -> Operation:
        return await self._connection.call(
            lambda stubs: stubs.get,
            GetOperationRequest(operation_id=self._id),
            within=self._lease,
            attempt=attempt_seconds(self._lease),
            transient=is_transient_for_work,
            trace=trace,
        )

    def watch(self) -> AsyncGenerator[OperationRecord, None]:
        """The operation as it becomes."""
        return self._connection.watch(self._id)

    async def _give(
        self, method: Method[Request, Operation], request: Request, trace: Trace
    ) -> Operation:
        return await self._connection.call(
            method,
            request,
            within=self._result_timeout,
            attempt=attempt_seconds(self._lease),
            transient=is_transient_for_results,
            trace=trace,
        )
