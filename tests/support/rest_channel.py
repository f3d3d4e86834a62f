"""A `grpc.Channel` whose calls are made by REST, so that one and the same test asks by either.

From the request message it makes the path, the query and the body as google/api/http.proto has it. The
JSON of the answer becomes a message again, and the body of an error what gRPC would have told.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from threading import Lock
from typing import Any, NoReturn, Self, cast
from urllib.parse import quote, urlencode, urlsplit

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from opservice.fronts.http.routes import Route, routes_of
from support.json_messages import message_from_json, message_to_json

HTTP_CODES = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
}
"""As google/rpc/code.proto has them."""

_CODES = {code.name: code for code in grpc.StatusCode}
_NUMBERS = {number: name for name, number in Code.items()}
_VARIABLE = re.compile(r"\{(?P<field>\w+)(?:=(?P<pattern>[^}]+))?\}")
_UNRESERVED = "-_.~"
_LONGEST_URL = 8_000
"""From there on a request goes by POST, if it may."""
_SECONDS = 60.0
_OWN_HEADERS = {"date", "content-type", "content-length", "cache-control", "vary", "connection"}

Metadata = Sequence[tuple[str, str | bytes]]


class NotByRest(Exception):
    """The request has no form in REST: no path has such a name, or no JSON such a value."""


class RestError(grpc.RpcError, grpc.Call):
    """What gRPC would have told of the error that was answered."""

    def __init__(self, status: Status, metadata: Mapping[str, str]) -> None:
        super().__init__(status.message)
        self._status = status
        self._metadata = dict(metadata)

    def code(self) -> grpc.StatusCode:
        return _CODES[_NUMBERS[self._status.code]]

    def details(self) -> str:
        return self._status.message

    def initial_metadata(self) -> Any:
        return ()

    def trailing_metadata(self) -> Any:
        told = (("grpc-status-details-bin", self._status.SerializeToString()),)
        return (*self._metadata.items(), *told)

    def add_callback(self, callback: Any) -> bool:
        return False

    def cancel(self) -> bool:
        return False

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> Any:
        return None


class RestChannel(grpc.Channel):
    """Calls a server by HTTP. With `events` its streams are server-sent events, else lines of JSON."""

    def __init__(
        self,
        url: str,
        *,
        events: bool = False,
        tls: ssl.SSLContext | None = None,
        metadata: Metadata = (),
    ) -> None:
        """`url` is the server's: http://127.0.0.1:50080. For https give `tls`. Each call has the metadata."""
        self.metadata = metadata
        parts = urlsplit(url)
        self._host, self._port, self._tls = parts.hostname or "", parts.port, tls
        assert (parts.scheme == "https") == (tls is not None)
        self.events = events
        self.threads = ThreadPoolExecutor(64)
        """For calls whose answers are not waited for."""
        self._idle: list[HTTPConnection] = []
        self._lock = Lock()

    def connection(self) -> HTTPConnection:
        """One that is idle, or a new one."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        if self._tls is None:
            return HTTPConnection(self._host, self._port, timeout=_SECONDS)
        return HTTPSConnection(self._host, self._port, timeout=_SECONDS, context=self._tls)

    def give_back(self, connection: HTTPConnection) -> None:
        with self._lock:
            self._idle.append(connection)

    def unary_unary(self, method: str, *_args: Any, **_kwargs: Any) -> Any:
        return _Unary(self, method)

    def unary_stream(self, method: str, *_args: Any, **_kwargs: Any) -> Any:
        return _Streaming(self, method)

    def stream_unary(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise NotByRest("a stream of requests")

    stream_stream = stream_unary

    def subscribe(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise NotImplementedError

    unsubscribe = subscribe

    def close(self) -> None:
        self.threads.shutdown(wait=False)
        with self._lock:
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Callable:
    """A method, which is called with a request message."""

    def __init__(self, channel: RestChannel, path: str) -> None:
        self._channel = channel
        self._path = path

    def _method(self) -> tuple[MethodDescriptor, list[Route]]:
        service, _, name = self._path[1:].partition("/")
        try:
            descriptor = descriptor_pool.Default().FindServiceByName(service)
            method: MethodDescriptor = descriptor.methods_by_name[name]
        except KeyError as error:
            raise NotByRest(self._path) from error
        routes = routes_of(method, self._path)
        if not routes:
            raise NotByRest(self._path)
        return method, routes

    def _send(
        self,
        connection: HTTPConnection,
        request: Message,
        timeout: float | None,
        metadata: Metadata,
        accept: str = "",
    ) -> HTTPResponse:
        _, routes = self._method()
        http_method, url, body = transcoded(routes, request)
        # None but those that are needed: calls have their headers counted.
        connection.putrequest(http_method, url, skip_accept_encoding=True)
        for name, value in (*self._channel.metadata, *metadata):
            connection.putheader(name, value)
        if accept:
            connection.putheader("Accept", accept)
        if timeout is not None:
            connection.putheader("X-Server-Timeout", f"{timeout:f}")
        if body is not None:
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        return connection.getresponse()

    def _answer(self, value: Any) -> Any:
        method, _ = self._method()
        return message_from_json(value, GetMessageClass(method.output_type))


class _Unary(_Callable):
    def __call__(
        self, request: Message, timeout: float | None = None, metadata: Metadata | None = None
    ) -> Any:
        return self.with_call(request, timeout, metadata)[0]

    def with_call(
        self, request: Message, timeout: float | None = None, metadata: Metadata | None = None
    ) -> tuple[Any, Any]:
        connection = self._channel.connection()
        try:
            response = self._send(connection, request, timeout, metadata or ())
            body = response.read()
        except (OSError, HTTPException) as error:
            connection.close()
            raise _unavailable(error) from error
        except NotByRest:
            connection.close()
            raise
        self._channel.give_back(connection)
        headers = {name.lower(): value for name, value in response.getheaders()}
        if response.status != 200:
            raise _error(response.status, body, headers)
        assert headers["content-type"] == "application/json"
        return self._answer(json.loads(body)), _Answered(headers)

    def future(
        self, request: Message, timeout: float | None = None, metadata: Metadata | None = None
    ) -> Future[Any]:
        return self._channel.threads.submit(self, request, timeout, metadata)


class _Answered:
    """The call whose answer has come."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        told = {name: value for name, value in headers.items() if name not in _OWN_HEADERS}
        self._trailers = {k: v for k, v in told.items() if k == "x-request-id"}
        self._headers = {k: v for k, v in told.items() if k not in self._trailers}

    def initial_metadata(self) -> Any:
        return tuple(self._headers.items())

    def trailing_metadata(self) -> Any:
        return tuple(self._trailers.items())


class _Streaming(_Callable):
    def __call__(
        self, request: Message, timeout: float | None = None, metadata: Metadata | None = None
    ) -> _Stream:
        return _Stream(self._messages(request, timeout, metadata or ()))

    def _messages(
        self, request: Message, timeout: float | None, metadata: Metadata
    ) -> Iterator[Any]:
        events = self._channel.events
        connection = self._channel.connection()
        try:
            accept = "text/event-stream" if events else ""
            response = self._send(connection, request, timeout, metadata, accept)
            headers = {name.lower(): value for name, value in response.getheaders()}
            if response.status != 200:
                raise _error(response.status, response.read(), headers)
            assert headers["content-type"] == (accept or "application/x-ndjson")
            yield connection  # for who may end the call
            for value in _events(response) if events else map(json.loads, response):
                if value.keys() == {"error"}:
                    raise _error(None, json.dumps(value).encode(), headers)
                yield self._answer(value)
        except (OSError, HTTPException) as error:
            raise _unavailable(error) from error
        finally:
            connection.close()


class _Stream:
    """The responses, which may be given up."""

    def __init__(self, messages: Iterator[Any]) -> None:
        self._messages = messages
        self._connection: HTTPConnection | None = None

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> Any:
        if self._connection is None:
            self._connection = next(self._messages)
        return next(self._messages)

    def cancel(self) -> None:
        if self._connection is not None and self._connection.sock is not None:
            self._connection.sock.shutdown(socket.SHUT_RDWR)


def transcoded(routes: Sequence[Route], request: Message) -> tuple[str, str, bytes | None]:
    """The HTTP method, path with query, and body of a request; by the first route that has its path."""
    if not isinstance(request, Message):
        raise NotByRest("bytes")
    try:
        fields = message_to_json(request)
    except ValueError as error:
        raise NotByRest(str(error)) from error
    found = [(route, path) for route in routes if (path := _path(route, request)) is not None]
    if not found:
        raise NotByRest(f"no path for {request}")
    made = [_with_fields(route, path, fields, request) for route, path in found]
    short = (each for each in made if len(each[1]) < _LONGEST_URL)
    return next(short, made[-1])


def _path(route: Route, request: Message) -> str | None:
    path, at = "", 0
    for variable in _VARIABLE.finditer(route.template.text):
        value, pattern = getattr(request, variable["field"]), variable["pattern"] or "*"
        safe = _UNRESERVED if pattern == "*" else f"{_UNRESERVED}/"
        encoded = quote(value, safe=safe)
        expected = re.escape(pattern).replace(r"\*\*", ".+").replace(r"\*", "[^/]+")
        if re.fullmatch(expected, encoded) is None:
            return None
        path += route.template.text[at : variable.start()] + encoded
        at = variable.end()
    return path + route.template.text[at:]


def _with_fields(
    route: Route, path: str, fields: Mapping[str, Any], request: Message
) -> tuple[str, str, bytes | None]:
    named = cast("Any", request.DESCRIPTOR).fields_by_name
    in_path = {named[field].json_name for field in route.template.fields}
    rest = {name: value for name, value in fields.items() if name not in in_path}
    if route.takes_body:
        return route.http_method, path, json.dumps(rest).encode()
    query = urlencode([(name, each) for name, value in rest.items() for each in _texts(value)])
    return route.http_method, f"{path}?{query}" if query else path, None


def _texts(value: Any) -> list[str]:
    if isinstance(value, bool):
        return [str(value).lower()]
    return [str(each) for each in (value if isinstance(value, list) else [value])]


def _events(response: HTTPResponse) -> Iterator[Any]:
    """The data of server-sent events, which all have an id, but for that of a failure."""
    event: dict[str, str] = {}
    for line in response:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name and not line.startswith(b":"):
            event[name] = value
        elif not name and event:
            assert event.keys() <= {"id", "event", "data"}
            assert ("id" in event) != (event.get("event") == "failure")
            yield json.loads(event["data"])
            event = {}


def _error(http_code: int | None, body: bytes, headers: Mapping[str, str]) -> RestError:
    told = json.loads(body)
    if told.keys() == {"error"}:
        told = told["error"]
        assert http_code in {None, told["code"]}
        http_code = told["code"]
        told["code"] = Code.Value(told.pop("status"))
    name = _NUMBERS[told["code"]]
    assert http_code == HTTP_CODES[name], f"{name} came with {http_code}"
    status: Status = message_from_json(told, Status)
    metadata = {k: v for k, v in headers.items() if k == "x-request-id"}
    return RestError(status, metadata)


def _unavailable(error: Exception) -> RestError:
    return RestError(Status(code=Code.UNAVAILABLE, message=str(error)), {})
