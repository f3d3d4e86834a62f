"""Requests that reach no method of the API: what is wrong with them, and how that is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from opservice.fronts.http.conditions import has_condition, is_json, is_met, server_timeout
from opservice.fronts.http.exchange import Exchange, HttpHeaders
from opservice.fronts.http.routes import Route, is_yandex_path
from opservice.fronts.http.statuses import error_headers, error_to_json
from opservice.methods.call import REQUEST_ID, Headers, given_request_id
from opservice.methods.convert import ERROR_DOMAIN
from opservice.methods.pipeline import MethodPipeline

_MALFORMED, _UNSUPPORTED = "MALFORMED_REQUEST", "MEDIA_TYPE_UNSUPPORTED"
_IDENTITY = "identity"


@dataclass(frozen=True, slots=True)
class Fault:
    """A refusal that no method has made."""

    http_code: int
    code: int
    reason: str
    message: str
    headers: HttpHeaders = ()

    def answer(self, path: str, request_headers: Headers) -> tuple[HttpHeaders, bytes]:
        """The headers and the body of the answer to a request for this path."""
        status = Status(code=self.code, message=self.message)
        status.details.add().Pack(ErrorInfo(reason=self.reason, domain=ERROR_DOMAIN))
        headers = [*error_headers(status), *self.headers]
        given = given_request_id(request_headers)
        if given is not None:
            headers.append((REQUEST_ID, given))
        is_yandex = is_yandex_path(path)
        return headers, error_to_json(status, is_yandex=is_yandex, http_code=self.http_code)


BAD_PATH = Fault(400, Code.INVALID_ARGUMENT, _MALFORMED, "The path is not UTF-8, percent-encoded")
_CONDITION = Fault(
    412,
    Code.FAILED_PRECONDITION,
    "CONDITION_UNSUPPORTED",
    "Only a GET that changes nothing takes conditions (If-Match, If-None-Match)",
)
OTHER_VERSION = Fault(
    412,
    Code.FAILED_PRECONDITION,
    "CONDITION_NOT_MET",
    "If-Match names another version than the one that there is, or a weak ETag",
)
_NOT_JSON = Fault(
    415,
    Code.INVALID_ARGUMENT,
    _UNSUPPORTED,
    "The body must be application/json, in UTF-8",
    (("accept", "application/json"),),
)
_COMPRESSED = Fault(
    415,
    Code.INVALID_ARGUMENT,
    _UNSUPPORTED,
    "The body must not be compressed",
    (("accept-encoding", _IDENTITY),),
)


def fault_of(exchange: Exchange, route: Route, pipeline: MethodPipeline) -> Fault | None:
    """What is wrong with a request, whatever its method reads of it; None when nothing is."""
    is_read = route.http_method == "GET" and not pipeline.policy.writes
    if not is_read and has_condition(exchange.header):
        return _CONDITION
    if pipeline.method.streams_responses and not is_met(exchange.header("if-match"), None):
        return OTHER_VERSION
    try:
        server_timeout(exchange.header("x-server-timeout"))
    except ValueError as error:
        return Fault(400, Code.INVALID_ARGUMENT, _MALFORMED, str(error))
    if not route.takes_body and exchange.has_body:
        message = f"{route.http_method} takes no body here"
        return Fault(400, Code.INVALID_ARGUMENT, _MALFORMED, message)
    if exchange.has_body and not is_json(exchange.header("content-type")):
        return _NOT_JSON
    if (exchange.header("content-encoding") or _IDENTITY).lower() != _IDENTITY:
        return _COMPRESSED
    return None


def unknown_path(path: str) -> Fault:
    return Fault(404, Code.NOT_FOUND, "PATH_UNKNOWN", f"There is nothing at {path[:200]}")


def wrong_http_method(http_method: str, served: Sequence[str]) -> Fault:
    """`served` are those that the path has, but for OPTIONS."""
    message = f"{http_method} is not served here, only {', '.join(served)}"
    return Fault(405, Code.UNIMPLEMENTED, "METHOD_NOT_ALLOWED", message, (allow(served),))


def allow(served: Sequence[str]) -> tuple[str, str]:
    """The header that names the methods of a path, which always has OPTIONS, too."""
    return "allow", ", ".join([*served, "OPTIONS"])


def denied(message: str) -> Fault:
    return Fault(403, Code.PERMISSION_DENIED, "PERMISSION_DENIED", message)
