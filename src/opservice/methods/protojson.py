"""Protobuf JSON, also of an `Any` whose type is not known: `{"@type": URL, "value": BASE64}`, both ways.

Everything else is as https://protobuf.dev/programming-guides/json/ has it. protobuf's own json_format does
the work, but it refuses a whole message when it holds one `Any` of an unknown type. So such an `Any` is
disguised as a `google.protobuf.BytesValue`, whose JSON in an `Any` has just this form. Its URL is restored
afterwards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyPayload
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.wrappers_pb2 import BytesValue

_ANY = "google.protobuf.Any"
_EMPTY = "google.protobuf.Empty"
_DISGUISE = "\n/google.protobuf.BytesValue"
"""The end of the URL of a disguised `Any`. No URL has a line break."""
_DEEPEST = 50
"""Messages in messages. What is deeper inside an `Any` is shown as base64."""
_FREE_FORM = {
    "google.protobuf.Struct",
    "google.protobuf.Value",
    "google.protobuf.ListValue",
}
"""Their JSON is anything: there is no `Any` in it, whatever it looks like."""
_UNKNOWN_FIELD = re.compile(
    r'Message type "(?P<type>[^"]*)" has no field named "(?P<field>.*?)" at "(?P<at>[^"]*)"'
)
_WRONG_FIELD = re.compile(r"Failed to parse (?P<field>\w+) field: (?P<why>.*)")
_LONGEST = 300
"""Characters of what is said of wrong JSON, which repeats some of it."""
_UNPRINTABLE = (
    TypeError,
    ValueError,
    KeyError,
    OverflowError,
    RecursionError,
    DecodeError,
    json_format.Error,
)
"""What json_format raises for a message that it cannot print, or for JSON that is no message."""


class NotJson(ValueError):
    """The value is not the JSON of the message. This says why, to whoever wrote it.

    `field` is what is wrong, where that is known.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class ProtoJson:
    """Converts messages to JSON and back. What stands inside an `Any` is looked up in the pool."""

    def __init__(self, pool: DescriptorPool) -> None:
        self._pool = pool

    def to_dict(self, message: Message, *, with_defaults: bool = False) -> dict[str, Any]:
        """The JSON object of the message, which it can always make.

        `with_defaults` also shows fields that have their default value and of which it is not known whether
        they were set.
        """
        try:
            return self._print(message, with_defaults=with_defaults)
        except _UNPRINTABLE:
            disguised = type(message)()
            disguised.CopyFrom(message)
            self._disguise(disguised, 0)
            shown = self._print(disguised, with_defaults=with_defaults)
            _restore_urls(shown)
            return shown

    def to_json(self, message: Message, *, with_defaults: bool = False) -> bytes:
        """The JSON of the message in UTF-8, on one line."""
        shown = self.to_dict(message, with_defaults=with_defaults)
        return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode()

    def fill(self, message: Message, value: dict[str, Any]) -> None:
        """Sets the fields of the message from a JSON value. Raises NotJson."""
        try:
            disguised = self._disguise_json(value, _descriptor(message), 0)
            json_format.ParseDict(
                value, message, descriptor_pool=self._pool, max_recursion_depth=_DEEPEST
            )
            if disguised:
                self._unmask(message)
        except _UNPRINTABLE as error:
            raise _explained(error) from error
        except SystemError as error:  # protobuf's, for a string with half a surrogate pair
            raise NotJson("a string is not valid Unicode") from error

    def _print(self, message: Message, *, with_defaults: bool) -> dict[str, Any]:
        printed: dict[str, Any] = json_format.MessageToDict(
            message,
            descriptor_pool=self._pool,
            always_print_fields_with_no_presence=with_defaults,
        )
        return printed

    def _type_of(self, url: str) -> Descriptor | None:
        """The type that an `Any` with this URL holds; None when it is not known."""
        try:
            found: Descriptor = self._pool.FindMessageTypeByName(url.rpartition("/")[2])
        except KeyError:
            return None
        return found

    def _disguise(self, message: Message, depth: int) -> None:
        """Disguises each `Any` in the message that cannot be printed."""
        if not isinstance(message, AnyPayload):
            _for_each_message(message, lambda each: self._disguise(each, depth + 1))
            return
        held = message.value
        kind = self._type_of(message.type_url)
        if kind is not None and depth < _DEEPEST:
            try:
                inner = GetMessageClass(kind).FromString(held)
                self._disguise(inner, depth + 1)
                message.value = inner.SerializeToString()
                self._print(message, with_defaults=False)
            except _UNPRINTABLE:
                pass
            else:
                return
        message.type_url += _DISGUISE
        message.value = BytesValue(value=held).SerializeToString()

    def _unmask(self, message: Message) -> None:
        """Undoes `_disguise`, after the message was read from JSON."""
        if not isinstance(message, AnyPayload):
            _for_each_message(message, self._unmask)
            return
        if message.type_url.endswith(_DISGUISE):
            message.type_url = message.type_url.removesuffix(_DISGUISE)
            message.value = BytesValue.FromString(message.value).value
        elif (kind := self._type_of(message.type_url)) is not None:
            inner = GetMessageClass(kind).FromString(message.value)
            self._unmask(inner)
            message.value = inner.SerializeToString(deterministic=True)

    def _disguise_json(self, value: object, kind: Descriptor, depth: int) -> bool:
        """Disguises each `Any` of an unknown type in the JSON of a message. Returns whether there was one."""
        if not isinstance(value, dict) or depth > _DEEPEST or kind.full_name in _FREE_FORM:
            return False
        if kind.full_name != _ANY:
            return self._disguise_fields(value, kind, depth)
        url = value.get("@type", "")
        if not isinstance(url, str):
            raise NotJson("@type must be a string")
        inner = self._type_of(url)
        if inner is not None:
            if inner.full_name == _EMPTY and value.get("value") == {}:
                del value["value"]  # as Go and others write it
            special = inner.full_name.startswith("google.protobuf.") and "value" in value
            within = value["value"] if special else value
            return self._disguise_json(within, inner, depth + 1)
        known_form = value.keys() == {"@type", "value"} and isinstance(value["value"], str)
        if known_form:
            value["@type"] = url + _DISGUISE
            return True
        return False  # json_format says what is wrong with it

    def _disguise_fields(self, value: dict[Any, Any], kind: Descriptor, depth: int) -> bool:
        found = False
        for field in kind.fields:
            if field.message_type is None:
                continue
            for name in {field.json_name, field.name} & value.keys():
                for each in _values_of(field, value[name]):
                    message_type = _map_value(field) or field.message_type
                    found |= self._disguise_json(each, message_type, depth + 1)
        return found


def _descriptor(message: Message) -> Descriptor:
    return cast("Descriptor", message.DESCRIPTOR)


def _map_value(field: FieldDescriptor) -> Descriptor | None:
    """The type of a map's values; None for a field that is no map of messages."""
    entry = field.message_type
    if entry is None or not entry.GetOptions().map_entry:
        return None
    return entry.fields_by_name["value"].message_type


def _values_of(field: FieldDescriptor, value: object) -> Iterable[object]:
    """The JSON values of the messages that a field holds."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        has_messages = _map_value(field) is not None and isinstance(value, Mapping)
        return list(cast("Mapping[str, object]", value).values()) if has_messages else ()
    if field.is_repeated:
        return value if isinstance(value, list) else ()
    return (value,)


def _for_each_message(message: Message, visit: Callable[[Message], None]) -> None:
    """Calls `visit` with each message that a field of the message holds."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if _map_value(field) is not None:
                for each in value.values():
                    visit(each)
        elif field.is_repeated:
            for each in value:
                visit(each)
        else:
            visit(value)


def _restore_urls(value: object) -> None:
    if isinstance(value, dict):
        url = value.get("@type")
        if isinstance(url, str) and url.endswith(_DISGUISE):
            value["@type"] = url.removesuffix(_DISGUISE)
        for each in value.values():
            _restore_urls(each)
    elif isinstance(value, list):
        for each in value:
            _restore_urls(each)


def _explained(error: BaseException) -> NotJson:
    """json_format's words, with the field apart."""
    if isinstance(error, RecursionError):
        return NotJson("is nested too deeply")
    if isinstance(error, KeyError):
        # What a well-known type holds, such as a Duration, is its "value".
        return NotJson(f"{error} is missing")
    said = " ".join(str(error).split())
    unknown = _UNKNOWN_FIELD.search(said)
    if unknown is not None:
        inside = unknown["at"].partition(".")[2]
        field = f"{inside}.{unknown['field']}" if inside else unknown["field"]
        return NotJson(f"is not a field of {unknown['type']}", field[:_LONGEST])
    wrong = _WRONG_FIELD.match(said)
    field, said = (wrong["field"], wrong["why"]) if wrong is not None else ("", said)
    if "message descriptor by type_url" in said:
        said += '. An Any of a type that is not known must be {"@type": URL, "value": BASE64}'
    return NotJson(said[:_LONGEST], field)
