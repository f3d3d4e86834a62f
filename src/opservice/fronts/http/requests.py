"""From an HTTP request to a request message, as google/api/http.proto has it: path, query and body.

What is wrong is named: a field that there is not, a value that is none of its type.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from opservice.domain.errors import InvalidArgument, MalformedRequest, RequestTooLarge, Violation
from opservice.fronts.http.templates import is_percent_encoded

MAX_VALUES = 100_000
"""Values in the JSON of a request. Each takes far more memory than its text."""

_NOT_ENCODED = "The query is not UTF-8, percent-encoded"
_MAX_PARAMETERS = 2_000
"""Of a query: a BatchGet has up to 1,000 ids."""
_HALF_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SYSTEM_PARAMETERS = {"alt", "prettyPrint"}
"""Of Google's clients, beside those that begin with `$`; https://cloud.google.com/apis/docs/system-parameters."""
_TRUTHS = {"true": True, "false": False}
_SCALAR_MESSAGES = {
    "google.protobuf.Duration",
    "google.protobuf.Timestamp",
    "google.protobuf.FieldMask",
}
"""Their JSON is a string."""


def parse_body(body: bytes) -> Any:
    """The JSON value; an empty object for no body. Raises MalformedRequest or RequestTooLarge."""
    if not body.strip():
        return {}
    if count_values(body) > MAX_VALUES:
        raise RequestTooLarge(f"The JSON has more than {MAX_VALUES} values")
    try:
        text = body.decode("utf-8-sig")  # with or without a byte order mark
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        if _HALF_SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise MalformedRequest("The body is not UTF-8") from error
    except UnicodeEncodeError as error:
        raise MalformedRequest("A string in the JSON has half a surrogate pair") from error
    except RecursionError as error:
        raise MalformedRequest("The JSON is nested too deeply") from error
    except ValueError as error:
        raise MalformedRequest(f"The body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise MalformedRequest("The body must be a JSON object")
    return value


def count_values(body: bytes) -> int:
    """About how many values the JSON has, or more of them."""
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{twice[:100]!r} is there twice in one object")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:100]} is more than a number can hold")
    return number


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def merge_path(value: dict[str, Any], path: Mapping[str, str], kind: Descriptor) -> None:
    """Puts the path's variables into the JSON of the request.

    Raises InvalidArgument when the body has another value for one of them.
    """
    for name, text in path.items():
        for spelled in {name, kind.fields_by_name[name].json_name}:
            given = value.pop(spelled, None)
            if given is not None and given != text:
                raise InvalidArgument([Violation(name, "is not what the path says")])
        value[name] = text


def query_to_json(query: bytes, kind: Descriptor) -> dict[str, Any]:
    """The request's JSON from a query string. Raises InvalidArgument that names every violation."""
    try:
        encoded = query.decode("ascii")
        if not is_percent_encoded(encoded):
            raise MalformedRequest(_NOT_ENCODED)
        pairs = parse_qsl(
            encoded,
            keep_blank_values=True,
            errors="strict",
            max_num_fields=_MAX_PARAMETERS,
        )
    except UnicodeDecodeError as error:
        raise MalformedRequest(_NOT_ENCODED) from error
    except ValueError as error:
        raise MalformedRequest(
            f"The query has more than {_MAX_PARAMETERS} parameters, or is malformed"
        ) from error
    value: dict[str, Any] = {}
    violations: list[Violation] = []
    for name, text in pairs:
        if name.startswith("$") or name in _SYSTEM_PARAMETERS:
            if name.lstrip("$") == "alt" and not text.startswith("json"):
                violations.append(Violation(name, "must be json"))
            continue
        problem = _set(value, name, text, kind)
        if problem:
            violations.append(Violation(name[:100], problem))
    if violations:
        raise InvalidArgument(violations[:32])
    return value


def _set(value: dict[str, Any], name: str, text: str, kind: Descriptor) -> str | None:
    """Sets the field that a parameter names, as `a.b.c`. Returns what is wrong with it."""
    *parents, last = name.split(".")
    for parent in parents:
        field = _field(kind, parent)
        if field is None or field.message_type is None or field.is_repeated:
            return "is not a field of the request"
        kind = field.message_type
        value = value.setdefault(field.name, {})
    field = _field(kind, last)
    if field is None:
        return "is not a field of the request"
    if field.message_type is not None and field.message_type.full_name not in _SCALAR_MESSAGES:
        return (
            "cannot be given in a query: give its fields, or send a body where the method takes one"
        )
    converted: Any = text
    if field.type == FieldDescriptor.TYPE_BOOL:
        if text not in _TRUTHS:
            return "must be true or false"
        converted = _TRUTHS[text]
    if field.is_repeated:
        value.setdefault(field.name, []).append(converted)
    elif field.name in value:
        return "is there more than once"
    else:
        value[field.name] = converted
    return None


def _field(kind: Descriptor, name: str) -> FieldDescriptor | None:
    found = kind.fields_by_name.get(name)
    return found or next((field for field in kind.fields if field.json_name == name), None)
