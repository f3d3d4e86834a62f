"""What a service has as a result or as metadata, as a google.protobuf.Any."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, Union, cast

from google.protobuf.any_pb2 import Any as AnyPayload
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import ListValue, NullValue, Struct, Value

Json: TypeAlias = Union[
    "Mapping[str, Any]", "list[Any]", "tuple[Any, ...]", str, bool, int, float, None
]
Encoder: TypeAlias = "Callable[[Any], Message | Json]"
"""Makes a protobuf message, or what JSON has, of a result or of metadata."""

_LARGEST = 2**53 - 1
"""Numbers in JSON are doubles: a larger integer would come back as another one."""


def encode(value: Any) -> Message | Json:
    """What a Producer uses unless it is given another `encode`.

    A pydantic model becomes what its `model_dump(mode="json")` gives, a dataclass what
    `dataclasses.asdict` gives, and anything else is returned as it is. To teach a producer a type of your
    own, give it a function that turns this type into a protobuf message, or into what JSON has, and that
    calls this one for the rest.
    """
    if isinstance(value, Message):
        return value
    dump: Callable[..., Json] | None = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return cast("Json", value)


def pack(value: Any, encode: Encoder = encode) -> AnyPayload:
    """A copy in an Any, or of the Any that it is already.

    A dict becomes a google.protobuf.Struct; a list, str, number or bool a google.protobuf.Value; None a
    google.protobuf.Empty. Raises TypeError for what is none of these, and ValueError for a number
    that JSON cannot hold, such as NaN.
    """
    message = _message(encode(value), value)
    payload = AnyPayload()
    if isinstance(message, AnyPayload):
        payload.CopyFrom(message)
    else:
        # Not in any order, lest an equal request look like another one.
        payload.Pack(message, deterministic=True)
    return payload


def _message(encoded: Any, value: Any) -> Message:
    if isinstance(encoded, Message):
        return encoded
    if encoded is None:
        return Empty()
    if not isinstance(encoded, Mapping | list | tuple | str | bool | int | float):
        raise TypeError(
            f"{type(value).__name__} cannot be stored: give a protobuf message, a dict, list, str, number"
            " or bool, a dataclass or pydantic model, or give the Producer an `encode` that knows this type"
        )
    try:
        as_value = _value(cast("Json", encoded))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{type(value).__name__} cannot be stored: {error}") from None
    return as_value.struct_value if isinstance(encoded, Mapping) else as_value


def _value(given: object) -> Value:
    """Raises TypeError and ValueError, which name what JSON does not have."""
    if isinstance(given, Mapping):
        fields: dict[str, Value] = {}
        for key, each in cast("Mapping[object, object]", given).items():
            if not isinstance(key, str):
                raise TypeError(
                    f"it has a key of type {type(key).__name__}; keys are strings in JSON"
                )
            fields[key] = _value(each)
        return Value(struct_value=Struct(fields=fields))
    if isinstance(given, list | tuple):
        items = cast("Sequence[object]", given)
        return Value(list_value=ListValue(values=[_value(each) for each in items]))
    if given is None:
        return Value(null_value=NullValue.NULL_VALUE)
    if isinstance(given, str):
        return Value(string_value=given)
    if isinstance(given, bool):
        return Value(bool_value=given)
    if isinstance(given, int | float):
        is_exact = abs(given) <= _LARGEST if isinstance(given, int) else math.isfinite(given)
        if not is_exact:
            raise ValueError(f"it holds {given}, which a number in JSON cannot be: give a string")
        return Value(number_value=given)
    raise TypeError(f"it holds {type(given).__name__}, which JSON does not have")
