"""Of another tenant's operations nothing shows: not whether there are any, nor whose, nor how many."""

from __future__ import annotations

from collections.abc import Callable
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
from security.calls import (
    BY_NAME,
    GOOGLE,
    OF_IDS,
    OF_NOTHING,
    OF_OPERATION,
    RECORDS,
    PendingCall,
    full_name,
    request_for,
)
from security.tenants import (
    MINE,
    MISSING,
    SHARED,
    THEIRS,
    Site,
    done,
    everything_told,
    running,
    site,
)
from support.client import TOKEN, Client, refused
from support.fixtures import without_column
from support.identities import bearer

__all__ = ["site"]

pytestmark = pytest.mark.slow  # many servers are started, and stopped

STATES = pytest.mark.parametrize("made", [running, done], ids=["running", "done"])
Made = Callable[[Client, str], str]


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
