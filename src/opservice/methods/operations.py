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
from opservice.domain.operation import Cancel
from opservice.methods.call import Call
from opservice.methods.convert import CANCELLED, operation_to_pb
from opservice.methods.guard import GuardedStore
from opservice.methods.read import poll_seconds, read
from opservice.methods.registry import Method, methods_of
from opservice.methods.validation import valid_id

POLL_INTERVAL = "x-operation-poll-interval"
"""The header in which Yandex's Go SDKs are told when to ask again."""


class OperationService:
    """Operations as the clients of Yandex Cloud know them."""

    def __init__(
        self,
        store: GuardedStore,
        *,
        max_wait: int,
        hide_error: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`max_wait` is microseconds; `clock` returns seconds since the epoch. With
        `hide_error` an operation shows no error until it is done.
        """
        self._store = store
        self._max_wait = max_wait
        self._to_pb = partial(operation_to_pb, hide_error=hide_error)
        self._clock = clock

    def methods(self) -> tuple[Method, ...]:
        """As they are served."""
        return methods_of(DESCRIPTOR.services_by_name["OperationService"], self)

    async def Get(self, request: GetOperationRequest, call: Call) -> Operation:
        record = await read(self._store, call, valid_id(request.operation_id), self._max_wait)
        if not record.done:
            seconds = poll_seconds(record, self._clock())
            await call.send_headers(((POLL_INTERVAL, str(seconds)),))
        return self._to_pb(record)

    async def Cancel(self, request: CancelOperationRequest, call: Call) -> Operation:
        caller = call.caller
        outcome = await self._store.apply(
            caller, Cancel(valid_id(request.operation_id), CANCELLED, caller.identity.subject)
        )
        return self._to_pb(outcome.record)
