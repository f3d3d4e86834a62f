"""Errors by HTTP: the code of google/rpc/code.proto's table, and the two forms that clients expect."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from google.protobuf import descriptor_pool
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from opservice.fronts.http.exchange import HttpHeaders
from opservice.methods.protojson import ProtoJson

HTTP_CODES: Mapping[int, int] = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.UNAUTHENTICATED: 401,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
}

_NAMES = {number: name for name, number in Code.items()}
_JSON = ProtoJson(descriptor_pool.Default())


def error_to_json(status: Status, *, is_yandex: bool, http_code: int | None = None) -> bytes:
    """The body of an error: `{"error": {…}}` for Google's clients, `{"code": …}` for Yandex's."""
    details = [_JSON.to_dict(detail) for detail in status.details]
    if is_yandex:
        error = {"code": status.code, "message": status.message, "details": details}
        return json.dumps(error).encode()
    error = {
        "code": http_code or HTTP_CODES[status.code],
        "message": status.message,
        "status": _NAMES[status.code],
        "details": details,
    }
    return json.dumps({"error": error}).encode()


def error_headers(status: Status) -> HttpHeaders:
    """The headers that go with an error, beside its body."""
    headers = [("content-type", "application/json"), ("cache-control", "no-store")]
    if status.code == Code.UNAUTHENTICATED:
        headers.append(("www-authenticate", "Bearer"))
    for detail in status.details:
        retry = RetryInfo()
        if detail.Unpack(retry):  # it is another type's, else
            seconds = retry.retry_delay.ToNanoseconds() / 1e9
            headers.append(("retry-after", str(max(1, math.ceil(seconds)))))
    return headers
