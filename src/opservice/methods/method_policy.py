"""What each method requires: the one table that says who may call it. What is not in it cannot be served."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from opservice.domain.identity import Right


class Access(Enum):
    """Who may call a method that is about no operation."""

    OPEN = "everybody; nobody is asked who they are"
    AUTHENTICATED = "every authenticated caller"


@dataclass(frozen=True, slots=True)
class MethodPolicy:
    """What a method requires of its callers, and how its calls are treated.

    `requires` is the right that the caller needs for the operation, or else who may call at all.
    """

    requires: Right | Access
    waits: bool = False
    """Its calls may last. They are counted apart from others, with limits of their own."""
    probe: bool = False
    """It is answered however busy the server is, and counts towards no rate limit."""
    audited: bool = False
    """The audit log tells of each call, not only of those that are refused."""
    pages: bool = False
    """Its responses may be large, and are encoded in slices."""
    max_bytes: int | None = 4 << 10
    """Of a request. None for one with payloads: then --max-message-bytes and MAX_FIELDS are its limits."""

    @property
    def right(self) -> Right:
        """The right that the call has to have for an operation; SEE for a method that is about none."""
        return self.requires if isinstance(self.requires, Right) else Right.SEE

    @property
    def writes(self) -> bool:
        """Whether its calls may change something."""
        return self.right is not Right.SEE


MAX_FIELDS = 1_000
"""Of a request with payloads, those of the messages in it counted too."""

_SEE = MethodPolicy(Right.SEE)
_LIST = MethodPolicy(Right.SEE, pages=True, max_bytes=16 << 10)
_BATCH_BYTES = 512 << 10
"""1,000 ids of 128 characters, of which each may take 4 bytes."""
_BATCH = MethodPolicy(Right.SEE, pages=True, max_bytes=_BATCH_BYTES)
_WAIT = MethodPolicy(Right.SEE, waits=True)
_BATCH_WATCH = MethodPolicy(Right.SEE, waits=True, max_bytes=_BATCH_BYTES)
_CANCEL = MethodPolicy(Right.CANCEL, audited=True)
_DELETE = MethodPolicy(Right.DELETE, audited=True)
_PRODUCE = MethodPolicy(Right.PRODUCE, audited=True, max_bytes=None)
_RENEW = MethodPolicy(Right.PRODUCE, max_bytes=None)
_OPEN = MethodPolicy(Access.OPEN)
_REFLECTION = MethodPolicy(Access.AUTHENTICATED, waits=True, max_bytes=1 << 10)

_SERVICES: dict[str, dict[str, MethodPolicy]] = {
    "yandex.cloud.operation.OperationService": {"Get": _SEE, "Cancel": _CANCEL},
    "opservice.v1.OperationRecordService": {
        "Get": _SEE,
        "BatchGet": _BATCH,
        "List": _LIST,
        "Wait": _WAIT,
        "Watch": _WAIT,
        "BatchWatch": _BATCH_WATCH,
        "Delete": _DELETE,
    },
    "opservice.v1.ProducerService": {
        "Start": _PRODUCE,
        "Renew": _RENEW,
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
        "Check": MethodPolicy(Access.OPEN, probe=True),
        "Watch": MethodPolicy(Access.OPEN, waits=True),
    },
    "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo": _REFLECTION},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": _REFLECTION},
}
METHOD_POLICIES = {
    f"/{service}/{name}": policy
    for service, policies in _SERVICES.items()
    for name, policy in policies.items()
}
"""By the path by which gRPC calls a method."""


def method_names(service: str) -> list[str]:
    """The names of the methods of a service that are served.

    A library's service may have more in a version of the library that is newer than this table: those are
    not served.
    """
    return list(_SERVICES[service])
