"""Every route of the server, with a request for it, made by plain HTTP."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

import httpx
from google.protobuf.json_format import MessageToDict

from opservice.fronts.http.routes import Route, routes_of
from opservice.methods.services import FILES
from security.calls import BY_NAME, GOOGLE, RECORDS, Metadata, full_name, request_for

ROUTES: Sequence[Route] = [
    route
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
    for route in routes_of(method, f"/{service.full_name}/{method.name}")
]
"""As the server makes them, of the annotations: one that is new gets its row without being asked for."""

STREAMS = {f"{RECORDS}/Watch", f"{RECORDS}/BatchWatch"}
EVENTS = {"accept": "text/event-stream"}
_VARIABLE = re.compile(r"\{(\w+)(=[^}]*)?\}")
_LISTED = {
    f"{RECORDS}/List": "operationRecords",
    f"{RECORDS}/BatchGet": "operationRecords",
    f"{GOOGLE}/ListOperations": "operations",
}
_AT_ONCE, _LISTS_AT_ONCE = 50, 4
_SECONDS = 60


@dataclass(frozen=True)
class RestRequest:
    method: str
    """What it calls, as gRPC names it."""
    http_method: str
    url: str
    body: dict[str, Any] | None
    headers: dict[str, str] = field(default_factory=dict)

    def sent_by(self, client: httpx.AsyncClient | httpx.Client, brought: Metadata) -> httpx.Request:
        headers = [*((name, value.strip()) for name, value in brought), *self.headers.items()]
        content = None
        if self.body is not None:
            content = json.dumps(self.body).encode()
            headers.append(("content-type", "application/json"))
        return client.build_request(self.http_method, self.url, headers=headers, content=content)


def route_name(route: Route) -> str:
    return f"{route.http_method} {route.template.text}"


def rest_request(route: Route, operation_id: str, parent: str) -> RestRequest | None:
    """None when the route has no place for this parent."""
    message = request_for(route.method, operation_id, parent)
    fields = MessageToDict(message, preserving_proto_field_name=True)
    if route.method in BY_NAME and "{name=operations/" in route.template.text:
        fields["name"] = full_name("", operation_id)  # which every operation has
    if route.template.text.endswith("{name=operations}") and not parent:
        fields["name"] = "operations"
    in_path = {name: fields.pop(name, "") for name in route.template.fields}

    def filled(variable: re.Match[str]) -> str:
        return quote(in_path[variable[1]], safe="/" if variable[2] else "")

    url = _VARIABLE.sub(filled, route.template.text)
    if route.template.match(url) != in_path:
        return None
    headers = EVENTS if route.method in STREAMS else {}
    if route.takes_body:
        return RestRequest(route.method, route.http_method, url, fields, headers)
    query = urlencode({name: _as_text(value) for name, value in fields.items()}, doseq=True)
    return RestRequest(
        route.method, route.http_method, f"{url}?{query}" if query else url, None, headers
    )


def _as_text(value: Any) -> Any:
    return value if isinstance(value, str | list) else json.dumps(value)


def requests_of(operation_id: str, parent: str) -> Iterator[tuple[Route, RestRequest]]:
    """One for each route that has a place for the parent."""
    for route in ROUTES:
        request = rest_request(route, operation_id, parent)
        if request is not None:
            yield route, request


@dataclass(frozen=True)
class RestAnswer:
    """The first event or line of a stream, or the whole of another response."""

    status: int
    headers: httpx.Headers
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> Any:
        """In the form of either family."""
        return self.json.get("error", self.json)

    @property
    def outcome(self) -> str:
        """In the words of the table of matrix.py."""
        words = {401: "UNAUTH", 403: "DENIED", 404: "NOT_FOUND"}
        return words.get(self.status, str(self.status))


async def answered(
    client: httpx.AsyncClient, request: RestRequest, brought: Metadata = ()
) -> RestAnswer:
    response = await client.send(request.sent_by(client, brought), stream=True)
    try:
        text = ""
        if response.status_code == 200 and request.method in STREAMS:
            async for line in response.aiter_lines():
                text = line.removeprefix("data: ")
                if text.startswith("{"):
                    break
        else:
            text = (await response.aread()).decode()
    finally:
        await response.aclose()
    return RestAnswer(response.status_code, response.headers, text)


async def outcomes(
    client: httpx.AsyncClient, requests: Sequence[RestRequest], brought: Metadata
) -> list[str]:
    """In the words of the table, of requests that are made at once."""
    calls, lists = asyncio.Semaphore(_AT_ONCE), asyncio.Semaphore(_LISTS_AT_ONCE)

    async def outcome(request: RestRequest) -> str:
        listed = _LISTED.get(request.method)
        async with calls if listed is None else lists:
            try:
                answer = await answered(client, request, brought)
            except (httpx.NetworkError, httpx.RemoteProtocolError):
                return "UNAVAILABLE"
        if answer.status != 200:
            return answer.outcome
        if "removedId" in answer.text:
            return "MISSING"
        if listed is not None and not answer.json[listed]:
            return "MISSING" if "notFoundIds" in answer.json else "NOTHING"
        return "OK"

    return await asyncio.gather(*map(outcome, requests))
