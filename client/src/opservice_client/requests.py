"""What a producer says, in the words of ProducerService."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Protocol, TypedDict

from google.protobuf.any_pb2 import Any as AnyPayload
from google.protobuf.message import Message

from opservice_client._proto.opservice.v1.operation_record_pb2 import CancelPolicy, Progress
from opservice_client._proto.opservice.v1.producer_service_pb2 import StartRequest

DEFAULT_LEASE = timedelta(seconds=60)
"""Long enough to outlast a database failover; an orphan is noticed as late as this."""


class CallContext(Protocol):
    """What is needed of a servicer's context, be it of grpc or of grpc.aio."""

    def invocation_metadata(self) -> Any: ...


class StartOptions(TypedDict, total=False):
    """The fields of StartRequest as Python has them; see producer_service.proto for the limits."""

    description: str
    metadata: Message
    parent: str
    method: str
    created_by: str
    cancel_policy: CancelPolicy.ValueType
    lease: timedelta
    timeout: timedelta
    retention: timedelta
    idempotency_key: str
    id_prefix: str
    context: CallContext
    """Takes the caller's `idempotency-key` header, unless `idempotency_key` is given.

    Keys of different users are told apart by `created_by`: give that too. A repeated request must then
    be the same in every field, `metadata` included: derive the ids of what is being made from
    `idempotency_key(context)`, the user and the request.
    """


def start_request(options: StartOptions) -> StartRequest:
    """With an idempotency key in any case: it makes a Start whose answer is lost safe to repeat."""
    fields: dict[str, Any] = {"lease": DEFAULT_LEASE, **options}
    context = fields.pop("context", None)
    key = fields.pop("idempotency_key", "") or (idempotency_key(context) if context else "")
    if "metadata" in fields:
        fields["metadata"] = pack(fields["metadata"])
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


def pack(message: Message) -> AnyPayload:
    """A copy of the message in an Any, or of the Any that it is already."""
    payload = AnyPayload()
    if isinstance(message, AnyPayload):
        payload.CopyFrom(message)
    else:
        # Not in any order, lest an equal request look like another one.
        payload.Pack(message, deterministic=True)
    return payload


def copied(progress: Progress) -> Progress:
    """Raises TypeError when it is no Progress."""
    copy = Progress()
    copy.CopyFrom(progress)
    return copy
