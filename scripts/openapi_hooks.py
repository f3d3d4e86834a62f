"""What schemathesis must know to make requests, and cannot read in the document. scripts/openapi.sh loads it.

It takes no check away. It draws strings of the document's own formats, and leaves out what is right by the
other forms of protobuf's JSON, which the document tells in words.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import schemathesis
from hypothesis import strategies as st

_UNKNOWN = re.compile(r".*/(?!google\.|opservice\.|yandex\.)[^/]+", re.DOTALL)
"""The URLs of types that the server does not know."""
_VALUE = "CgNhYmM="
_NUMBERS_AS_STRINGS = {"done", "total"}
_ENUMS = {"cancelPolicy"}
_OF_STATE = {
    "IDEMPOTENCY_KEY_REUSED",
    "OPERATION_DONE",
    "OPERATION_NOT_CANCELLABLE",
    "OPERATION_RUNNING",
}
"""Reasons for which a request that is right is refused with 400, as Google's table has it."""

for token in ("page-token", "resume-token", "last-event-id"):
    schemathesis.openapi.format(token, st.just(""))
schemathesis.openapi.format(
    "aip-160-filter",
    st.sampled_from(["", "done = true", 'created_by = "alice" OR done = false', "error.code = 9"]),
)
schemathesis.openapi.format(
    "google-duration", st.integers(1, 3600).map("{}s".format) | st.just("2.5s")
)
# Less may be over before the answer.
schemathesis.openapi.format("seconds", st.integers(5, 60).map(str))


def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Gives a request what no schema can say of it."""
    if isinstance(case.body, dict | list):
        case.body = copy.deepcopy(case.body)  # other cases share it
    is_right = case.meta is None or case.meta.generation.mode.is_positive
    for each in _objects(case.body):
        url = each.get("@type")
        if isinstance(url, str) and "/" in url[:-1]:
            each.clear()
            each["@type"] = url if _UNKNOWN.fullmatch(url) else "example.com/acme.v1.Build"
            each["value"] = _VALUE
    for request in (case.query, case.body):
        if is_right and isinstance(request, dict) and request.get("operationIds"):
            # They exclude these.
            request.pop("parent", None)
            request.pop("filter", None)
    if isinstance(case.body, dict) and is_right:
        if "total" in case.body.get("progress", {}):
            del case.body["progress"]["total"]  # it must not be less than what is done
        if case.body.pop("idempotencyKey", None) is not None:
            same = json.dumps(case.body, sort_keys=True).encode()
            case.body["idempotencyKey"] = hashlib.sha256(same).hexdigest()


def filter_case(context: Any, case: Any) -> bool:
    """Leaves out what the schemas do not show, and protobuf's JSON allows: see the document's description."""
    if case.meta is None or case.meta.generation.mode.is_positive:
        return True
    return not any(
        value is None
        or (name in _NUMBERS_AS_STRINGS | _ENUMS and isinstance(value, int | float))
        or (name == "code" and isinstance(value, str))
        for each in _objects(case.body)
        for name, value in each.items()
    )


def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """A request that is right may be refused because of the operation's state.

    Right or wrong, it may have a URL of more than 64 KiB, with many ids in it. A stream gets so little time
    (openapi.toml) that a busy machine has not begun it by then.
    """
    kind = type(failure).__name__
    if kind == "ServerError" and response.status_code == 504:
        return not case.path.lower().endswith("watch")
    if kind not in {"RejectedPositiveData", "AcceptedNegativeData"}:
        return True
    if kind == "AcceptedNegativeData" or response.status_code != 400:
        return bool(response.status_code != 431)
    return not any(each.get("reason") in _OF_STATE for each in _objects(response.json()))


def _objects(value: object) -> Iterator[dict[str, Any]]:
    """The JSON objects in a value, itself included."""
    if isinstance(value, dict):
        yield value
        for each in list(value.values()):
            yield from _objects(each)
    elif isinstance(value, list):
        for each in value:
            yield from _objects(each)


for hook in (before_call, filter_case, filter_failure):
    schemathesis.hook(hook)
