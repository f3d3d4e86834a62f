"""Messages as JSON Schema: what they are in canonical proto3 JSON."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from openapi_comments import in_json
from openapi_limits import REQUIRED, WITH, limits_of

Schema = dict[str, Any]

_ANY = "google.protobuf.Any"
_PREFIXES = {
    "google.longrunning.": "Google",
    "google.protobuf.": "Protobuf",
    "google.rpc.": "",
    "opservice.v1.": "",
    "yandex.cloud.endpoint.": "",
    "yandex.cloud.operation.": "",
}
_INT64 = {"type": "string", "format": "int64", "pattern": "^-?(0|[1-9][0-9]*)$"}
_SCALARS: Mapping[int, Schema] = {
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_STRING: {"type": "string"},
}
_RANGES: Mapping[int, Schema] = {
    FieldDescriptor.TYPE_INT32: {"minimum": -(2**31), "maximum": 2**31 - 1},
    # Up to 9e18. No short pattern says 2**63.
    FieldDescriptor.TYPE_INT64: {"pattern": "^-?(0|[1-9][0-9]{0,17}|[1-8][0-9]{18})$"},
}
"""Of the numbers in requests."""
_OF_MESSAGES: Mapping[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {
        "type": "string",
        "format": "google-duration",
        "pattern": r"^-?[0-9]{1,12}(\.[0-9]{1,9})?s$",
    },
    "google.protobuf.Empty": {"type": "object"},
}
_ANY_SCHEMA: Schema = {
    "type": "object",
    "description": (
        "A message of some type. Of a type that the server knows, it has the message's fields beside `@type`. Of any"
        " other, it has `value`: the message in protobuf's encoding, in base64."
    ),
    "required": ["@type"],
    "properties": {
        "@type": {
            "type": "string",
            "description": "The type's URL. Its name follows the last slash.",
            "pattern": "^[^\\n]*/[^/\\n]+$",
        }
    },
    "additionalProperties": True,
    "examples": [{"@type": "type.googleapis.com/acme.v1.BuildMetadata", "value": "CgNhYmM="}],
}


class Schemas:
    """The schemas of the document's `components`. One is made when it is first referred to."""

    def __init__(self, comments: Mapping[str, str]) -> None:
        self._comments = comments
        self.made: dict[str, Schema] = {}
        self._sources: dict[str, str] = {}

    def comment(self, name: str) -> str:
        """The comment of what has this full name, with fields named as in JSON. Empty when there is none."""
        text = self._comments.get(name, "")
        # A filter has the fields' own names.
        return text if name.endswith(".filter") else in_json(text)

    def response(self, kind: Descriptor) -> Schema:
        """A message that the server sends. Later versions may have more fields."""
        return self._message(kind, is_request=False)

    def request(self, kind: Descriptor, in_path: Collection[str]) -> Schema:
        """A message in a body, without the fields that its path has."""
        return self._message(kind, is_request=True, without=in_path)

    def parameter(self, field: FieldDescriptor) -> Schema:
        """A field of a request, as a parameter, without its description. Raises ValueError for a message."""
        schema = self._field(field, is_request=True)
        if "$ref" in schema:
            raise ValueError(f"{field.full_name} cannot be in a query")
        schema.pop("description", None)
        return schema

    def requires(self, kind: Descriptor, field: FieldDescriptor) -> bool:
        """Whether a request of this kind must have the field."""
        return field.name in REQUIRED.get(kind.full_name, ())

    def refer(self, name: str, schema: Schema, source: str = "") -> Schema:
        """A reference to a schema, which is added. Raises ValueError when another one has the name."""
        if self._sources.setdefault(name, source) != source:
            raise ValueError(f"{source} and {self._sources[name]} are both called {name}")
        self.made[name] = schema
        return {"$ref": f"#/components/schemas/{name}"}

    def _message(
        self, kind: Descriptor, *, is_request: bool, without: Collection[str] = ()
    ) -> Schema:
        if kind.full_name in _OF_MESSAGES:
            return dict(_OF_MESSAGES[kind.full_name])
        name = _short(kind)
        if kind.full_name == _ANY:
            return self.refer(name, _ANY_SCHEMA, kind.full_name)
        is_part = is_request and not kind.name.endswith("Request")
        name += "Input" if is_part else ""
        made: Schema = {"type": "object"}
        reference = self.refer(name, made, f"{kind.full_name} {sorted(without)}")
        if description := self.comment(kind.full_name):
            made["description"] = description
        fields = [each for each in kind.fields if each.name not in without]
        if is_request:
            must = [each.json_name for each in fields if self.requires(kind, each)]
        else:
            must = [each.json_name for each in fields if not each.has_presence]
        if must:
            made["required"] = must
        if fields:
            made["properties"] = {
                each.json_name: self._field(each, is_request=is_request) for each in fields
            }
        if is_request:
            made["additionalProperties"] = False
            if kind.full_name in WITH:
                made["dependentSchemas"] = WITH[kind.full_name]
        return reference

    def _field(self, field: FieldDescriptor, *, is_request: bool) -> Schema:
        schema = self._value(field, is_request=is_request)
        if description := self.comment(field.full_name):
            schema["description"] = description
        if field.GetOptions().deprecated:
            schema["deprecated"] = True
        if is_request:
            limits = _RANGES.get(field.type, {}) | limits_of(field.full_name)
            if "items" in limits:
                limits["items"] = schema["items"] | limits["items"]
            schema |= limits
        return schema

    def _value(self, field: FieldDescriptor, *, is_request: bool) -> Schema:
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            value = self._one(entry.fields_by_name["value"], is_request=is_request)
            return {"type": "object", "additionalProperties": value}
        one = self._one(field, is_request=is_request)
        return {"type": "array", "items": one} if field.is_repeated else one

    def _one(self, field: FieldDescriptor, *, is_request: bool) -> Schema:
        if field.message_type is not None:
            return self._message(field.message_type, is_request=is_request)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        return dict(_SCALARS[field.type])

    def _enum(self, kind: EnumDescriptor) -> Schema:
        told = [
            f"* `{each.name}`: {' '.join(self.comment(f'{kind.full_name}.{each.name}').split())}"
            for each in kind.values
        ]
        description = "\n\n".join([self.comment(kind.full_name), "\n".join(told)])
        names = [each.name for each in kind.values]
        schema = {"type": "string", "description": description, "enum": names}
        return self.refer(_short(kind), schema, kind.full_name)


def _short(kind: Descriptor | EnumDescriptor) -> str:
    """The name of a schema. Raises StopIteration for a package that has no prefix."""
    package = next(each for each in _PREFIXES if kind.full_name.startswith(each))
    return _PREFIXES[package] + kind.name
