"""opservice.v1.ProducerService."""

from __future__ import annotations

from grpc.aio import ServicerContext

from opservice._proto.opservice.v1.producer_service_pb2 import (
    CompleteRequest,
    FailRequest,
    RenewRequest,
    RenewResponse,
    StartRequest,
    StartResponse,
)
from opservice._proto.opservice.v1.producer_service_pb2_grpc import ProducerServiceServicer
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice.auth.authenticator import current_caller
from opservice.domain.identity import ANYBODY
from opservice.methods.convert import (
    complete_from_pb,
    fail_from_pb,
    operation_to_pb,
    renew_from_pb,
    start_from_pb,
    timestamp_to_pb,
)
from opservice.methods.guard import GuardedStore
from opservice.methods.validation import Limits


class ProducerService(ProducerServiceServicer):
    def __init__(self, store: GuardedStore, limits: Limits, *, hide_error: bool) -> None:
        """With `hide_error` the answer to a Start, which services hand on, has no error until it is done."""
        self._store = store
        self._limits = limits
        self._hide_error = hide_error

    async def Start(
        self, request: StartRequest, context: ServicerContext[StartRequest, StartResponse]
    ) -> StartResponse:
        caller = current_caller()
        identity = ANYBODY if caller is None else caller.identity
        outcome = await self._store.apply(start_from_pb(request, self._limits, identity))
        operation = operation_to_pb(outcome.record, hide_error=self._hide_error)
        return StartResponse(operation=operation, owned=outcome.owned)

    async def Renew(
        self, request: RenewRequest, context: ServicerContext[RenewRequest, RenewResponse]
    ) -> RenewResponse:
        record = (await self._store.apply(renew_from_pb(request, self._limits))).record
        lapses = record.lease_expires_at
        return RenewResponse(
            operation=operation_to_pb(record),
            cancel_requested=record.cancel_requested_at is not None,
            lease_expires_at=None if lapses is None else timestamp_to_pb(lapses),
        )

    async def Complete(
        self, request: CompleteRequest, context: ServicerContext[CompleteRequest, Operation]
    ) -> Operation:
        outcome = await self._store.apply(complete_from_pb(request, self._limits))
        return operation_to_pb(outcome.record)

    async def Fail(
        self, request: FailRequest, context: ServicerContext[FailRequest, Operation]
    ) -> Operation:
        outcome = await self._store.apply(fail_from_pb(request, self._limits))
        return operation_to_pb(outcome.record)
