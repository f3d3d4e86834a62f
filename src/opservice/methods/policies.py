"""What each method takes: the one table that says who may call it. What is not in it cannot be served."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from opservice.domain.identity import Right


class Who(Enum):
    """Who may call a method that is about no operation."""

    ANYBODY = "anybody"
    AUTHENTICATED = "whoever has shown who they are"


@dataclass(frozen=True, slots=True)
class Method:
    """`takes` is the right that the caller needs for the operation, or Who may call it at all.

    One that `waits` may last, and is counted apart from the others; a `probe` is answered however busy the
    server is. What is done by those that are `audited` is told to the audit log. The answers of those
    that have `pages` are encoded in slices. A request has `max_bytes` at most; None when it has payloads:
    then --max-message-bytes, which gRPC enforces, and MAX_FIELDS.
    """

    takes: Right | Who
    waits: bool = False
    probe: bool = False
    audited: bool = False
    pages: bool = False
    max_bytes: int | None = 4 << 10

    @property
    def writes(self) -> bool:
        return isinstance(self.takes, Right) and self.takes is not Right.SEE


MAX_FIELDS = 1_000
"""Of a request with payloads, those of the messages in it counted too."""

_SEE = Method(Right.SEE)
_LIST = Method(Right.SEE, pages=True, max_bytes=16 << 10)
_WAIT = Method(Right.SEE, waits=True)
_CANCEL = Method(Right.CANCEL, audited=True)
_DELETE = Method(Right.DELETE, audited=True)
_PRODUCE = Method(Right.PRODUCE, audited=True, max_bytes=None)
_OPEN = Method(Who.ANYBODY)
_REFLECTION = Method(Who.AUTHENTICATED, waits=True, max_bytes=1 << 10)

_SERVICES: dict[str, dict[str, Method]] = {
    "yandex.cloud.operation.OperationService": {"Get": _SEE, "Cancel": _CANCEL},
    "opservice.v1.OperationRecordService": {
        "Get": _SEE,
        "List": _LIST,
        "Wait": _WAIT,
        "Watch": _WAIT,
        "Delete": _DELETE,
    },
    "opservice.v1.ProducerService": {
        "Start": _PRODUCE,
        "Renew": Method(Right.PRODUCE, max_bytes=None),
        "Complete": _PRODUCE,
        "Fail": _PRODUCE,
    },
    "google.longrunning.Operations": {
        "GetOperation": _SEE,
        "ListOperations": _LIST,
        "WaitOperation": _WAIT,
        "CancelOperation": _CANCEL,
        "DeleteOperation": _DELETE,
    },
    # The Yandex SDKs ask it before they have a token; probes have none.
    "yandex.cloud.endpoint.ApiEndpointService": {"Get": _OPEN, "List": _OPEN},
    "grpc.health.v1.Health": {
        "Check": Method(Who.ANYBODY, probe=True),
        "Watch": Method(Who.ANYBODY, waits=True),
    },
    "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo": _REFLECTION},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": _REFLECTION},
}
METHODS = {
    f"/{service}/{name}": method
    for service, methods in _SERVICES.items()
    for name, method in methods.items()
}
"""By what gRPC calls a method."""


def methods_of(service: str) -> list[str]:
    """The names of the methods that are served of a service.

    A library's service may have more in a version of the library that is newer than this table: these
    are not served.
    """
    return list(_SERVICES[service])
