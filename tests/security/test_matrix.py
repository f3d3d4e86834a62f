"""Every method, by every kind of caller, under every kind of parent, each with its code of `matrix.py`."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from opservice._proto.opservice.v1 import producer_service_pb2 as producer_pb
from opservice._proto.opservice.v1.producer_service_pb2 import StartRequest
from opservice.auth.policy import new_token
from opservice.methods.admission import Admission, AdmissionLimits
from opservice.methods.call import Call
from opservice.methods.method_policy import METHOD_POLICIES
from opservice.methods.pipeline import Pipeline
from opservice.methods.registry import Method
from security.calls import (
    EVERY_METHOD,
    HEALTH,
    OF_IDS,
    OF_NOTHING,
    OF_OPERATION,
    OF_PARENT,
    REFLECTION,
    Metadata,
    PendingCall,
    request_for,
)
from security.matrix import (
    ALL,
    CERTIFICATES,
    CORE,
    CREATORS,
    EXPECTED,
    HERE,
    NOBODY,
    PARENTS,
    TOKENS,
    Caller,
)
from security.rest_calls import ROUTES, RestRequest, outcomes, requests_of, rest_request, route_name
from support.certificates import Authority, Pair, client_context
from support.client import TOKEN, Client, open_channel, refusal_from
from support.identities import (
    Issuer,
    TokenFile,
    bearer,
    calling_with,
    client_certificate,
    make_key,
    with_another_signature,
    with_claims,
    write_policy,
)
from support.postgres import PostgresServer
from support.server import ServerProcess, serving

CODES = {
    grpc.StatusCode.UNAUTHENTICATED: "UNAUTH",
    grpc.StatusCode.PERMISSION_DENIED: "DENIED",
}
CHANGES = [
    "/yandex.cloud.operation.OperationService/Cancel",
    "/opservice.v1.OperationRecordService/Delete",
    "/opservice.v1.ProducerService/Renew",
    "/opservice.v1.ProducerService/Complete",
    "/opservice.v1.ProducerService/Fail",
    "/google.longrunning.Operations/CancelOperation",
    "/google.longrunning.Operations/DeleteOperation",
]
LISTS = [
    "/opservice.v1.OperationRecordService/List",
    "/google.longrunning.Operations/ListOperations",
]
_ID_ALONE = 30
"""More bytes than an id and what is around it; a record has more."""
Target = tuple[str, str]
"""A method and a parent."""


@dataclass(frozen=True)
class Site:
    """A server, its admin, and for each caller a connection and what its calls bring."""

    server: ServerProcess
    admin: Client
    callers: Mapping[str, tuple[grpc.Channel, Metadata]]
    tls: Mapping[str, ssl.SSLContext] = field(default_factory=dict)
    """By HTTP, of those who need it."""

    def prepare_rest(
        self, caller: Caller, created_by: str
    ) -> tuple[list[RestRequest], list[Target]]:
        """A request of each route and parent, and which method and parent that is."""

        def start(parent: str) -> str:
            request = StartRequest(parent=parent, created_by=created_by, lease_token=TOKEN)
            id_: str = self.admin.producer.Start(request).operation.id
            return id_

        requests: list[RestRequest] = []
        targets: list[Target] = []
        for parent in caller.parents:
            common = start(parent)
            for route, _ in requests_of(common, parent):
                changes = EXPECTED[route.method].get(caller.role(parent)) == "OK"
                id_ = common
                if changes and route.method in CHANGES:
                    id_ = start(parent)
                    if "Delete" in route.method:  # only what is done can be deleted
                        self.admin.complete(id_, lease_token=TOKEN)
                request = rest_request(route, id_, parent)
                assert request is not None
                requests.append(request)
                targets.append((route.method, parent))
        return requests, targets

    def prepare(self, caller: Caller, created_by: str) -> dict[Target, str]:
        """The operations to call the methods with, by method and parent: one for each parent, and another
        for each method that will change it.
        """

        def start(parent: str) -> Any:
            request = StartRequest(parent=parent, created_by=created_by, lease_token=TOKEN)
            return self.admin.producer.Start.future(request)

        common = {parent: start(parent) for parent in caller.parents}
        own = {
            (method, parent): start(parent)
            for method in CHANGES
            for parent in caller.parents
            if EXPECTED[method].get(caller.role(parent)) == "OK"
        }
        ids = {target: call.result().operation.id for target, call in own.items()}
        for (method, _), id_ in ids.items():
            if "Delete" in method:  # only what is done can be deleted
                self.admin.complete(id_, lease_token=TOKEN)
        for parent, call in common.items():
            for method in (*OF_OPERATION, *OF_IDS):
                ids.setdefault((method, parent), call.result().operation.id)
            for method in OF_PARENT:
                ids[method, parent] = ""
        return ids | {(method, ""): "" for method in OF_NOTHING}


def credentials(issuer: Issuer, static: TokenFile) -> Mapping[str, Metadata]:
    """What the calls of each of TOKENS bring."""
    past = int(time.time()) - 3600
    good = issuer.token("nobody", "admin:*")
    other = make_key("other")
    again = make_key(issuer.keys[0].id)
    broken = {
        "expired": issuer.token("nobody", "admin:*", exp=past),
        "wrong audience": issuer.token("nobody", "admin:*", aud="another"),
        "wrong issuer": issuer.token("nobody", "admin:*", iss="https://another.example"),
        "algorithm none": issuer.unsigned("nobody", "admin:*"),
        "HS256 with the public key": issuer.signed_with_the_public_key("nobody", "admin:*"),
        "tampered claims": with_claims(
            issuer.token("nobody", "viewer:elsewhere"), opservice=["admin:*"]
        ),
        "tampered signature": with_another_signature(good),
        "unknown key": issuer.token("nobody", "admin:*", key=other),
        "another key by a known name": issuer.token("nobody", "admin:*", key=again),
        "subject that is no text": issuer.token(7, "admin:*"),
        "empty subject": issuer.token("", "admin:*"),
        "grants that are none": issuer.token("nobody", "admin:*", "king:*"),
        "no token at all": "",
        "expired static token": static.add(
            "late", "admin:*", expires=datetime.fromtimestamp(past, UTC)
        ),
        "unknown static token": new_token(),
        **{
            f"without {claim}": issuer.token("nobody", "admin:*", without=[claim])
            for claim in ("exp", "aud", "iss", "sub")
        },
    }
    made: dict[str, Metadata] = {who: bearer(token) for who, token in broken.items()}
    made["anonymous"] = ()
    made["another scheme"] = (("authorization", f"Basic {good}"),)
    made["two tokens"] = (*bearer(good), *bearer(good))
    made["static token"] = bearer(static.add("static token", *TOKENS["static token"].grants))
    made["key RS256"] = bearer(
        issuer.token("key RS256", *TOKENS["key RS256"].grants, key=issuer.keys[1])
    )
    for who, caller in TOKENS.items():
        if caller is not NOBODY and who not in made:
            made[who] = bearer(issuer.token(who, *caller.grants))
    assert made.keys() == TOKENS.keys()
    return made


@contextmanager
def site_of_tokens(directory: Path, database: str) -> Iterator[Site]:
    issuer = Issuer(directory, make_key("first"), make_key("second", "RS256"))
    static = TokenFile(directory)
    brought = credentials(issuer, static)
    # Everybody calls from one address, and many have nothing that is valid.
    settings = {
        **issuer.settings,
        "tokens": static.file,
        "failed_auth_rate": 0,
        "http_listen": "127.0.0.1:0",
    }
    with serving(directory, database, **settings) as server:
        admin = calling_with(server.channel(), issuer.token("root", "admin:*"))
        channel = server.channel()
        yield Site(server, admin, {who: (channel, brought[who]) for who in brought})


@pytest.fixture(scope="module")
def sqlite_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("matrix")
    with site_of_tokens(directory, f"sqlite:///{directory}/operations.db") as site:
        yield site


@pytest.fixture(scope="module")
def postgresql_site(
    tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer
) -> Iterator[Site]:
    with site_of_tokens(tmp_path_factory.mktemp("matrix"), postgres.create_database()) as site:
        yield site


@pytest.fixture(scope="module")
def certificates_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("matrix")
    issuer = Issuer(directory)
    ours, others = Authority(directory), Authority(directory, "others")
    pair = ours.issue()
    policy = {
        "spiffe://example/root": ["admin:*"],
        "spiffe://example/editor": [f"editor:{HERE}"],
        "producer.example": [f"producer:{HERE}/*"],
    }
    settings = {
        **issuer.settings,
        "tls_cert": pair.certificate,
        "tls_key": pair.key,
        "tls_client_ca": ours.certificate,
        "policy": write_policy(directory / "policy.yaml", policy),
        "http_listen": "127.0.0.1:0",
    }

    def shown(name: str, *uris: str, dns: str = "", by: Authority = ours) -> Pair:
        return client_certificate(by, directory / name, uris, [dns] if dns else [])

    editor = shown("editor", "spiffe://example/editor", dns="producer.example")
    viewer = bearer(issuer.token("viewer", f"viewer:{HERE}"))
    expired = bearer(issuer.token("nobody", "admin:*", exp=int(time.time()) - 3600))
    who: dict[str, tuple[Pair | None, Metadata]] = {
        "certificate, by its URI": (editor, ()),
        "certificate, by its DNS name": (shown("dns", dns="producer.example"), ()),
        "certificate without grants": (shown("stranger", "spiffe://example/stranger"), ()),
        "certificate of the creator": (shown("creator", "spiffe://example/creator"), ()),
        "certificate without names": (shown("nameless"), ()),
        "certificate and a token": (editor, viewer),
        "certificate and an expired token": (editor, expired),
        "certificate of another authority": (
            shown("forged", "spiffe://example/root", by=others),
            (),
        ),
        "no certificate": (None, bearer(issuer.token("nobody", "admin:*"))),
    }
    with ExitStack() as opened:
        server = opened.enter_context(
            serving(directory, f"sqlite:///{directory}/operations.db", **settings)
        )

        def channel(pair: Pair | None) -> grpc.Channel:
            files = [] if pair is None else [pair.key.read_bytes(), pair.certificate.read_bytes()]
            return opened.enter_context(
                open_channel(server.address, ours.certificate.read_bytes(), *files)
            )

        admin = Client(channel(shown("root", "spiffe://example/root")))
        callers = {name: (channel(pair), has) for name, (pair, has) in who.items()}
        contexts = {name: client_context(ours, pair) for name, (pair, _) in who.items()}
        yield Site(server, admin, callers, contexts)


EVERYBODY = [
    *(("sqlite", who) for who in TOKENS),
    *(("postgresql", who) for who in CORE),
    *(("certificates", who) for who in CERTIFICATES),
]


@pytest.mark.parametrize(("kind", "who"), EVERYBODY, ids=[" ".join(each) for each in EVERYBODY])
def test_every_method_answers_a_caller_as_the_table_says(
    request: pytest.FixtureRequest, kind: str, who: str
) -> None:
    site: Site = request.getfixturevalue(f"{kind}_site")
    caller = ALL[who]
    ids = site.prepare(caller, CREATORS.get(who, "somebody else"))
    channel, metadata = site.callers[who]

    # At once, since a token of an unknown key waits until the keys were read again; but few lists of
    # a caller are taken at a time.
    second = {target: id_ for target, id_ in ids.items() if target[0] == LISTS[1]}
    answers: dict[Target, str] = {}
    for part in ({target: ids[target] for target in ids.keys() - second.keys()}, second):
        calls = {
            (method, parent): PendingCall(
                channel, method, request_for(method, id_, parent), metadata
            )
            for (method, parent), id_ in part.items()
        }
        answers |= {target: outcome(target[0], call) for target, call in calls.items()}

    expected = {target: caller.expected(*target) for target in ids}
    wrong = {target: answer for target, answer in answers.items() if answer != expected[target]}
    assert wrong == {}
    assert {method for method, _ in answers} == EXPECTED.keys()


_QUICK = {*CORE, "static token", "anonymous", "expired", "two tokens", "no certificate"}
_QUICK |= {"certificate, by its URI", "certificate and a token"}
BY_REST = [
    pytest.param(*each, marks=() if each[1] in _QUICK else pytest.mark.slow, id=" ".join(each))
    for each in EVERYBODY
    if each[0] != "postgresql"
]


@pytest.mark.parametrize(("kind", "who"), BY_REST)
async def test_every_route_answers_a_caller_as_the_table_says(
    request: pytest.FixtureRequest, kind: str, who: str
) -> None:
    site: Site = request.getfixturevalue(f"{kind}_site")
    caller = ALL[who]
    requests, targets = site.prepare_rest(caller, CREATORS.get(who, "somebody else"))
    _, brought = site.callers[who]

    async with httpx.AsyncClient(
        base_url=site.server.http_url, verify=site.tls.get(who, False), trust_env=False, timeout=60
    ) as client:
        told = await outcomes(client, requests, brought)

    wrong = [
        (each.http_method, each.url, answer)
        for each, target, answer in zip(requests, targets, told, strict=True)
        if answer != caller.expected(*target)
    ]
    assert wrong == []


def test_every_route_is_called() -> None:
    called = {route_name(route) for parent in PARENTS for route, _ in requests_of("x", parent)}

    assert called == set(map(route_name, ROUTES))
    assert {route.method for route in ROUTES} == {
        method for method in EXPECTED if HEALTH not in method and method not in REFLECTION
    }


def outcome(method: str, call: PendingCall) -> str:
    """In the words of the table."""
    try:
        answer = call.answer()
    except grpc.RpcError as error:
        code = refusal_from(error).code
        return CODES.get(code, code.name)
    if method in OF_IDS and len(answer) < _ID_ALONE:
        return "MISSING"
    return "NOTHING" if method in LISTS and not answer else "OK"


def test_the_table_has_every_method_that_the_server_serves(sqlite_site: Site) -> None:
    channel, metadata = sqlite_site.callers["no grants"]

    assert set(served_methods(channel, metadata)) == EXPECTED.keys()
    assert METHOD_POLICIES.keys() == EXPECTED.keys() == set(EVERY_METHOD)


def served_methods(channel: grpc.Channel, metadata: Metadata) -> Iterator[str]:
    """As reflection tells them."""

    def ask(question: ServerReflectionRequest) -> ServerReflectionResponse:
        answer = PendingCall(channel, REFLECTION[0], question, metadata).answer()
        return ServerReflectionResponse.FromString(answer)

    for service in ask(ServerReflectionRequest(list_services="")).list_services_response.service:
        question = ServerReflectionRequest(file_containing_symbol=service.name)
        for serialized in ask(question).file_descriptor_response.file_descriptor_proto:
            file = FileDescriptorProto.FromString(serialized)
            for each in file.service:
                if f"{file.package}.{each.name}" == service.name:
                    yield from (f"/{service.name}/{method.name}" for method in each.method)


def test_a_method_of_which_nobody_said_who_may_call_it_cannot_be_served() -> None:
    async def answer(request: StartRequest, _call: Call) -> StartRequest:
        return request

    start = producer_pb.DESCRIPTOR.services_by_name["ProducerService"].methods_by_name["Start"]
    method = Method(
        "opservice.v1.ProducerService", "Open", StartRequest, StartRequest, answer, start
    )

    with pytest.raises(KeyError, match="Open"):
        Pipeline(Admission(AdmissionLimits(), None), 1).of(method)
