"""What every call goes through, whichever front it comes by: authenticate, admit, run, audit.

A front makes a `Call` of its own kind for what arrives, and passes it to the pipeline of the method. In turn

1. a connection with many unread responses waits, when the method allows it;
2. the caller is authenticated, the call counts towards their rate limit (admission.py), and they are
   refused when they may make it for no operation at all;
3. the request is read and decoded: nothing of it is looked at before;
4. the method's handler is run, and each response sent; a call that waits holds a slot
   meanwhile, and such calls begin few at a time, by turns of their callers;
5. what came of it is logged, and its error, if it has one, becomes a status (status.py).

Handlers raise. What they raise becomes a status here, and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, nullcontext, suppress
from dataclasses import replace
from typing import Any

from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from opservice.common import tracing
from opservice.common.metrics import WAITS
from opservice.common.turns import Beginnings
from opservice.domain.errors import IamNotServed, OpserviceError, ServerBusy, TooManyHeaders
from opservice.methods.admission import Admission
from opservice.methods.audit import Sums
from opservice.methods.call import REQUEST_ID, Call, ClientGone, name_of
from opservice.methods.call_log import CallLog, EarlyRefusalLog, RefusalSums
from opservice.methods.lasting import Lasting, until_ended
from opservice.methods.method_policy import METHOD_POLICIES, Access
from opservice.methods.registry import Method
from opservice.methods.status import error_to_pb
from opservice.methods.validation import MAX_ID

MAX_HEADERS = 128
"""Of a call. gRPC limits their bytes, but only for peers that say that they know of the limit."""

IAM = "/yandex.cloud.iam.v1."
"""What Yandex SDKs call when they are given an OAuth token or a key; see OWN_ENDPOINTS."""


class Pipeline:
    """What the calls of all methods share, on all fronts of a process.

    With `max_calls` in progress, further ones are refused before their requests are read. Neither counted
    nor refused are those that only wait, a Wait or any stream, and health checks: a busy server is not ill.
    """

    def __init__(self, admission: Admission, max_calls: int) -> None:
        self.admission = admission
        self.max_calls = max_calls
        self.in_progress = 0
        self.sums = RefusalSums()
        self.busy = EarlyRefusal(ServerBusy(), self)
        self.too_many_headers = EarlyRefusal(
            TooManyHeaders(f"A call may have {MAX_HEADERS} headers at most"), self
        )
        self.beginning = Beginnings()
        """Of calls that wait: clients may ask for thousands at once."""
        self.no_iam = EarlyRefusal(IamNotServed(), self)
        """For the methods whose paths begin with IAM."""

    def of(self, method: Method, *, waits: bool = False) -> MethodPipeline:
        """What calls of a method go through; with `waits`, those whose caller prefers to wait for an end.

        Raises KeyError for a method without a policy: who may call it must be said.
        """
        return MethodPipeline(self, method, waits=waits)

    def refuse_iam(self, peer: str) -> None:
        """Logs that a call to a method of IAM was refused, with `no_iam`."""
        self.no_iam.log(f"{IAM}*", self.sums.of_calls, peer)


class EarlyRefusal:
    """Refuses calls before their requests are read.

    It must cost little: nobody asks who makes such a call, and it has no request id. Most of what one costs
    beyond its front is its line in the audit log.
    """

    def __init__(self, error: OpserviceError, pipeline: Pipeline) -> None:
        self.status = error_to_pb(error, "")
        """What callers are told."""
        self._pipeline = pipeline
        self._log = EarlyRefusalLog(error, self.status.code)

    def log(self, path: str, sums: Sums, peer: str) -> None:
        """Tells of a call that was refused so."""
        self._log.refused(path, sums, peer, self._pipeline.in_progress)


class MethodPipeline:
    """The pipeline as the calls of one method go through it."""

    def __init__(self, shared: Pipeline, method: Method, *, waits: bool = False) -> None:
        self.method = method
        policy = METHOD_POLICIES[method.path]
        self.policy = policy = replace(policy, waits=policy.waits or waits)
        self._handler: Any = method.handler
        self._shared = shared
        self._admission = shared.admission
        self._slots = shared.admission.slots(policy)
        self._lasting = shared.admission.lasting(policy)
        self._is_simple = self._slots is None and not method.streams_responses
        self._is_counted = not (policy.waits or policy.probe)
        # No harm is done when a read begins later, as it is to a lease, or to a server that is probed.
        self._may_begin_later = policy.requires is not Access.OPEN and not policy.writes
        self._waits = WAITS.labels(method.path) if policy.waits else None
        self._sums = shared.sums.of(policy)
        self._log = CallLog(method.path, policy, self._sums)
        self._traces = None if policy.probe else tracing.active()

    def early_refusal(self, headers: int) -> EarlyRefusal | None:
        """What a call with so many headers is to be refused with, before it is run."""
        if headers > MAX_HEADERS:
            return self._shared.too_many_headers
        if self._is_counted and self._shared.in_progress >= self._shared.max_calls:
            return self._shared.busy
        return None

    def refuse(self, refusal: EarlyRefusal, peer: str) -> None:
        """Logs that a call was refused early. The front tells the caller."""
        refusal.log(self.method.path, self._sums, peer)

    async def run(self, call: Call) -> Status | None:
        """Makes the call. Returns the status of the error that it ends with; None when it succeeded.

        Of an unexpected error the status tells nothing but the request id. Raises CancelledError, or
        ClientGone, when the caller does not wait for the end.
        """
        status = await (
            self._run(call) if self._traces is None else self._trace(self._traces, call)
        )
        if status is not None:
            # A client that reads nothing does not read the error either. Until they do, nothing large may be
            # kept: neither payloads nor the error itself, whose traceback leads to them.
            call.forget_payloads()
        return status

    async def _trace(self, traces: tracing.Traces, call: Call) -> Status | None:
        """Makes the call, and its span."""
        method = self.method
        name = method.path.removeprefix("/")
        known = {"rpc__system": "grpc", "rpc__service": method.service, "rpc__method": method.name}
        with traces.call(name, call.headers, **known, opservice__front=call.front) as span:
            code, message = int(Code.CANCELLED), "the client did not wait for the end"
            try:
                status = await self._run(call)
                code, message = (0, "") if status is None else (status.code, status.message)
            finally:
                tracing.end_call(span, code, message, *_traced(call))
        return status

    async def _run(self, call: Call) -> Status | None:
        counted = False
        try:
            if self._may_begin_later:
                await call.wait_for_turn()
            await self._admission.admit(call, self.policy)
            if self._is_counted:
                counted = True
                self._shared.in_progress += 1
            if self._is_simple:
                call.request = await call.receive()
                await call.send(await self._handler(call.request, call))
            else:
                await self._run_long(call)
        except (asyncio.CancelledError, ClientGone):
            self._log.cancelled(call)
            raise
        except Exception as error:  # noqa: BLE001 - every error becomes a status
            self._log.failed(call, error)
            return error_to_pb(error, call.request_id)
        finally:
            if counted:
                self._shared.in_progress -= 1
        logged = self._log.logs_success(call)
        # A read of which nothing is logged gets no id either: trailers are a sixth of a Get's cost.
        if logged or call.has_request_id:
            call.set_trailers(((REQUEST_ID, call.request_id),))
        if logged:
            self._log.succeeded(call)
        return None

    async def _run_long(self, call: Call) -> None:
        """A call that waits, or has streams."""
        method = self.method
        request: Any = None
        if not method.streams_requests:
            request = call.request = await call.receive()
        name = name_of(call.caller, call.peer)
        with self._hold_slot(name), self._counted(), self._last(call) as lasting:
            if self._slots is not None:
                await self._shared.beginning.turn(name)
            if method.streams_requests:
                request = self._admit_each(call, lasting)
            handled = self._handler(request, call)
            if not method.streams_responses:
                await call.send(await handled)
                return
            async with aclosing(handled) as responses:
                with suppress(StopAsyncIteration):
                    while True:
                        # No name is kept for a response: it may be large, and its reader slow.
                        await call.send(await anext(responses))

    def _hold_slot(self, name: str) -> Any:
        """While the caller of that name may wait. Raises TooManyWaits."""
        return nullcontext() if self._slots is None else self._slots.held(name)

    def _counted(self) -> Any:
        """While the call may wait, it is in the metrics."""
        return nullcontext() if self._waits is None else self._waits.track_inprogress()

    def _last(self, call: Call) -> Any:
        """While the call lasts, if there is something that ends it before its time."""
        return nullcontext() if self._lasting is None else self._lasting.of(call.caller)

    async def _admit_each(self, call: Call, lasting: Lasting | None) -> AsyncIterator[Any]:
        """The requests of a stream, of which each is admitted as a call is; for the first the call has been.

        So each counts towards the rate, and none is answered when the credentials are not good any more.
        """
        requests = call.requests() if lasting is None else until_ended(call.requests(), lasting)
        first = True
        async for request in requests:
            if not first:
                await self._admission.admit(call, self.policy)
            first = False
            yield request


def _traced(call: Call) -> tuple[str, str]:
    """The id of the operation that a call was about, and the trace in which that was started."""
    outcome = None if call.known_caller is None else call.known_caller.outcome
    record = call.found if outcome is None else outcome.record
    if record is not None:
        return record.id, record.traceparent
    id_: str = getattr(call.request, "operation_id", "")
    return id_[:MAX_ID], ""
