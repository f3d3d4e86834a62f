"""opservice.v1.ProducerService."""

from __future__ import annotations

from opservice._proto.opservice.v1.producer_service_pb2 import (
    DESCRIPTOR,
    CompleteRequest,
    FailRequest,
    RenewRequest,
    RenewResponse,
    StartRequest,
    StartResponse,
)
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice.methods.call import Call
from opservice.methods.convert import (
    complete_from_pb,
    fail_from_pb,
    operation_to_pb,
    record_beside_to_pb,
    renew_from_pb,
    start_from_pb,
    timestamp_to_pb,
)
from opservice.methods.guard import GuardedStore
from opservice.methods.registry import Method, methods_of
from opservice.methods.trace_context import traceparent_of
from opservice.methods.validation import Limits


class ProducerService:
    """For the services that run the work: they start operations, renew their leases and end them."""

    def __init__(self, store: GuardedStore, limits: Limits, *, hide_error: bool) -> None:
        """With `hide_error` the response to a Start shows no error until it is done: services hand it on."""
        self._store = store
        self._limits = limits
        self._hide_error = hide_error

    def methods(self) -> tuple[Method, ...]:
        """As they are served."""
        return methods_of(DESCRIPTOR.services_by_name["ProducerService"], self)

    async def Start(self, request: StartRequest, call: Call) -> StartResponse:
        identity = call.caller.identity
        outcome = await self._store.apply(
            call.caller,
            start_from_pb(request, self._limits, identity, traceparent_of(call.headers)),
        )
        operation = operation_to_pb(outcome.record, hide_error=self._hide_error)
        return StartResponse(
            operation=operation,
            owned=outcome.owned,
            record=record_beside_to_pb(outcome.record),
        )

    async def Renew(self, request: RenewRequest, call: Call) -> RenewResponse:
        record = (await self._store.apply(call.caller, renew_from_pb(request, self._limits))).record
        lapses = record.lease_expires_at
        return RenewResponse(
            operation=operation_to_pb(record),
            cancel_requested=record.cancel_requested_at is not None,
            lease_expires_at=None if lapses is None else timestamp_to_pb(lapses),
        )

    async def Complete(self, request: CompleteRequest, call: Call) -> Operation:
        outcome = await self._store.apply(call.caller, complete_from_pb(request, self._limits))
        return operation_to_pb(outcome.record)

    async def Fail(self, request: FailRequest, call: Call) -> Operation:
        outcome = await self._store.apply(call.caller, fail_from_pb(request, self._limits))
        return operation_to_pb(outcome.record)
