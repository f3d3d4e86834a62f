"""What the JSON of a protobuf message must be like: https://protobuf.dev/programming-guides/json/.

It is checked here before json_format, protobuf's own reader, reads it: json_format takes some values that are
wrong, and what it says of others is about Python (see json_values.py). The place of what is wrong is named,
such as `metadata.details[0].code`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from opservice.methods.json_values import (
    is_base64,
    problem_of,
    problem_of_duration,
    problem_of_field_mask,
    problem_of_timestamp,
)

DISGUISE = "\n/google.protobuf.BytesValue"
"""The end of the URL of a disguised `Any` (see protojson.py). No URL has a line break."""
DEEPEST = 50
"""Messages in messages. What is deeper inside an `Any` is shown as base64."""
LONGEST = 300
"""Characters of what is said of wrong JSON, which repeats some of it."""

_ANY = "google.protobuf.Any"
_EMPTY = "google.protobuf.Empty"
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
"""Messages of these types are in the "value" of an `Any`. Fields of all others are beside its "@type"."""
_UNKNOWN_ANY = (
    'is an Any of a type that is not known here: it must be {"@type": URL, "value": BASE64}'
)


class NotJson(ValueError):
    """The value is not the JSON of the message. This says why, to whoever wrote it.

    `field` is what is wrong, where that is known.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field[:LONGEST]

    def within(self, place: str) -> NotJson:
        """The same, of the message or list that is at this place of another one."""
        dot = "." if self.field and not self.field.startswith("[") else ""
        self.field = f"{place}{dot}{self.field}"[:LONGEST]
        return self


class MessageCheck:
    """Checks the JSON of messages. What stands inside an `Any` is looked up in the pool."""

    def __init__(self, pool: DescriptorPool) -> None:
        self._pool = pool
        self._fields: dict[Descriptor, Mapping[str, _Field]] = {}

    def check(self, value: object, kind: Descriptor, depth: int = 0) -> bool:
        """Checks the JSON of a message of this type, and disguises in it each `Any` of an unknown type.

        Returns whether there was one. `depth` is how many messages it is inside of. Raises NotJson, with the
        place within this message.
        """
        name = kind.full_name
        if name in _SCALAR_PROBLEMS:
            _refuse(_SCALAR_PROBLEMS[name](value))
            return False
        if name in _WRAPPERS:
            _refuse(problem_of(kind.fields_by_name["value"], value))
            return False
        if depth > DEEPEST or name in _FREE_FORM:
            return False  # json_format takes it, or says what is wrong
        if not isinstance(value, dict):
            raise NotJson("must be an object")
        if name == _ANY:
            return self._check_any(value, depth)
        return self._check_fields(value, kind, depth)

    def _check_any(self, value: dict[str, Any], depth: int) -> bool:
        if not value:
            return False
        url = value.get("@type")
        if not isinstance(url, str):
            raise NotJson("must have an @type, which is a string")
        inner = type_of(self._pool, url)
        if inner is None:
            if value.keys() != {"@type", "value"} or not is_base64(value["value"]):
                raise NotJson(_UNKNOWN_ANY)
            value["@type"] = url + DISGUISE
            return True
        if inner.full_name == _EMPTY and value.get("value") == {}:
            del value["value"]  # as Go and others write it
        if inner.full_name not in _IN_VALUE:
            fields = {name: each for name, each in value.items() if name != "@type"}
            return self._check_fields(fields, inner, depth + 1)
        if value.keys() != {"@type", "value"}:
            raise NotJson(f"must have an @type and a value, as it is a {inner.full_name}")
        try:
            return self.check(value["value"], inner, depth + 1)
        except NotJson as error:
            raise error.within("value") from None

    def _check_fields(self, value: dict[str, Any], kind: Descriptor, depth: int) -> bool:
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
                found |= self._check_field(field, each, depth)
            except NotJson as error:
                raise error.within(name) from None
        return found

    def _check_field(self, field: _Field, value: Any, depth: int) -> bool:
        if not field.has_many:
            return self._check_value(field, value, depth)
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
                found |= self._check_value(field, each, depth)
            except NotJson as error:
                raise error.within(str(key) if field.is_map else f"[{key}]") from None
        return found

    def _check_value(self, field: _Field, value: object, depth: int) -> bool:
        if field.message is not None:
            return self.check(value, field.message, depth + 1)
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
        values, entry = field, field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            values = entry.fields_by_name["value"]
        return cls(
            field.name,
            field.json_name,
            field.number,
            is_map=values is not field,
            has_many=field.is_repeated,
            values=values,
            message=values.message_type,
        )


def type_of(pool: DescriptorPool, url: str) -> Descriptor | None:
    """The type that an `Any` with this URL holds; None when the pool does not know it."""
    try:
        found: Descriptor = pool.FindMessageTypeByName(url.rpartition("/")[2])
    except KeyError:
        return None
    return found


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise NotJson(problem)
