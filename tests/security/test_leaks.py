"""Of another tenant's operations nothing shows: not whether there are any, nor whose, nor how many."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning.operations_proto_pb2 import (
    ListOperationsRequest,
    ListOperationsResponse,
    WaitOperationRequest,
)
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    BatchWatchOperationRecordsRequest,
    DeleteOperationRecordRequest,
    ListOperationRecordsRequest,
    ListOperationRecordsResponse,
    WaitOperationRecordRequest,
    WatchOperationRecordRequest,
)
from opservice.domain.operation import new_id
from security.calls import (
    BY_NAME,
    GOOGLE,
    OF_IDS,
    OF_NOTHING,
    OF_OPERATION,
    PRODUCER,
    RECORDS,
    Metadata,
    PendingCall,
    full_name,
    request_for,
)
from support.client import TOKEN, Client, refusal_from, refused
from support.fixtures import empty_database, without_column
from support.identities import (
    Issuer,
    TokenFile,
    bearer,
    calling_with,
    make_key,
    with_another_signature,
)
from support.server import ServerProcess, eventually, serving

pytestmark = pytest.mark.slow  # many servers are started, and stopped

MINE, THEIRS, SHARED = "folders/mine", "folders/theirs", "folders/shared"
MISSING = "ops00000000000000000"
GRANTS = {
    "root": ["admin:*"],
    "ann": [f"producer:{MINE}/*", f"editor:{MINE}/*", f"producer:{SHARED}"],
    "bob": [f"admin:{THEIRS}/*", f"producer:{SHARED}"],
    "eve": [f"viewer:{MINE}"],
}


@dataclass(frozen=True)
class Site:
    """Where Ann and Bob are two tenants, Root has every right, and Eve may look at what is Ann's."""

    server: ServerProcess
    tokens: dict[str, str]
    clients: dict[str, Client]
    audit_log: Path

    @property
    def root(self) -> Client:
        return self.clients["root"]

    @property
    def ann(self) -> Client:
        return self.clients["ann"]

    @property
    def bob(self) -> Client:
        return self.clients["bob"]

    def channel_of(self, who: str) -> tuple[grpc.Channel, Metadata]:
        return self.server.client.channel, bearer(self.tokens[who])


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("leaks")
    issuer, static = Issuer(directory), TokenFile(directory)
    tokens = {who: issuer.token(who, *grants) for who, grants in GRANTS.items()}
    tokens["eve"] = static.add("eve", *GRANTS["eve"])
    settings = {
        **issuer.settings,
        "tokens": static.file,
        "audit_log": directory / "audit.log",
        "log_level": "debug",
        "max_wait": "10m",
    }
    with serving(directory, empty_database(request, directory), **settings) as server:
        clients = {who: calling_with(server.channel(), token) for who, token in tokens.items()}
        yield Site(server, tokens, clients, settings["audit_log"])


def running(client: Client, parent: str) -> str:
    return client.started(parent=parent, lease_token=TOKEN)


def done(client: Client, parent: str) -> str:
    id_ = running(client, parent)
    client.complete(id_, lease_token=TOKEN)
    return id_


STATES = pytest.mark.parametrize("made", [running, done], ids=["running", "done"])
Made = Callable[[Client, str], str]


def everything_told(site: Site, method: str, request: Any) -> list[object]:
    """All that Ann gets on the wire when she is refused."""
    channel, metadata = site.channel_of("ann")
    call = PendingCall(channel, method, request, (*metadata, ("x-request-id", "the-same")))
    with refused() as refusal:
        call.answer()
    return [
        refusal.code,
        refusal.message,
        sorted(refusal.trailers.items()),
        call.call.initial_metadata(),
    ]


def renamed(told: list[object], id_: str) -> str:
    """With the id of the operation that does not exist in place of this one, of the same length."""
    return repr(told).replace(id_, MISSING)


@STATES
@pytest.mark.parametrize("method", OF_OPERATION)
def test_what_may_not_be_seen_answers_like_what_does_not_exist(
    site: Site, method: str, made: Made
) -> None:
    id_ = made(site.bob, THEIRS)
    # The name's parent is the right one, one of which Ann may see everything, or not told.
    for parent in (THEIRS, MINE, "") if method in BY_NAME else ("",):
        hidden = everything_told(site, method, request_for(method, id_, parent))
        missing = everything_told(site, method, request_for(method, MISSING, parent))

        assert hidden[0] == grpc.StatusCode.NOT_FOUND
        assert renamed(hidden, id_) == repr(missing)


@STATES
@pytest.mark.parametrize("method", OF_IDS)
def test_of_several_what_may_not_be_seen_is_told_like_what_does_not_exist(
    site: Site, method: str, made: Made
) -> None:
    id_ = made(site.bob, THEIRS)
    channel, metadata = site.channel_of("ann")

    def told(of: str) -> bytes:
        return PendingCall(channel, method, request_for(method, of, ""), metadata).answer()

    assert told(id_).replace(id_.encode(), MISSING.encode()) == told(MISSING)
    for payload in ("metadata", "response"):  # nor is it read
        with without_column(site.server.database, payload):
            assert told(id_).replace(id_.encode(), MISSING.encode()) == told(MISSING)


@STATES
@pytest.mark.parametrize("method", OF_OPERATION)
@pytest.mark.parametrize("payload", ["metadata", "response"])
def test_no_payload_is_read_of_what_may_not_be_seen(
    site: Site, method: str, made: Made, payload: str
) -> None:
    """It would take longer, the more there is of it."""
    id_ = made(site.bob, THEIRS)
    request = request_for(method, id_, THEIRS)

    with without_column(site.server.database, payload):
        (code, *_) = everything_told(site, method, request)

    assert code == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("method", BY_NAME)
def test_a_name_with_a_wrong_parent_answers_like_one_of_what_does_not_exist(
    site: Site, method: str
) -> None:
    id_ = running(site.ann, MINE)
    for parent in (THEIRS, SHARED):
        wrong = everything_told(site, method, request_for(method, id_, parent))
        missing = everything_told(site, method, request_for(method, MISSING, parent))

        assert renamed(wrong, id_) == repr(missing)


WAITS: dict[str, Callable[[str], Message]] = {
    f"{RECORDS}/Wait": lambda id_: WaitOperationRecordRequest(
        operation_id=id_, timeout=Duration(seconds=600)
    ),
    f"{RECORDS}/Watch": lambda id_: WatchOperationRecordRequest(operation_id=id_),
    f"{GOOGLE}/WaitOperation": lambda id_: WaitOperationRequest(
        name=full_name("", id_), timeout=Duration(seconds=600)
    ),
}


@pytest.mark.parametrize("method", WAITS)
def test_nobody_waits_for_what_he_may_not_see(site: Site, method: str) -> None:
    mine, theirs = running(site.ann, MINE), running(site.bob, THEIRS)
    channel, metadata = site.channel_of("ann")
    # One that she may wait for, begun earlier: were the other waited for too, this would time out first.
    wait = f"{RECORDS}/Wait"
    allowed = PendingCall(channel, wait, WAITS[wait](mine), metadata)

    with refused() as refusal:
        PendingCall(channel, method, WAITS[method](theirs), metadata).answer()
    assert refusal.code == grpc.StatusCode.NOT_FOUND

    site.ann.complete(mine, lease_token=TOKEN)
    assert b"google.protobuf.Empty" in allowed.answer()
    assert not site.bob.get(theirs).done


@pytest.mark.parametrize("parent", ["-", f"{THEIRS}/followed"])
def test_who_follows_many_is_told_nothing_of_what_they_may_not_see(site: Site, parent: str) -> None:
    hidden = running(site.bob, f"{THEIRS}/followed")
    request = BatchWatchOperationRecordsRequest(parent=parent)
    events = site.ann.records.BatchWatch(request)
    for event in events:
        assert event.record.operation.id != hidden
        if event.HasField("caught_up"):
            break

    site.bob.complete(hidden, lease_token=TOKEN)
    site.root.records.Delete(DeleteOperationRecordRequest(operation_id=hidden))
    own = site.bob.started(parent=f"{THEIRS}/followed", created_by="ann", lease_token=TOKEN)

    assert next(events).record.operation.id == own
    events.cancel()


LISTS: dict[str, Callable[..., tuple[Any, Any]]] = {
    f"{RECORDS}/List": lambda parent, **more: (
        ListOperationRecordsRequest(parent=parent, **more),
        ListOperationRecordsResponse,
    ),
    f"{GOOGLE}/ListOperations": lambda parent, **more: (
        ListOperationsRequest(name=parent, **more),
        ListOperationsResponse,
    ),
}


def page(
    site: Site, who: str, method: str, parent: str, **more: Any
) -> tuple[bytes, list[str], str]:
    """What is on the wire, the ids that it shows, and the token of the page after it."""
    request, response = LISTS[method](parent, **more)
    answer = PendingCall(
        site.server.client.channel, method, request, bearer(site.tokens[who])
    ).answer()
    listed = response.FromString(answer)
    if isinstance(listed, ListOperationRecordsResponse):
        ids = [record.operation.id for record in listed.operation_records]
    else:
        ids = [operation.name.rpartition("/")[2] for operation in listed.operations]
    return answer, ids, listed.next_page_token


def pages(
    site: Site, who: str, method: str, parent: str, filter_: str = ""
) -> tuple[list[bytes], list[str]]:
    """All of them, four operations on each: what is on the wire, and all ids."""
    answers: list[bytes] = []
    ids: list[str] = []
    token = ""
    while not answers or token:
        answer, shown, token = page(
            site, who, method, parent, filter=filter_, page_size=4, page_token=token
        )
        answers.append(answer)
        ids += shown
    return answers, ids


FILTERS = [
    "",
    "done = true",
    'NOT created_by = "ann"',
    'created_by = "bob"',
    'description : "secret"',
    'method : "secret"',
    "error.code = 8",
    'created_at > "2020-01-01T00:00:00Z" OR description : "secret"',
]


def test_lists_are_the_same_with_and_without_operations_that_may_not_be_seen(site: Site) -> None:
    mine, theirs = [], []
    for number in range(3):
        secret = {"parent": THEIRS, "description": "secret", "method": "secret"}
        theirs += [site.bob.started(**secret) for _ in range(3)]
        mine.append(site.ann.started(parent=MINE, description=f"mine {number}"))
        mine.append(site.bob.started(parent=f"{THEIRS}/deep", created_by="ann"))
    site.bob.fail(theirs[0], Status(code=8, message="secret"))
    of_parents = [(parent, "") for parent in (MINE, THEIRS, f"{THEIRS}/deep")]
    filters = [*FILTERS, f'id = "{theirs[0]}"', f'id > "{min(theirs)}"']

    def all_pages() -> dict[tuple[str, str, str], tuple[list[bytes], list[str]]]:
        return {
            (method, parent, filter_): pages(site, "ann", method, parent, filter_)
            for method in LISTS
            for parent, filter_ in [*of_parents, *(("-", each) for each in filters)]
        }

    before = all_pages()
    for id_ in theirs:
        delete(site, id_)

    assert all_pages() == before
    for method in LISTS:
        assert before[method, "-", ""][1][: len(mine)] == mine[::-1]
        assert before[method, THEIRS, ""] == ([b""], [])


def delete(site: Site, id_: str) -> None:
    site.root.cancel(id_)
    site.root.records.Delete(DeleteOperationRecordRequest(operation_id=id_))


@pytest.mark.parametrize("method", LISTS)
def test_a_page_token_of_somebody_else_shows_only_ones_own(site: Site, method: str) -> None:
    first, second = running(site.ann, MINE), running(site.bob, THEIRS)
    newest = running(site.root, "")

    for who in ("root", "bob"):
        _, shown, token = page(site, who, method, "-", page_size=1)
        assert shown == [newest if who == "root" else second]

        _, ids, _ = page(site, "ann", method, "-", page_token=token)

        assert ids[0] == first
        assert second not in ids


def test_an_idempotency_key_of_somebody_else_is_as_good_as_a_new_one(site: Site) -> None:
    key = "the-key-of-both"
    starts: list[tuple[Client, dict[str, str]]] = [
        (site.bob, {"parent": THEIRS}),
        (site.bob, {"parent": SHARED}),
        (site.bob, {"parent": SHARED, "created_by": "ann"}),
        (site.bob, {"parent": SHARED, "created_by": "carol"}),
        (site.ann, {"parent": MINE}),
        (site.ann, {"parent": SHARED}),
        (site.ann, {"parent": SHARED, "created_by": "carol"}),
        (site.ann, {"parent": SHARED, "created_by": "bob"}),
    ]

    # Each is another request, and would be refused as such if the key were known.
    made = [
        client.start(
            idempotency_key=key, description=str(number), parent=more["parent"],
            created_by=more.get("created_by", ""), lease_token=TOKEN,
        )
        for number, (client, more) in enumerate(starts)
    ]  # fmt: skip

    assert [each.owned for each in made] == [True] * len(starts)
    assert [each.operation.description for each in made] == [*map(str, range(len(starts)))]
    assert len({each.operation.id for each in made}) == len(starts)
    with refused() as refusal:  # which is what a key that is known leads to
        site.ann.start(idempotency_key=key, parent=MINE, description="another")
    assert refusal.reason == "IDEMPOTENCY_KEY_REUSED"


def test_a_lease_token_is_worth_nothing_without_the_role(site: Site) -> None:
    mine, theirs = running(site.ann, MINE), running(site.bob, THEIRS)

    with refused() as refusal:
        site.clients["eve"].complete(mine, lease_token=TOKEN)
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "PERMISSION_DENIED",
    )
    with refused() as refusal:
        site.ann.complete(theirs, lease_token=TOKEN)
    assert refusal.code == grpc.StatusCode.NOT_FOUND
    assert [site.root.get(id_).done for id_ in (mine, theirs)] == [False, False]


def test_what_is_open_to_all_tells_nothing_of_tenants(site: Site) -> None:
    channel, metadata = site.channel_of("eve")

    def told() -> list[bytes]:
        return [
            PendingCall(channel, method, request, metadata).answer()
            for method, request in OF_NOTHING.items()
        ]

    before = told()
    id_ = running(site.bob, THEIRS)

    assert told() == before
    assert [
        name for name in (id_, THEIRS, "bob") for answer in before if name.encode() in answer
    ] == []


def test_no_token_reaches_the_log_the_audit_log_or_an_error(site: Site, tmp_path: Path) -> None:
    good = site.tokens["ann"]
    other = Issuer(tmp_path)
    broken = {
        "tampered": with_another_signature(good),
        "expired": other.token("ann", exp=int(time.time()) - 3600),
        "of an unknown key": other.token("ann", key=make_key("unknown")),
        "unknown": "opservice_0123456789-0123456789-0123456789-012",
        "no token": "not.a.token",
    }
    headers = [bearer(token) for token in (*site.tokens.values(), *broken.values())]
    headers += [(("authorization", f"Basic {good}"),), (("authorization", good),)]
    id_ = running(site.bob, THEIRS)
    channel = site.server.client.channel
    calls = [
        PendingCall(channel, method, request_for(method, id_, THEIRS), metadata)
        for metadata in headers
        for method in (f"{RECORDS}/Get", f"{PRODUCER}/Renew", f"{PRODUCER}/Start", *BY_NAME)
    ]
    told = "".join(map(all_that_is_told, calls))

    secrets = [*site.tokens.values(), *broken.values(), TOKEN]
    parts = {part for secret in secrets for part in secret.split(".") if len(part) > 10}
    for where in (site.server.stderr, site.audit_log.read_text(), told):
        assert [part for part in parts if part in where] == []
    assert '"subject": "eve"' in site.server.stderr


def all_that_is_told(call: PendingCall) -> str:
    try:
        return repr(call.answer())
    except grpc.RpcError as error:
        refusal = refusal_from(error)
        return f"{refusal.message} {refusal.trailers}"


@pytest.mark.parametrize("method", OF_OPERATION)
def test_the_audit_log_tells_of_attempts_at_what_may_not_be_seen(site: Site, method: str) -> None:
    id_ = running(site.bob, THEIRS)

    everything_told(site, method, request_for(method, id_, THEIRS))

    attempt = told_of(site, method, id_)
    told = (attempt["subject"], attempt["code"], attempt.get("hidden"))
    assert told == ("ann", "NOT_FOUND", True)


@pytest.mark.parametrize("method", OF_IDS)
def test_the_audit_log_tells_alike_of_what_may_not_be_seen_and_does_not_exist_among_several(
    site: Site, method: str
) -> None:
    channel, metadata = site.channel_of("ann")
    ids = running(site.bob, THEIRS), new_id()
    for id_ in ids:
        PendingCall(channel, method, request_for(method, id_, ""), metadata).answer()

    def lines() -> list[dict[str, Any]]:
        every = [*map(json.loads, site.audit_log.read_text().splitlines())]
        return [line for id_ in ids for line in every if line.get("operation_ids") == [id_]]

    hidden, missing = eventually(lambda: found if len(found := lines()) == 2 else None)
    assert hidden.keys() == missing.keys()
    assert (hidden["subject"], hidden["not_found"], hidden["method"]) == ("ann", 1, method)


def told_of(site: Site, method: str, id_: str) -> dict[str, Any]:
    """The audit log's line of the one call for this operation."""
    (line,) = [
        line
        for line in map(json.loads, site.audit_log.read_text().splitlines())
        if line["method"] == method
        and id_ in (line.get("operation_id"), line.get("name", "")[-20:])
    ]
    assert isinstance(line, dict)
    return line


@pytest.mark.parametrize("method", OF_OPERATION)
def test_the_audit_log_tells_as_much_of_attempts_at_what_does_not_exist(
    site: Site, method: str
) -> None:
    """What is told of one alone would make its answer come later."""
    hidden, missing = running(site.bob, THEIRS), new_id()

    for id_ in (hidden, missing):
        everything_told(site, method, request_for(method, id_, THEIRS))

    of_hidden, of_missing = (told_of(site, method, id_) for id_ in (hidden, missing))
    assert of_hidden.keys() - of_missing.keys() == {"hidden"}
    assert of_missing["code"] == "NOT_FOUND"
