"""What the JSON value of a protobuf field must be like: https://protobuf.dev/programming-guides/json/.

protobuf's json_format takes more than that: it drops what is no base64, and reads `1_0s`, `٣` and 2.5
where it expects a duration, a number or an enum. What it says of other values is about Python.
"""

from __future__ import annotations

import re
import sys
from decimal import Decimal

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_INT32, _INT64 = (-(2**31), 2**31 - 1), (-(2**63), 2**63 - 1)
_UINT32, _UINT64 = (0, 2**32 - 1), (0, 2**64 - 1)
_BOUNDS = {
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_SINT32: _INT32,
    FieldDescriptor.TYPE_SFIXED32: _INT32,
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_SINT64: _INT64,
    FieldDescriptor.TYPE_SFIXED64: _INT64,
    FieldDescriptor.TYPE_UINT32: _UINT32,
    FieldDescriptor.TYPE_FIXED32: _UINT32,
    FieldDescriptor.TYPE_UINT64: _UINT64,
    FieldDescriptor.TYPE_FIXED64: _UINT64,
}
_MOST_FLOAT = float.fromhex("0x1.fffffep+127")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_LONGEST_NUMBER = 100
_NO_NUMBERS = {"NaN", "Infinity", "-Infinity"}
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")
_DURATION = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,9})?s")
_TIMESTAMP = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_MOST_NAMES = 20
"""Of an enum, that are told to whoever gives another."""


def problem_of(field: FieldDescriptor, value: object) -> str | None:
    """What is wrong with the value of a field that holds no message, or with one of its values.

    In words that follow the name of the field.
    """
    if field.type == FieldDescriptor.TYPE_STRING:
        return None if isinstance(value, str) else "must be a string"
    if field.type == FieldDescriptor.TYPE_BOOL:
        return None if isinstance(value, bool) else "must be true or false"
    if field.type == FieldDescriptor.TYPE_BYTES:
        return None if is_base64(value) else "must be a string in base64"
    if field.type == FieldDescriptor.TYPE_ENUM:
        return None if _is_enum(field, value) else _must_be_of(field)
    if field.type in _BOUNDS:
        least, most = _BOUNDS[field.type]
        fits = _is_whole(value, least, most)
        return None if fits else f"must be a whole number from {least} to {most}"
    largest = _MOST_FLOAT if field.type == FieldDescriptor.TYPE_FLOAT else sys.float_info.max
    fits = _is_number(value, largest)
    return None if fits else f"must be a number from {-largest:g} to {largest:g}"


def problem_of_duration(value: object) -> str | None:
    """As `problem_of`, for a google.protobuf.Duration."""
    if isinstance(value, str) and _DURATION.fullmatch(value):
        try:
            Duration().FromJsonString(value)
        except ValueError:
            return "must be a duration from -315576000000s to 315576000000s"
        return None
    return 'must be a string such as "1.5s"'


def problem_of_timestamp(value: object) -> str | None:
    """As `problem_of`, for a google.protobuf.Timestamp."""
    if isinstance(value, str) and _TIMESTAMP.fullmatch(value):
        try:
            Timestamp().FromJsonString(value)
        except ValueError:
            pass
        else:
            return None
    return 'must be a time such as "2026-01-31T12:00:00Z"'


def problem_of_field_mask(value: object) -> str | None:
    """As `problem_of`, for a google.protobuf.FieldMask."""
    return None if isinstance(value, str) else 'must be a string such as "name,lastUsed"'


def is_base64(value: object) -> bool:
    """Whether it is base64, of either alphabet, with or without the `=` at its end."""
    if not isinstance(value, str) or not _BASE64.fullmatch(value):
        return False
    return len(value.rstrip("=")) % 4 != 1


def _is_whole(value: object, least: int, most: int) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, str):
        if len(value) > _LONGEST_NUMBER or not _NUMBER.fullmatch(value):
            return False
        number = Decimal(value)
        return least <= number <= most and number == number.to_integral_value()
    if isinstance(value, float):
        return least <= value <= most and value.is_integer()
    return isinstance(value, int) and least <= value <= most


def _is_number(value: object, most: float) -> bool:
    if isinstance(value, str):
        if value in _NO_NUMBERS:
            return True
        return _NUMBER.fullmatch(value) is not None and abs(float(value)) <= most
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= most


def _is_enum(field: FieldDescriptor, value: object) -> bool:
    known = field.enum_type is not None and value in field.enum_type.values_by_name
    return (isinstance(value, str) and known) or _is_whole(value, *_INT32)


def _must_be_of(field: FieldDescriptor) -> str:
    assert field.enum_type is not None
    names = list(field.enum_type.values_by_name)
    more = " and others" if len(names) > _MOST_NAMES else ""
    return f"must be one of {', '.join(names[:_MOST_NAMES])}{more}"
