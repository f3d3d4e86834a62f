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
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyPayload
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.wrappers_pb2 import BytesValue

from opservice.methods.json_values import (
    is_base64,
    problem_of,
    problem_of_duration,
    problem_of_field_mask,
    problem_of_timestamp,
)

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
_WRAPPERS = {
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
}
_SCALAR_PROBLEMS = {
    "google.protobuf.Duration": problem_of_duration,
    "google.protobuf.Timestamp": problem_of_timestamp,
    "google.protobuf.FieldMask": problem_of_field_mask,
}
_IN_VALUE = _FREE_FORM | _WRAPPERS | _SCALAR_PROBLEMS.keys() | {_ANY}
"""What an `Any` has of them is in its "value"."""
_WRONG_FIELD = re.compile(r"Failed to parse (?P<field>\w+) field: (?P<why>.*)")
_UNKNOWN_ANY = (
    'is an Any of a type that is not known here: it must be {"@type": URL, "value": BASE64}'
)
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
        self.field = field[:_LONGEST]

    def within(self, place: str) -> NotJson:
        """The same, of the message or list that is at this place of another one."""
        dot = "." if self.field and not self.field.startswith("[") else ""
        self.field = f"{place}{dot}{self.field}"[:_LONGEST]
        return self


class ProtoJson:
    """Converts messages to JSON and back. What stands inside an `Any` is looked up in the pool."""

    def __init__(self, pool: DescriptorPool) -> None:
        self._pool = pool
        self._fields: dict[Descriptor, Mapping[str, _Field]] = {}

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
            disguised = self._read_message(value, _descriptor(message), 0)
            json_format.ParseDict(
                value, message, descriptor_pool=self._pool, max_recursion_depth=_DEEPEST
            )
            if disguised:
                self._unmask(message)
        except NotJson:
            raise
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

    def _read_message(self, value: object, kind: Descriptor, depth: int) -> bool:
        """Checks the JSON of a message, and disguises in it each `Any` of an unknown type.

        Returns whether there was one. Raises NotJson, with the place within this message.
        """
        name = kind.full_name
        if name in _SCALAR_PROBLEMS:
            _refuse(_SCALAR_PROBLEMS[name](value))
            return False
        if name in _WRAPPERS:
            _refuse(problem_of(kind.fields_by_name["value"], value))
            return False
        if depth > _DEEPEST or name in _FREE_FORM:
            return False  # json_format takes it, or says what is wrong
        if not isinstance(value, dict):
            raise NotJson("must be an object")
        if name == _ANY:
            return self._read_any(value, depth)
        return self._read_fields(value, kind, depth)

    def _read_any(self, value: dict[str, Any], depth: int) -> bool:
        if not value:
            return False
        url = value.get("@type")
        if not isinstance(url, str):
            raise NotJson("must have an @type, which is a string")
        inner = self._type_of(url)
        if inner is None:
            if value.keys() != {"@type", "value"} or not is_base64(value["value"]):
                raise NotJson(_UNKNOWN_ANY)
            value["@type"] = url + _DISGUISE
            return True
        if inner.full_name == _EMPTY and value.get("value") == {}:
            del value["value"]  # as Go and others write it
        if inner.full_name not in _IN_VALUE:
            fields = {name: each for name, each in value.items() if name != "@type"}
            return self._read_fields(fields, inner, depth + 1)
        if value.keys() != {"@type", "value"}:
            raise NotJson(f"must have an @type and a value, as it is a {inner.full_name}")
        try:
            return self._read_message(value["value"], inner, depth + 1)
        except NotJson as error:
            raise error.within("value") from None

    def _read_fields(self, value: dict[str, Any], kind: Descriptor, depth: int) -> bool:
        found = False
        fields = self._fields_of(kind)
        known = set()
        for name, each in value.items():
            if name.startswith("["):
                continue  # an extension, which json_format finds
            field = fields.get(name)
            if field is None:
                raise NotJson(f"is not a field of {kind.full_name}", name)
            if field.number in known:
                raise NotJson("is there under both of its names", name)
            known.add(field.number)
            if each is None:
                continue  # as if it were not there
            try:
                found |= self._read_field(field, each, depth)
            except NotJson as error:
                raise error.within(name) from None
        return found

    def _read_field(self, field: _Field, value: Any, depth: int) -> bool:
        if not field.has_many:
            return self._read_value(field, value, depth)
        each_at: Iterable[tuple[str | int, object]]
        if field.is_map:
            if not isinstance(value, dict):
                raise NotJson("must be an object")
            each_at = value.items()
        else:
            if not isinstance(value, list):
                raise NotJson("must be an array")
            each_at = enumerate(value)
        found = False
        for key, each in each_at:
            try:
                found |= self._read_value(field, each, depth)
            except NotJson as error:
                raise error.within(str(key) if field.is_map else f"[{key}]") from None
        return found

    def _read_value(self, field: _Field, value: object, depth: int) -> bool:
        if field.message is not None:
            return self._read_message(value, field.message, depth + 1)
        _refuse(problem_of(field.values, value))
        return False

    def _fields_of(self, kind: Descriptor) -> Mapping[str, _Field]:
        """By the names that they have in JSON, and in the .proto file."""
        known = self._fields.get(kind)
        if known is None:
            fields = [_Field.of(field) for field in kind.fields]
            known = {field.name: field for field in fields}
            known |= {field.json_name: field for field in fields}
            self._fields[kind] = known
        return known


@dataclass(frozen=True, slots=True)
class _Field:
    """What is asked of a field for each value that it has in JSON."""

    name: str
    json_name: str
    number: int
    is_map: bool
    has_many: bool
    values: FieldDescriptor
    """What the field holds, or each value of a map."""
    message: Descriptor | None
    """The type of its values; None for others than messages."""

    @classmethod
    def of(cls, field: FieldDescriptor) -> _Field:
        entry = field.message_type
        is_map = entry is not None and entry.GetOptions().map_entry
        values = entry.fields_by_name["value"] if is_map and entry is not None else field
        return cls(
            field.name,
            field.json_name,
            field.number,
            is_map,
            field.is_repeated,
            values,
            values.message_type,
        )


def _descriptor(message: Message) -> Descriptor:
    return cast("Descriptor", message.DESCRIPTOR)


def _map_value(field: FieldDescriptor) -> Descriptor | None:
    """The type of a map's values; None for a field that is no map of messages."""
    entry = field.message_type
    if entry is None or not entry.GetOptions().map_entry:
        return None
    return entry.fields_by_name["value"].message_type


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


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise NotJson(problem)


def _explained(error: BaseException) -> NotJson:
    """json_format's words, with the field apart."""
    if isinstance(error, RecursionError):
        return NotJson("is nested too deeply")
    said = " ".join(str(error).split())
    wrong = _WRONG_FIELD.match(said)
    field, said = (wrong["field"], wrong["why"]) if wrong is not None else ("", said)
    return NotJson(said[:_LONGEST], field)
