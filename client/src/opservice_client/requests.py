"""What a producer says, in the words of ProducerService."""

from __future__ import annotations

import difflib
import secrets
import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Protocol, TypedDict

from opservice_client._proto.opservice.v1.operation_record_pb2 import CancelPolicy, Progress
from opservice_client._proto.opservice.v1.producer_service_pb2 import StartRequest
from opservice_client.connection import DEFAULT_LEASE
from opservice_client.payloads import Encoder, encode, pack


class CallContext(Protocol):
    """What is needed of a servicer's context, be it of grpc or of grpc.aio."""

    def invocation_metadata(self) -> Any: ...


class StartOptions(TypedDict, total=False):
    """What `start` takes: the fields of StartRequest, whose limits producer_service.proto states."""

    description: str
    """For people, 256 characters at most."""
    metadata: Any
    """What the operation works on: a protobuf message, a dict, or what the producer's `encode` takes."""
    parent: str
    """The collection that holds it, such as folders/b1g…"""
    method: str
    """The full name of the method that it answers."""
    created_by: str
    """On whose behalf it is started, 64 characters at most."""
    cancel_policy: CancelPolicy.ValueType
    """What Cancel does: IMMEDIATE unless given, COOPERATIVE or UNSUPPORTED."""
    lease: timedelta
    """How long the server waits for a sign of life, 1 s to 24 h; 60 s unless given."""
    timeout: timedelta
    """How long the operation may run in all; without end unless given."""
    retention: timedelta
    """How long it is kept once it is done; 30 days unless given."""
    idempotency_key: str
    """Makes a repeated start lead to the same operation; 128 characters at most."""
    id_prefix: str
    """The first 3 characters of its id."""
    labels: Mapping[str, str]
    """By which operations can be filtered: 16 at most; keys are `[a-z][a-z0-9_.-]{0,62}`.

    Values have 63 characters at most.
    """
    context: CallContext
    """Takes the caller's `idempotency-key` header, unless `idempotency_key` is given.

    And their `traceparent`, unless OpenTelemetry has a current span, which then is the operation's trace.

    Keys of different users are told apart by `created_by`: give that too. A repeated request must then
    be the same in every field, `metadata` included: derive the ids of what is being made from
    `idempotency_key(context)`, the user and the request.
    """


def start_request(options: StartOptions, encode: Encoder = encode) -> StartRequest:
    """With an idempotency key in any case: it makes a Start whose answer is lost safe to repeat.

    Raises TypeError for an option that there is not, and for one of a wrong type.
    """
    for option in options:
        if option not in StartOptions.__annotations__:
            close = difflib.get_close_matches(option, StartOptions.__annotations__, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"start() has no option {option!r}{hint}")
    fields: dict[str, Any] = {"lease": DEFAULT_LEASE, **options}
    context = fields.pop("context", None)
    key = fields.pop("idempotency_key", "") or (idempotency_key(context) if context else "")
    for option in ("lease", "timeout", "retention"):
        if not isinstance(fields.get(option, DEFAULT_LEASE), timedelta):
            raise TypeError(f"{option} must be a timedelta, not {type(fields[option]).__name__}")
    if (metadata := fields.pop("metadata", None)) is not None:
        fields["metadata"] = pack(metadata, encode)
    return StartRequest(
        idempotency_key=key or str(uuid.uuid4()),
        lease_token=secrets.token_urlsafe(24),
        **fields,
    )


def idempotency_key(context: CallContext) -> str:
    """The caller's `idempotency-key` header, or an empty string."""
    metadata: Mapping[str, Any] = dict(context.invocation_metadata() or ())
    key = metadata.get("idempotency-key", "")
    return key if isinstance(key, str) else ""


def copied(progress: Progress) -> Progress:
    """Raises TypeError when it is no Progress."""
    copy = Progress()
    copy.CopyFrom(progress)
    return copy
