"""Protobuf JSON as a client may write and read it: by the rules, and without the server's code for it.

https://protobuf.dev/programming-guides/json/. An `Any` of a type that is not known here is
`{"@type": URL, "value": BASE64}`.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any, cast

from google.protobuf import descriptor_pool, json_format
from google.protobuf.any_pb2 import Any as AnyPb
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_POOL = descriptor_pool.Default()
_64_BITS = {
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT64,
}


def message_to_json(message: Message) -> Any:
    """Raises ValueError for a message that has no JSON, such as a Duration beyond its range."""
    if isinstance(message, AnyPb):
        return _any_to_json(message)
    if _is_google(message):
        return json_format.MessageToDict(message)
    return {field.json_name: _field_to_json(field, value) for field, value in message.ListFields()}


def message_from_json(value: Any, kind: type[Message]) -> Any:
    """Raises KeyError for a field that the message does not have."""
    message = kind()
    if isinstance(message, AnyPb):
        _any_from_json(value, message)
    elif _is_google(message):
        json_format.ParseDict(value, message)
    else:
        fields = {field.json_name: field for field in cast("Any", kind.DESCRIPTOR).fields}
        for name, each in value.items():
            _set(message, fields[name], each)
    return message


def _is_google(message: Message) -> bool:
    return str(cast("Any", message.DESCRIPTOR).file.package) == "google.protobuf"


def _any_to_json(payload: AnyPb) -> dict[str, Any]:
    if not payload.ListFields():
        return {}
    kind = _kind_of(payload.type_url)
    if kind is None:
        return {"@type": payload.type_url, "value": b64encode(payload.value).decode()}
    shown = message_to_json(kind.FromString(payload.value))
    if _is_special(kind):
        return {"@type": payload.type_url, "value": shown}
    return {"@type": payload.type_url, **shown}


def _any_from_json(value: dict[str, Any], payload: AnyPb) -> None:
    if not value:
        return
    payload.type_url = value["@type"]
    kind = _kind_of(payload.type_url)
    if kind is None:
        assert value.keys() == {"@type", "value"}
        payload.value = b64decode(value["value"], validate=True)
        return
    inner = {name: each for name, each in value.items() if name != "@type"}
    held = message_from_json(inner["value"] if _is_special(kind) else inner, kind)
    payload.value = held.SerializeToString(deterministic=True)


def _kind_of(type_url: str) -> type[Message] | None:
    try:
        return GetMessageClass(_POOL.FindMessageTypeByName(type_url.rpartition("/")[2]))
    except KeyError:
        return None


def _is_special(kind: type[Message]) -> bool:
    """Whether its JSON is another than that of its fields, so that it stands apart in an `Any`."""
    message = kind()
    return _is_google(message) and message.DESCRIPTOR.name != "Empty"


def _field_to_json(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {str(key): _one_to_json(inner, each) for key, each in value.items()}
    if field.is_repeated:
        return [_one_to_json(field, each) for each in value]
    return _one_to_json(field, value)


def _one_to_json(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return message_to_json(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b64encode(value).decode()
    return str(value) if field.cpp_type in _64_BITS else value


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        for key, each in value.items():
            getattr(message, field.name)[key] = _one_from_json(inner, each)
    elif field.is_repeated:
        getattr(message, field.name).extend([_one_from_json(field, each) for each in value])
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(_one_from_json(field, value))
    else:
        setattr(message, field.name, _one_from_json(field, value))


def _one_from_json(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return message_from_json(value, GetMessageClass(field.message_type))
    if field.enum_type is not None:
        known = field.enum_type.values_by_name.get(value)
        return value if known is None else known.number
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b64decode(value, validate=True)
    if field.cpp_type in _64_BITS:
        assert isinstance(value, str), f"{field.name} must be a string in JSON: {value}"
        return int(value)
    return value
