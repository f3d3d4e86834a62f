"""yandex.cloud.operation.OperationService."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import (
    DESCRIPTOR,
    CancelOperationRequest,
    GetOperationRequest,
)
from opservice.domain.operation import SECOND, Cancel, Record
from opservice.methods.call import Call
from opservice.methods.convert import CANCELLED, operation_to_pb
from opservice.methods.guard import GuardedStore
from opservice.methods.registry import Method, methods_of
from opservice.methods.validation import valid_id

POLL_INTERVAL = "x-operation-poll-interval"
_AGE_PER_POLL_SECOND = 20
_MAX_POLL_SECONDS = 10


class OperationService:
    """Operations as the clients of Yandex Cloud know them."""

    def __init__(
        self, store: GuardedStore, *, hide_error: bool, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` returns seconds since the epoch. With `hide_error` an operation shows no error until it is
        done.
        """
        self._store = store
        self._to_pb = partial(operation_to_pb, hide_error=hide_error)
        self._clock = clock

    def methods(self) -> tuple[Method, ...]:
        """As they are served."""
        return methods_of(DESCRIPTOR.services_by_name["OperationService"], self)

    async def Get(self, request: GetOperationRequest, call: Call) -> Operation:
        record = await self._store.get(call.caller, valid_id(request.operation_id))
        if not record.done:
            await call.send_headers(((POLL_INTERVAL, self._poll_seconds(record)),))
        return self._to_pb(record)

    async def Cancel(self, request: CancelOperationRequest, call: Call) -> Operation:
        outcome = await self._store.apply(
            call.caller, Cancel(valid_id(request.operation_id), CANCELLED)
        )
        return self._to_pb(outcome.record)

    def _poll_seconds(self, record: Record) -> str:
        """The older an operation, the less is lost by asking seldom. Yandex Go SDKs obey this."""
        age = self._clock() - record.created_at / SECOND
        return str(max(1, min(_MAX_POLL_SECONDS, int(age / _AGE_PER_POLL_SECOND))))
