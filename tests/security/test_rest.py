"""By HTTP nothing shows, and nothing changes, that would not by gRPC. Of browsers there is more to fear."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from opservice._proto.opservice.v1.operation_record_service_pb2 import ListOperationRecordsRequest
from opservice._proto.opservice.v1.producer_service_pb2 import StartRequest
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import CancelOperationRequest
from opservice.auth.authenticator import LEEWAY_SECONDS
from opservice.domain.errors import StartupError
from opservice.methods.method_policy import METHOD_POLICIES
from opservice.runtime.settings import Settings
from security.calls import OF_OPERATION, Metadata
from security.rest_calls import ROUTES, RestRequest, requests_of, rest_request, route_name
from support.client import TOKEN, Client
from support.identities import (
    Issuer,
    TokenFile,
    bearer,
    calling_with,
    with_another_signature,
    write_policy,
)
from support.server import ServerProcess, eventually, serving
from support.tools import stable_port

MINE, THEIRS = "folders/mine", "folders/theirs"
MISSING = "ops00000000000000000"
_TOLD_APART = {"date", "x-request-id"}


@dataclass(frozen=True)
class Site:
    """Ann and Bob are two tenants. Eve has a static token, Joe a role that the policy gives."""

    server: ServerProcess
    issuer: Issuer
    static: TokenFile
    policy: Path
    tokens: dict[str, str]
    root: Client
    http: httpx.Client
    audit_log: Path

    def send(self, request: RestRequest, brought: Metadata) -> httpx.Response:
        return self.http.send(request.sent_by(self.http, brought))

    def audited(self, request_id: str) -> dict[str, Any]:
        lines = map(json.loads, self.audit_log.read_text().splitlines())
        (line,) = [line for line in lines if line.get("request_id") == request_id]
        assert isinstance(line, dict)
        return line


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("rest")
    issuer, static = Issuer(directory), TokenFile(directory)
    tokens = {
        "ann": issuer.token("ann", f"producer:{MINE}/*", f"editor:{MINE}/*"),
        "eve": static.add("eve", f"viewer:{MINE}"),
        "joe": issuer.token("joe"),
    }
    policy = write_policy(directory / "policy.yaml", {"joe": [f"viewer:{MINE}"]})
    settings = {
        **issuer.settings,
        "tokens": static.file,
        "policy": policy,
        "audit_log": directory / "audit.log",
        "log_level": "debug",
        "http_listen": "127.0.0.1:0",
        "failed_auth_rate": 0,
    }
    database = f"sqlite:///{directory}/operations.db"
    with serving(directory, database, **settings) as server:
        root = calling_with(server.channel(), issuer.token("root", "admin:*"))
        with httpx.Client(base_url=server.http_url, trust_env=False, timeout=60) as http:
            yield Site(server, issuer, static, policy, tokens, root, http, directory / "audit.log")


@pytest.fixture(scope="module")
def hidden(site: Site) -> str:
    """An operation that Ann may not see."""
    return site.root.started(parent=THEIRS, lease_token=TOKEN)


def told(response: httpx.Response) -> list[object]:
    """All of it, but for what is never twice the same."""
    headers = [each for each in response.headers.items() if each[0] not in _TOLD_APART]
    return [response.status_code, headers, response.text]


OF_AN_OPERATION = [route for route in ROUTES if route.method in OF_OPERATION]
_PARENTS = (THEIRS, MINE, "")


@pytest.mark.parametrize("route", OF_AN_OPERATION, ids=map(route_name, OF_AN_OPERATION))
def test_what_may_not_be_seen_answers_like_what_does_not_exist(
    site: Site, hidden: str, route: Any
) -> None:
    who = (*bearer(site.tokens["ann"]), ("x-request-id", "the-same"))
    takes_conditions = route.http_method == "GET" and not METHOD_POLICIES[route.method].writes
    asked = 0
    for parent in _PARENTS:
        for more, status in (
            ((), 404),
            ((("prefer", "wait=20"),), 404),
            ((("if-none-match", '"1", *'),), 404 if takes_conditions else 412),
        ):
            requests = [rest_request(route, id_, parent) for id_ in (hidden, MISSING)]
            answers = [site.send(each, (*who, *more)) for each in requests if each is not None]
            if not answers:
                continue
            of_hidden, of_missing = answers
            asked += 1
            assert of_hidden.status_code == status
            assert repr(told(of_hidden)).replace(hidden, MISSING) == repr(told(of_missing))
    assert asked


WITHOUT_A_CALL = [
    ("OPTIONS", {}),
    ("HEAD", {}),
    ("PUT", {}),
    ("PATCH", {"content-type": "text/plain"}),
    ("TRACE", {}),
    ("POST", {"content-type": "text/plain"}),
    ("GET", {"content-encoding": "gzip"}),
    ("OPTIONS", {"origin": "https://evil.example", "access-control-request-method": "POST"}),
]


@pytest.mark.parametrize(("http_method", "headers"), WITHOUT_A_CALL, ids=str)
def test_who_is_nobody_learns_nothing_from_how_http_is_answered(
    site: Site, hidden: str, http_method: str, headers: dict[str, str]
) -> None:
    def everything(id_: str) -> list[list[object]]:
        answers = [
            site.http.request(http_method, request.url, headers={"x-request-id": "a", **headers})
            for parent in _PARENTS
            for _, request in requests_of(id_, parent)
        ]
        assert all(not each.is_success or http_method == "OPTIONS" for each in answers
                   if "/endpoints" not in str(each.url))  # fmt: skip
        assert [name for each in answers for name in each.headers if "control-allow" in name] == []
        return [told(each) for each in answers]

    assert repr(everything(hidden)).replace(hidden, MISSING) == repr(everything(MISSING))


TWICE = b"Authorization: Bearer %s\r\n" * 2
BROKEN = {
    "two headers": TWICE,
    "no ASCII": b"Authorization: Bearer \xe9%.0s%.0s\r\n",
    "tokens with a comma": b"Authorization: Bearer %s, Bearer %s\r\n",
    "a folded header": b"Authorization:\r\n Bearer %s%.0s\r\n",
    "a trailer": b"Transfer-Encoding: chunked\r\n\r\n0\r\nAuthorization: Bearer %s%.0s\r\n",
    "a cookie": b"Cookie: authorization=Bearer %s%.0s\r\n",
    "gRPC's name": b"Grpc-Metadata-Authorization: Bearer %s%.0s\r\n",
}


@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN)
def test_credentials_are_one_header_and_nothing_else(site: Site, sent: bytes) -> None:
    token = site.tokens["ann"].encode()
    place = urlsplit(site.server.http_url)
    head = b"POST /operations/x:cancel HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    head += sent % (token, token) + b"\r\n"
    with socket.create_connection((place.hostname or "", place.port or 0)) as connection:
        connection.sendall(head)
        answer = connection.recv(1 << 16)
    assert answer.split()[1] in {b"401", b"400"}
    assert token not in answer


def test_the_audit_log_tells_as_much_by_http_as_by_grpc(site: Site) -> None:
    ann = site.tokens["ann"]
    start = {"parent": MINE}
    for path, body, who in (
        ("/v1/producer/operations:start", start, ann),
        ("/v1/producer/operations:start", start, site.tokens["eve"]),
        (f"/operations/{MISSING}:cancel", {}, ann),
    ):
        name = f"audit-{time.monotonic_ns()}"
        headers = dict([*bearer(who), ("x-request-id", f"{name}-http")])
        site.http.post(path, json=body, headers=headers)
        channel = site.server.client.channel
        metadata = [*bearer(who), ("x-request-id", f"{name}-grpc")]
        call = by_grpc(channel, path, metadata)
        assert call.code() is not None
        by_rest, by_call = (site.audited(f"{name}-{front}") for front in ("http", "grpc"))
        assert by_rest.keys() == by_call.keys()
        same = ("method", "code", "subject", "authenticated_by", "parent", "changed")
        assert [by_rest.get(key) for key in same] == [by_call.get(key) for key in same]
        assert by_rest["peer"].startswith("ipv4:127.0.0.1:")


def by_grpc(channel: Any, path: str, metadata: Metadata) -> Any:
    client: Any = Client(channel)
    if "start" in path:
        call = client.producer.Start.future(StartRequest(parent=MINE), metadata=metadata)
    else:
        request = CancelOperationRequest(operation_id=MISSING)
        call = client.operations.Cancel.future(request, metadata=metadata)
    call.exception()
    return call


def test_no_secret_reaches_the_log_the_audit_log_or_an_error(
    site: Site, hidden: str, tmp_path: Path
) -> None:
    good = site.tokens["ann"]
    other = Issuer(tmp_path)
    tokens = [
        *site.tokens.values(),
        with_another_signature(good),
        other.token("ann", exp=int(time.time()) - 3600),
        "opservice_0123456789-0123456789-0123456789-012",
    ]
    errors = []
    for token in tokens:
        for _, request in requests_of(hidden, THEIRS):
            if request.method.endswith(("/Start", "/Renew", "/Get", "/CancelOperation")):
                errors.append(site.send(request, bearer(token)).text)
        for path in (f"/v1/producer/operations/{hidden}:renew", "/operations", f"/{token}"):
            query = {"leaseToken": TOKEN, "lease_token": TOKEN, "x": "y"}
            errors.append(site.http.post(path, params=query, headers=dict(bearer(token))).text)
        body = {"leaseToken": [TOKEN], "operationId": TOKEN}
        path = f"/v1/producer/operations/{hidden}:renew"
        site.http.post(path, json=body, headers=dict(bearer(token)))

    parts = {part for secret in [*tokens, TOKEN] for part in secret.split(".") if len(part) > 10}
    logs = site.server.stderr + site.audit_log.read_text()
    assert [part for part in parts if part in logs] == []
    paths = {
        part for token in tokens for part in token.split(".")
    }  # a path is told as it was asked
    assert [p for p in parts - paths for error in errors if p in error] == []
    assert site.server.log(level="error") == []


class Events:
    """Server-sent events of a stream that is open."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()

    def next(self) -> tuple[str, Any] | None:
        """The kind and the data of the next one; None at the end of the stream."""
        kind = "message"
        for line in self._lines:
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            if name == "data":
                return kind, json.loads(value)
        return None


@contextmanager
def watching(site: Site, token: str, id_: str) -> Iterator[Events]:
    headers = dict([*bearer(token), ("accept", "text/event-stream")])
    path = f"/v1/operationRecords/{id_}:watch"
    with site.http.stream("GET", path, headers=headers) as response:
        if response.status_code == 200:
            events = Events(response)
            assert events.next() is not None
            yield events
        else:
            yield Events(httpx.Response(200, text=""))


def ends_with(events: Events, reason: str) -> bool:
    kind, data = events.next() or ("", {})
    assert kind == "failure", data
    details = data["error"]["details"]
    assert [each["reason"] for each in details if "reason" in each] == [reason]
    return events.next() is None


def test_a_stream_ends_once_its_caller_may_not_go_on(site: Site) -> None:
    id_ = site.root.started(parent=MINE)
    with (
        watching(site, site.tokens["ann"], id_) as anns,
        watching(site, site.tokens["eve"], id_) as eves,
        watching(site, site.tokens["joe"], id_) as joes,
    ):
        site.static.remove("eve")
        write_policy(site.policy, {"joe": ["viewer:folders/another"]})
        site.server.send_signal(signal.SIGHUP)

        assert ends_with(eves, "CREDENTIALS_INVALID")
        assert ends_with(joes, "OPERATION_NOT_FOUND")
        site.root.complete(id_)
        last = anns.next()
        assert last is not None
        assert last[1]["operation"]["done"] is True


def test_a_stream_ends_when_its_callers_token_expires(site: Site) -> None:
    id_ = site.root.started(parent=MINE)
    for seconds in (2, 10, 30):  # on a busy machine it may expire before it is used
        expires = int(time.time()) + seconds - LEEWAY_SECONDS
        token = site.issuer.token("tim", f"viewer:{MINE}", exp=expires)
        with watching(site, token, id_) as events:
            last = events.next()
            if last is None:
                continue
            assert last[0] == "failure"
            assert last[1]["error"]["status"] == "UNAUTHENTICATED"
            assert events.next() is None
            return
    raise AssertionError("each expired before it was used")


@pytest.fixture(scope="module")
def open_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Where nobody is asked who they are: a browser on this machine may be led to it."""
    directory = tmp_path_factory.mktemp("open")
    settings = {
        "http_listen": "127.0.0.1:0",
        "audit_log": directory / "audit.log",
        "cors_origin": "https://ops.example",
    }
    with serving(directory, f"sqlite:///{directory}/operations.db", **settings) as server:
        yield server


FOREIGN: Sequence[dict[str, str]] = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site", "origin": "http://localhost:1"},
    {"sec-fetch-site": "cross-site", "origin": "null"},
    {"origin": "https://evil.example"},
    {"origin": "https://ops.example.evil.example"},
    {"origin": "http://["},
    {"host": "evil.example"},
    {"host": "evil.example", "origin": "http://evil.example", "sec-fetch-site": "same-origin"},
    {"host": "["},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_page_of_another_site_reads_and_changes_nothing(
    open_site: ServerProcess, headers: dict[str, str]
) -> None:
    client = open_site.client
    id_ = client.started(parent=MINE, lease_token=TOKEN)
    before = len(client.records.List(list_request()).operation_records)
    with httpx.Client(base_url=open_site.http_url, trust_env=False, timeout=60) as http:
        answers = [
            http.send(request.sent_by(http, tuple(headers.items())))
            for parent in (MINE, "")
            for _, request in requests_of(id_, parent)
        ]
    assert {each.status_code for each in answers} == {403}
    assert [name for each in answers for name in each.headers if "control-allow" in name] == []
    assert not client.get(id_).done
    assert len(client.records.List(list_request()).operation_records) == before


def list_request() -> Any:
    return ListOperationRecordsRequest(parent="-", page_size=1000)


def test_a_refused_page_is_in_the_audit_log(open_site: ServerProcess) -> None:
    path = f"{open_site.http_url}/operations/{MISSING}:cancel"
    httpx.post(path, headers={"origin": "https://evil.example"}, trust_env=False)
    log = Path(open_site.settings["audit_log"])
    wanted = {
        "method": "/yandex.cloud.operation.OperationService/Cancel",
        "code": "PERMISSION_DENIED",
    }
    lines = eventually(
        lambda: [
            line for line in map(json.loads, log.read_text().splitlines())
            if wanted.items() <= line.items()
        ]
    )  # fmt: skip
    assert lines[0]["peer"].startswith("ipv4:127.0.0.1:")


@pytest.mark.parametrize("origin", ["https://ops.example", "https://evil.example", "null"])
def test_a_preflight_gives_permission_to_those_that_are_named_alone(
    open_site: ServerProcess, origin: str
) -> None:
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    answers = {
        path: httpx.options(f"{open_site.http_url}{path}", headers=asked, trust_env=False)
        for path in ("/operations/x:cancel", "/operations/y:cancel", "/nothing")
    }
    allowed = {each.headers.get("access-control-allow-origin") for each in answers.values()}
    assert allowed == {origin if origin == "https://ops.example" else None}
    assert len({repr(told(each)) for each in answers.values()}) == 1
    assert all("access-control-allow-credentials" not in each.headers for each in answers.values())


def test_the_openapi_document_is_for_everybody_and_for_pages_that_are_named(
    site: Site, open_site: ServerProcess
) -> None:
    assert httpx.get(f"{site.server.http_url}/openapi.json", trust_env=False).status_code == 200
    allowed = [
        httpx.get(
            f"{open_site.http_url}/openapi.json", headers={"origin": origin}, trust_env=False
        ).headers.get("access-control-allow-origin")
        for origin in ("https://ops.example", "https://evil.example")
    ]
    assert allowed == ["https://ops.example", None]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"cors_origin": ("*",)}, "--cors-origin \\* lets every web page call this server"),
        ({"http_listen": "0.0.0.0:0"}, "--http-listen 0.0.0.0:0 can be reached from other"),
        ({"http_listen": "[::]:0"}, "--http-listen \\[::\\]:0 can be reached from other"),
        ({"cors_origin": ("https://ops.example/",)}, "expected an origin"),
        ({"cors_origin": ("null",)}, "expected an origin"),
    ],
    ids=str,
)
def test_what_would_open_the_server_to_everybody_is_refused(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(StartupError, match=says):
        Settings.of(database="sqlite:///x.db", **settings)


def test_every_origin_is_only_for_callers_with_tokens(tmp_path: Path) -> None:
    tokens: dict[str, Any] = {"tokens": tmp_path / "tokens.yaml", "cors_origin": ("*",)}
    assert Settings.of(database="sqlite:///x.db", **tokens)
    files = {name: tmp_path / name for name in ("tls_cert", "tls_key", "tls_client_ca")}
    with pytest.raises(StartupError, match="browsers send certificates by themselves"):
        Settings.of(database="sqlite:///x.db", **tokens, **files)


def test_a_port_that_is_taken_is_named(tmp_path: Path, sqlite_url: str) -> None:
    with socket.create_server(("127.0.0.1", stable_port())) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        server = ServerProcess(tmp_path, sqlite_url, http_listen=listen)
        assert server.expect_refusal() == 1
    assert f"cannot listen on {listen}: the port is taken" in server.stderr
    assert "--http-listen takes another" in server.stderr
    assert "Traceback" not in server.stderr
