"""Requests as bytes: those that are too large are refused before memory is taken for what they hold.

A field of two bytes becomes an object of fifty: a request within the limit of bytes could else become a
hundred MiB. Encoding: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from opservice.domain.errors import MalformedRequest, RequestTooLarge
from opservice.methods.method_policy import MAX_FIELDS, MethodPolicy

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10
_64_BITS = (1 << 64) - 1


def decoder_of(kind: type[Message], policy: MethodPolicy) -> Callable[[bytes], Message]:
    """Decodes requests of a method that are not too large. It raises RequestTooLarge or MalformedRequest."""
    decode, most = kind.FromString, policy.max_bytes
    descriptor = cast("Descriptor", kind.DESCRIPTOR)

    def decode_bounded(request: bytes) -> Message:
        if most is None:
            if has_more_fields(request, descriptor, MAX_FIELDS):
                raise RequestTooLarge(
                    f"The request has more than {MAX_FIELDS} fields, those of the messages in it"
                    " counted too"
                )
        elif len(request) > most:
            raise RequestTooLarge(
                f"The request has {len(request)} bytes, at most {most} are allowed"
            )
        try:
            return decode(request)
        except DecodeError as error:
            raise MalformedRequest from error

    return decode_bounded


def has_more_fields(data: bytes, kind: Descriptor, most: int) -> bool:
    """Whether a message of this kind has more than `most` fields, those of the messages in it counted too.

    It looks at no more than `most` of them. What is malformed ends the count, as it ends the decoding.
    """
    ranges = [(0, len(data), kind)]
    counted = 0
    while ranges:
        at, end, kind = ranges.pop()
        nested = _messages_in(kind)
        while at < end:
            counted += 1
            if counted > most:
                return True
            tag, at = _varint(data, at, end)
            wire_type = tag & 7
            if wire_type == _DELIMITED:
                size, at = _varint(data, at, end)
                inner = nested.get(tag >> 3)
                if inner is not None and at + size <= end:
                    ranges.append((at, at + size, inner))
                at += size
            elif wire_type == _VARINT:
                _, at = _varint(data, at, end)
            elif wire_type == _FIXED64:
                at += 8
            elif wire_type == _FIXED32:
                at += 4
            # The tags that begin and end a group have nothing behind them but more fields.
    return False


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The number, and where it ends: at `end` when it is malformed.

    Ten bytes hold 70 bits, of which decoders drop those above the 64th.
    """
    number = 0
    for shift, byte in enumerate(data[at : min(at + _LONGEST_VARINT, end)]):
        number |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return number & _64_BITS, at + shift + 1
    return 0, end


@cache
def _messages_in(kind: Descriptor) -> dict[int, Descriptor]:
    """The fields of a message that hold messages, by number."""
    return {
        field.number: field.message_type
        for field in kind.fields
        if field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type is not None
    }
