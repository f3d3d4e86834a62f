"""The audit log: one event for whatever is done to an operation, and for whoever is refused."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning.operations_proto_pb2 import CancelOperationRequest as GoogleCancel
from google.longrunning.operations_proto_pb2 import DeleteOperationRequest as GoogleDelete
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.v1 import operation_record_service_pb2 as record_pb
from opservice._proto.opservice.v1 import operation_record_service_pb2 as records_pb
from opservice._proto.opservice.v1 import producer_service_pb2 as producer_pb
from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy
from opservice._proto.opservice.v1.operation_record_service_pb2_grpc import (
    OperationRecordServiceStub,
)
from opservice._proto.yandex.cloud.operation import operation_service_pb2 as operation_pb
from support.client import Refusal, refused
from support.fixtures import execute
from support.identities import TokenFile, bearer
from support.server import ServerProcess, eventually, serving

AUDIT = "opservice.audit"
PARENT = "folders/b1g"
OPERATIONS = "/yandex.cloud.operation.OperationService"
RECORDS = "/opservice.v1.OperationRecordService"
PRODUCER = "/opservice.v1.ProducerService"
GOOGLE = "/google.longrunning.Operations"

Line = dict[str, Any]


@dataclass(frozen=True)
class Site:
    """A server, its audit log, and tokens by subject."""

    server: ServerProcess
    file: Path
    tokens: dict[str, str]

    def call(self, who: str | None, method: str, request: Message) -> str:
        """Makes a call, and returns its request id."""
        id_ = uuid.uuid4().hex
        token = () if who is None else bearer(self.tokens.get(who, who))
        call: grpc.UnaryUnaryMultiCallable[Message, Any] = self.server.client.channel.unary_unary(
            method, request_serializer=type(request).SerializeToString
        )
        call(request, metadata=(*token, ("x-request-id", id_)))
        return id_

    def started(self, **fields: Any) -> str:
        """The id of an operation of the registry's, as the log tells it."""
        request = producer_pb.StartRequest(parent=PARENT, **fields)
        id_: str = self.event(self.call("registry", f"{PRODUCER}/Start", request))["operation_id"]
        return id_

    def event(self, request_id: str) -> Line:
        """The one line of a call, which is for the audit log and stands in its file too."""
        (line,) = eventually(lambda: self.server.log(request_id=request_id))
        assert line["logger"] == AUDIT
        assert [each for each in lines_of(self.file) if each.get("request_id") == request_id] == [
            line
        ]
        return line


def lines_of(file: Path) -> list[Line]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("audit")
    tokens, file = TokenFile(directory), directory / "audit.log"
    issued = {
        "registry": tokens.add("registry", "producer:folders/*"),
        "alice": tokens.add("alice", f"editor:{PARENT}/*"),
        "viewer": tokens.add("viewer", f"viewer:{PARENT}"),
        "stranger": tokens.add("stranger", "admin:folders/other"),
        "root": tokens.add("root", "admin:*"),
    }
    url = f"sqlite:///{directory}/a.db"
    with serving(directory, url, tokens=tokens.file, audit_log=file) as server:
        yield Site(server, file, issued)


DONE_BY_ALICE: dict[str, tuple[str, Callable[[str], Message]]] = {
    "Cancel": (
        f"{OPERATIONS}/Cancel",
        lambda id_: operation_pb.CancelOperationRequest(operation_id=id_),
    ),
    "CancelOperation": (
        f"{GOOGLE}/CancelOperation",
        lambda id_: GoogleCancel(name=f"operations/{id_}"),
    ),
}
DELETIONS: dict[str, tuple[str, Callable[[str], Message]]] = {
    "Delete": (
        f"{RECORDS}/Delete",
        lambda id_: record_pb.DeleteOperationRecordRequest(operation_id=id_),
    ),
    "DeleteOperation": (
        f"{GOOGLE}/DeleteOperation",
        lambda id_: GoogleDelete(name=f"operations/{id_}"),
    ),
}


def complete(id_: str, **fields: Any) -> Message:
    return producer_pb.CompleteRequest(operation_id=id_, **fields)


def fail(id_: str) -> Message:
    return producer_pb.FailRequest(operation_id=id_, error=Status(code=Code.DATA_LOSS))


def test_a_start_is_told_with_who_started_what_from_where(site: Site) -> None:
    request = producer_pb.StartRequest(parent=PARENT, created_by="alice")

    line = site.event(site.call("registry", f"{PRODUCER}/Start", request))

    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert line["timestamp"].endswith("Z")
    assert line["operation_id"].startswith("ops")
    told = {
        "event": "call",
        "level": "info",
        "method": f"{PRODUCER}/Start",
        "code": "OK",
        "subject": "registry",
        "authenticated_by": "token",
        "parent": PARENT,
        "done": False,
        "error_code": None,
        "changed": True,
    }
    assert told.items() <= line.items()


@pytest.mark.parametrize(("method", "request_for"), DONE_BY_ALICE.values(), ids=DONE_BY_ALICE)
def test_a_cancel_is_told_with_what_it_came_to(
    site: Site, method: str, request_for: Callable[[str], Message]
) -> None:
    id_ = site.started()

    line = site.event(site.call("alice", method, request_for(id_)))

    told = {"method": method, "subject": "alice", "operation_id": id_, "parent": PARENT}
    came_to = {"code": "OK", "done": True, "error_code": Code.CANCELLED, "changed": True}
    assert (told | came_to).items() <= line.items()


@pytest.mark.parametrize(("method", "request_for"), DELETIONS.values(), ids=DELETIONS)
def test_a_deletion_is_told_with_what_was_deleted(
    site: Site, method: str, request_for: Callable[[str], Message]
) -> None:
    id_ = site.started()
    site.call("registry", f"{PRODUCER}/Complete", complete(id_))

    line = site.event(site.call("alice", method, request_for(id_)))

    told = {"method": method, "subject": "alice", "operation_id": id_, "parent": PARENT}
    assert (told | {"code": "OK", "changed": True}).items() <= line.items()


@pytest.mark.parametrize(
    ("name", "request_for", "code"),
    [("Complete", complete, None), ("Fail", fail, Code.DATA_LOSS)],
    ids=["Complete", "Fail"],
)
def test_an_end_by_the_producer_is_told_with_how_it_ended(
    site: Site, name: str, request_for: Callable[[str], Message], code: int | None
) -> None:
    id_ = site.started()

    line = site.event(site.call("registry", f"{PRODUCER}/{name}", request_for(id_)))

    told = {"subject": "registry", "operation_id": id_, "parent": PARENT, "code": "OK"}
    assert (told | {"done": True, "error_code": code, "changed": True}).items() <= line.items()


def test_a_repeat_is_told_as_one_that_changed_nothing(site: Site) -> None:
    start = producer_pb.StartRequest(parent=PARENT, idempotency_key="a repeat")
    id_ = site.event(site.call("registry", f"{PRODUCER}/Start", start))["operation_id"]
    repeats = [
        ("registry", f"{PRODUCER}/Start", start),
        ("registry", f"{PRODUCER}/Complete", complete(id_)),
    ]
    site.call(*repeats[1])

    lines = [site.event(site.call(*repeat)) for repeat in repeats]

    assert [(line["code"], line["changed"]) for line in lines] == [("OK", False)] * 2
    assert {line["operation_id"] for line in lines} == {id_}


def test_a_cancel_of_what_is_cancelled_is_told_as_one_that_changed_nothing(site: Site) -> None:
    id_ = site.started()
    method, request_for = DONE_BY_ALICE["Cancel"]
    site.call("alice", method, request_for(id_))

    assert site.event(site.call("alice", method, request_for(id_)))["changed"] is False


def test_what_reads_or_renews_is_not_told(site: Site) -> None:
    id_ = site.started(lease=Duration(seconds=60), lease_token="token-of-the-lease")
    get = operation_pb.GetOperationRequest(operation_id=id_)
    renew = producer_pb.RenewRequest(operation_id=id_, lease_token="token-of-the-lease")
    quiet = [
        site.call("viewer", f"{OPERATIONS}/Get", get),
        site.call("registry", f"{PRODUCER}/Renew", renew),
    ]
    # What is told after them has been told.
    method, request_for = DONE_BY_ALICE["Cancel"]
    site.event(site.call("alice", method, request_for(id_)))

    audited = {line.get("request_id") for line in site.server.log(logger=AUDIT)}
    assert not audited & {*quiet}


def refused_call(site: Site, who: str | None, method: str, request: Message) -> Refusal:
    with refused() as refusal:
        site.call(who, method, request)
    return refusal


def of_refusal(site: Site, who: str | None, method: str, request: Message) -> Line:
    return site.event(refused_call(site, who, method, request).request_id)


def test_who_shows_no_credentials_is_told_of(site: Site) -> None:
    line = of_refusal(site, None, f"{OPERATIONS}/Get", operation_pb.GetOperationRequest())

    told = {
        "code": "UNAUTHENTICATED",
        "error": "CredentialsMissing",
        "reason": "No credentials: send the header `authorization: Bearer TOKEN`.",
    }
    assert told.items() <= line.items()
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert "subject" not in line


def test_who_shows_wrong_credentials_is_told_of_and_they_are_not(site: Site) -> None:
    get = operation_pb.GetOperationRequest()

    line = of_refusal(site, "planted-secret", f"{OPERATIONS}/Get", get)

    told = {
        "code": "UNAUTHENTICATED",
        "error": "Unauthenticated",
        "reason": "The token is not valid",
    }
    assert told.items() <= line.items()
    assert "planted-secret" not in site.server.stderr + site.file.read_text()


def test_who_may_not_do_what_he_tries_is_told_of(site: Site) -> None:
    id_ = site.started()
    method, request_for = DONE_BY_ALICE["Cancel"]

    line = of_refusal(site, "viewer", method, request_for(id_))

    told = {"code": "PERMISSION_DENIED", "error": "PermissionDenied", "subject": "viewer"}
    assert (told | {"method": method, "operation_id": id_}).items() <= line.items()
    assert "changed" not in line


def test_a_start_that_is_refused_is_told_with_its_parent(site: Site) -> None:
    request = producer_pb.StartRequest(parent="projects/elsewhere")

    line = of_refusal(site, "registry", f"{PRODUCER}/Start", request)

    told = {"code": "PERMISSION_DENIED", "subject": "registry", "parent": "projects/elsewhere"}
    assert told.items() <= line.items()


@pytest.mark.parametrize("method", ["Get", "Cancel"])
def test_who_asks_for_what_he_may_not_see_is_told_of_to_the_log_alone(
    site: Site, method: str
) -> None:
    def ask(id_: str) -> Refusal:
        request = operation_pb.GetOperationRequest(operation_id=id_)
        return refused_call(site, "stranger", f"{OPERATIONS}/{method}", request)

    id_ = site.started()
    refusal, of_none = ask(id_), ask("ops-that-is-none")

    told = {"code": "NOT_FOUND", "subject": "stranger", "operation_id": id_, "hidden": True}
    assert told.items() <= site.event(refusal.request_id).items()
    assert refusal.message.replace(id_, "ops-that-is-none") == of_none.message


def test_a_read_of_what_does_not_exist_is_told_of_as_what_is_hidden(site: Site) -> None:
    get = operation_pb.GetOperationRequest(operation_id="nowhere")

    line = of_refusal(site, "alice", f"{OPERATIONS}/Get", get)

    assert {"code": "NOT_FOUND", "operation_id": "nowhere"}.items() <= line.items()
    assert "hidden" not in line


def test_who_sees_everything_is_not_refused_what_does_not_exist(site: Site) -> None:
    get = operation_pb.GetOperationRequest(operation_id="nowhere")

    request_id = refused_call(site, "root", f"{OPERATIONS}/Get", get).request_id

    (line,) = eventually(lambda: site.server.log(request_id=request_id))
    assert line["logger"] == "opservice.call"


def test_a_wrong_lease_token_is_told_of(site: Site) -> None:
    id_ = site.started(lease=Duration(seconds=60), lease_token="token-of-the-lease")
    request = complete(id_, lease_token="planted-secret")

    line = of_refusal(site, "registry", f"{PRODUCER}/Complete", request)

    told = {"code": "PERMISSION_DENIED", "error": "LeaseTokenMismatch", "operation_id": id_}
    assert told.items() <= line.items()


def test_an_end_that_comes_too_late_is_told_of(site: Site) -> None:
    id_ = site.started()
    site.call("registry", f"{PRODUCER}/Complete", complete(id_))

    line = of_refusal(site, "registry", f"{PRODUCER}/Fail", fail(id_))

    told = {"code": "FAILED_PRECONDITION", "error": "OperationDone", "operation_id": id_}
    assert told.items() <= line.items()


@pytest.mark.parametrize("how", ["Cancel", "CancelOperation"])
def test_a_record_names_who_started_and_who_cancelled_first(site: Site, how: str) -> None:
    id_ = site.started(created_by="bob", cancel_policy=CancelPolicy.COOPERATIVE)
    method, request = DONE_BY_ALICE[how]
    for who in ("alice", "root"):
        site.call(who, method, request(id_))
    stub = OperationRecordServiceStub(site.server.client.channel)
    asked = records_pb.GetOperationRecordRequest(operation_id=id_)
    record = stub.Get(asked, metadata=bearer(site.tokens["viewer"]))
    assert (record.producer, record.cancelled_by) == ("registry", "alice")
    listed = stub.List(
        records_pb.ListOperationRecordsRequest(
            parent=PARENT, filter=f"producer = registry cancelled_by = alice id = {id_}"
        ),
        metadata=bearer(site.tokens["viewer"]),
    )
    assert [each.operation.id for each in listed.operation_records] == [id_]


# Other servers


def audited(server: ServerProcess, **wanted: Any) -> list[Line]:
    return server.log(logger=AUDIT, **wanted)


def test_where_nobody_is_asked_who_he_is_the_peer_alone_is_told(
    tmp_path: Path, sqlite_url: str
) -> None:
    with serving(tmp_path, sqlite_url) as server:
        id_ = server.client.started()

        (line,) = audited(server, operation_id=id_)
        assert (line["subject"], line["authenticated_by"]) == ("", "anonymous")
        assert line["peer"].startswith("ipv4:127.0.0.1:")


def test_a_write_of_which_the_database_says_nothing_is_told(
    tmp_path: Path, sqlite_url: str
) -> None:
    """It may have happened."""
    with serving(tmp_path, sqlite_url) as server:
        execute(sqlite_url, "ALTER TABLE operations RENAME TO taken_away")
        with refused() as refusal:
            server.client.start(parent=PARENT)

        (line,) = audited(server, request_id=refusal.request_id)
        assert (line["code"], line["parent"]) == ("INTERNAL", PARENT)
        assert line["operation_id"].startswith("ops")


def test_whoever_reaches_a_limit_is_told_of(tmp_path: Path, sqlite_url: str) -> None:
    with serving(tmp_path, sqlite_url, rate_limit=1, rate_burst=1) as server:

        def limited() -> list[Line]:
            with refused():  # as it is not there, if not for the limit
                server.client.get("nowhere")
            return audited(server, error="RateLimited")

        assert eventually(limited)[0]["code"] == "RESOURCE_EXHAUSTED"


def test_what_time_does_to_operations_is_told(tmp_path: Path, sqlite_url: str) -> None:
    settings: dict[str, Any] = {
        "housekeeping_interval": "10ms",
        "cancel_grace": "0s",
        "resume_window": "0s",
    }
    soon = Duration(nanos=1_000_000)
    with serving(tmp_path, sqlite_url, **settings) as server:
        client = server.client
        late = client.started(timeout=soon)
        lapsed = client.started(lease=Duration(seconds=1), lease_token="token-of-the-lease")
        stopped = client.started(cancel_policy=2)
        client.cancel(stopped)
        expired = client.complete(client.started(retention=soon)).id

        for id_, sweep in ((late, "ReachTimeouts"), (lapsed, "LapseLeases")):
            (line,) = eventually(lambda id_=id_: audited(server, operation_id=id_, event="swept"))  # type: ignore[misc] # mypy does not see the default's type
            assert (line["sweep"], line["done"]) == (sweep, True)
        (line,) = eventually(lambda: audited(server, operation_id=stopped, event="swept"))
        assert line["sweep"] == "EndCancelGrace"
        deleted = eventually(lambda: audited(server, sweep="DeleteExpired"))
        assert expired in [id_ for line in deleted for id_ in line["operation_ids"]]
