"""Requests of every method, as bytes: what stands between them and the decoder."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import atheris
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

import opservice.main.server  # noqa: F401 - with it the messages of all methods are known
from opservice.domain.errors import MalformedRequest, RequestTooLarge
from opservice.methods.method_policy import MAX_FIELDS, METHOD_POLICIES
from opservice.methods.wire import decoder_of, has_more_fields
from shapes import encoded

_GROUP = 3


def request_of(path: str) -> Descriptor:
    _, service, method = path.split("/")
    # v1 of reflection is v1alpha under another name, see fronts/grpc/reflection.py.
    service = service.replace("reflection.v1.", "reflection.v1alpha.")
    return Default().FindServiceByName(service).methods_by_name[method].input_type


REQUESTS = {path: request_of(path) for path in METHOD_POLICIES}


def fuzz_decoding(data: bytes) -> None:
    """What a method takes keeps to its bounds, and the fields that it has were counted before.

    The bytes have at least the fields of the message that is made of them; and as a client of ours would
    write them, with each field once and none that is unknown, exactly those.
    """
    provider = atheris.FuzzedDataProvider(data)
    path = provider.PickValueInList(list(METHOD_POLICIES))
    kind = REQUESTS[path]
    if provider.ConsumeBool():
        request = encoded(provider, kind)
    else:
        request = provider.ConsumeBytes(provider.remaining_bytes())
    decode, most = GetMessageClass(kind).FromString, METHOD_POLICIES[path].max_bytes
    with suppress(RequestTooLarge, MalformedRequest):
        message = decoder_of(GetMessageClass(kind), METHOD_POLICIES[path])(request)
        assert len(request) <= most if most else _fields(message) <= MAX_FIELDS
    with suppress(DecodeError):
        message = decode(request)
        assert _counted(request, kind, _fields(message)) != "fewer"
        message.DiscardUnknownFields()
        written = message.SerializeToString()
        assert _counted(written, kind, _fields(message, of_entry=3)) == "as many"


def _counted(data: bytes, kind: Descriptor, fields: int) -> str:
    """Whether the counter of fields finds so many."""
    if has_more_fields(data, kind, fields):
        return "more"
    return "fewer" if fields and not has_more_fields(data, kind, fields - 1) else "as many"


def _fields(message: Message, of_entry: int = 1) -> int:
    """How many fields a message has: those that are set, each element of one that is repeated, what is
    unknown, and the same of every message in it. A group that is unknown has a beginning and an end.

    An entry of a map that leaves out its key and its value is one field, as it is written it is three.
    """
    count = _unknown(UnknownFieldSet(message))
    for field, value in message.ListFields():
        if field.message_type is None:
            count += len(value) if field.is_repeated else 1
        elif field.message_type.GetOptions().map_entry:
            count += of_entry * len(value)
        else:
            inner = value if field.is_repeated else [value]
            count += sum(1 + _fields(each, of_entry) for each in inner)
    return count


def _unknown(fields: Any) -> int:
    return sum(2 + _unknown(field.data) if field.wire_type == _GROUP else 1 for field in fields)
