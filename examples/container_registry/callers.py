"""Who calls, and what a repeated call is known by."""

from __future__ import annotations

import base64
import hashlib
import os
from typing import Any

import grpc
from google.protobuf.message import Message

from opservice_client import idempotency_key

Context = grpc.aio.ServicerContext[Any, Any]


async def user_of(context: Context) -> str:
    """Stands for asking IAM who the caller is: an id made of the token, never the token itself."""
    metadata = dict(context.invocation_metadata() or ())
    authorization = str(metadata.get("authorization", ""))
    if not authorization.startswith("Bearer "):
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "An IAM token is required")
    return id_from("aje", authorization.encode())


async def new_id(prefix: str, request: Message, context: Context) -> str:
    """The same for a repeated request, so that all that is told to opservice is the same, too.

    Another request under the same key gets another id; so opservice refuses it as a reuse of the key.
    """
    key = idempotency_key(context)
    if not key:
        return id_from(prefix, os.urandom(32))
    same = request.SerializeToString(deterministic=True)
    return id_from(prefix, b"\0".join(((await user_of(context)).encode(), key.encode(), same)))


def id_from(prefix: str, seed: bytes) -> str:
    digest = base64.b32hexencode(hashlib.sha256(seed).digest()).decode().lower()
    return prefix + digest[:17]
