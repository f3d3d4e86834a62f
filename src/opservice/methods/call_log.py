"""The lines of calls: in the audit log those that it tells of, in the server's log the others.

A line has the method, the code, how long the call took, its request id, where it came from, the operation
and, once that is known, who the caller is.
"""

from __future__ import annotations

import time
from logging import DEBUG, INFO, getLogger

from google.rpc.code_pb2 import Code

from opservice.common.loggers import AUDIT_LOGGER, get_logger
from opservice.common.metrics import REFUSALS
from opservice.domain.errors import OpserviceError, StoreError
from opservice.methods.audit import (
    REFLECTION_LINES_A_SECOND,
    Sums,
    described,
    done_by,
    is_refusal,
)
from opservice.methods.call import Call, address_of
from opservice.methods.method_policy import Access, MethodPolicy
from opservice.methods.status import REASONS, status_of
from opservice.methods.validation import MAX_ID, MAX_NAME

_LOGGED = {"operation_id": MAX_ID, "name": MAX_NAME + MAX_ID}
"""Fields of requests that say which operation is meant, and how many characters of them are logged."""

_CODE_NAMES = {number: name for name, number in Code.items()}
_OK, _CANCELLED, _INTERNAL = int(Code.OK), int(Code.CANCELLED), int(Code.INTERNAL)
"""Looked up once: an enum of protobuf takes a microsecond for it."""

_LOGGER = "opservice.call"
_gate = getLogger(_LOGGER)
log = get_logger(_LOGGER)
audit = get_logger(AUDIT_LOGGER)


class RefusalSums:
    """How often each address was refused; those of reflection are counted apart, and told more rarely."""

    def __init__(self) -> None:
        for reason in REASONS:
            REFUSALS.labels(reason)  # else Prometheus would see no rise with the first
        self.of_calls = Sums(_sum_up)
        self._of_reflection = Sums(_sum_up, REFLECTION_LINES_A_SECOND)

    def of(self, policy: MethodPolicy) -> Sums:
        """Those in which refusals of a method with this policy are counted."""
        reflection = policy.requires is Access.AUTHENTICATED
        return self._of_reflection if reflection else self.of_calls


class CallLog:
    """The lines of one method's calls."""

    def __init__(self, path: str, policy: MethodPolicy, sums: Sums) -> None:
        self._path = path
        self._audited = policy.audited
        self._level = INFO if policy.writes else DEBUG
        self._sums = sums

    def logs_success(self, call: Call) -> bool:
        """Whether a call that succeeds gets a line. That of a read costs nothing unless it is wanted."""
        return self._is_audited(call) or _gate.isEnabledFor(self._level)

    def succeeded(self, call: Call) -> None:
        """To be called when `logs_success`."""
        if self._is_audited(call):
            audit.info("call", **self._line(call, _OK))
        else:
            log.log(self._level, "call", **self._line(call, _OK))

    def cancelled(self, call: Call) -> None:
        """Of a call whose client left, or gave up."""
        if self._is_audited(call):
            audit.info("call", **self._line(call, _CANCELLED))
        elif _gate.isEnabledFor(self._level):
            log.log(self._level, "call", **self._line(call, _CANCELLED))

    def failed(self, call: Call, error: Exception) -> None:
        """Of a call that ends with an error; an unexpected one is logged with its traceback."""
        status = status_of(error)
        code = status.code
        REFUSALS.labels(status.reason).inc()
        told = self._sums.tells(address_of(call.peer), error)
        line = self._line(call, code) if told else {}
        if code == _INTERNAL:
            log.error("call", **line, exc_info=error)
        elif isinstance(error, StoreError):
            log.warning("call", **line, cause=str(error.__cause__ or error))
        if not told:
            pass
        elif self._audited or is_refusal(error, call.known_caller):
            audit.info("call", **line, **described(error))
        elif code != _INTERNAL and not isinstance(error, StoreError):
            log.info("call", **line, **described(error))

    def _is_audited(self, call: Call) -> bool:
        """Also a call for several operations of which some were not there, or hidden."""
        caller = call.known_caller
        return self._audited or (caller is not None and caller.not_found > 0)

    def _line(self, call: Call, code: int) -> dict[str, object]:
        line: dict[str, object] = {
            "method": self._path,
            "code": _CODE_NAMES[code],
            "duration_ms": round((time.perf_counter() - call.started) * 1000, 1),
            "request_id": call.request_id,
            "peer": call.peer,
        }
        for field, limit in _LOGGED.items():
            value = getattr(call.request, field, None)
            if value:
                line[field] = value[:limit]
        return line if call.known_caller is None else line | done_by(call.known_caller)


class EarlyRefusalLog:
    """The lines of calls that are refused before their requests are read: they must cost little."""

    def __init__(self, error: OpserviceError, code: int) -> None:
        self._error = error
        self._count = REFUSALS.labels(status_of(error).reason)
        self._told = {"code": _CODE_NAMES[code], **described(error)}
        self._refused, self._told_at = 0, 0.0

    def refused(self, path: str, sums: Sums, peer: str, in_progress: int) -> None:
        """Tells of a refused call, with the number of calls in progress."""
        self._count.inc()
        if sums.tells(address_of(peer), self._error):
            audit.info("call", method=path, **self._told, peer=peer)
        self._refused += 1
        now = time.monotonic()
        if now > self._told_at + 1:  # once a second, whatever the number of calls
            line = {"reason": str(self._error), "in_progress": in_progress}
            log.warning("refusing calls", **line, refused=self._refused)
            self._refused, self._told_at = 0, now


def _sum_up(address: str, error: str, count: int) -> None:
    line = {"error": error, "peer": address.removeprefix("peer:"), "calls": count}
    audit.info("more calls were refused in the last second", **line)
