"""opservice.v1.OperationRecordService: Get, Watch, Wait and Delete."""

from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from grpc import RpcError, StatusCode

from opservice._proto.opservice.v1 import operation_record_service_pb2 as pb
from opservice._proto.opservice.v1.operation_record_pb2 import (
    CancelPolicy,
    OperationRecord,
    Progress,
)
from support.client import TOKEN, Client, packed, refusal_from, refused
from support.server import PATIENCE, ServerProcess, serving


def get(client: Client, operation_id: str) -> OperationRecord:
    return client.records.Get(pb.GetOperationRecordRequest(operation_id=operation_id))


def watch(client: Client, operation_id: str) -> "SimpleQueue[OperationRecord | RpcError | None]":
    """What arrives, as it does; at the end None, or the error."""
    arrived: SimpleQueue[OperationRecord | RpcError | None] = SimpleQueue()

    def follow() -> None:
        try:
            request = pb.WatchOperationRecordRequest(operation_id=operation_id)
            for record in client.records.Watch(request):
                arrived.put(record)
            arrived.put(None)
        except RpcError as error:
            arrived.put(error)

    Thread(target=follow, daemon=True).start()
    return arrived


def test_get_shows_what_the_operation_alone_does_not(client: Client) -> None:
    progress = Progress(done=3, total=7, unit="layers", message="pulling")
    id_ = client.started(
        parent="folders/b1g",
        method="a.B.C",
        cancel_policy=CancelPolicy.COOPERATIVE,
        lease=Duration(seconds=3600),
        lease_token=TOKEN,
    )
    renewed = client.renew(id_, lease_token=TOKEN, progress=progress)
    operation = client.cancel(id_)

    record = get(client, id_)

    assert record == OperationRecord(
        operation=operation,
        parent="folders/b1g",
        method="a.B.C",
        cancel_policy=CancelPolicy.COOPERATIVE,
        cancel_requested_at=operation.modified_at,
        progress=progress,
        lease_expires_at=renewed.lease_expires_at,
        revision=3,
    )


def test_a_done_record_has_no_lease_and_expires_after_its_retention(client: Client) -> None:
    id_ = client.started(
        lease=Duration(seconds=10), lease_token=TOKEN, retention=Duration(seconds=500)
    )
    ended = client.complete(id_, lease_token=TOKEN)

    record = get(client, id_)

    assert not record.HasField("lease_expires_at")
    kept = record.expires_at.ToMicroseconds() - ended.modified_at.ToMicroseconds()
    assert kept == 500_000_000


@pytest.mark.parametrize("call", [get, lambda c, id_: _first(watch(c, id_))], ids=["Get", "Watch"])
def test_an_unknown_id_is_not_found(client: Client, call: Callable[[Client, str], Any]) -> None:
    with refused() as refusal:
        call(client, "nowhere")

    assert refusal.code == StatusCode.NOT_FOUND
    assert refusal.message == "Operation nowhere not found"
    assert refusal.reason == "OPERATION_NOT_FOUND"


@pytest.mark.parametrize("call", [get, lambda c, id_: _first(watch(c, id_))], ids=["Get", "Watch"])
def test_a_bad_id_is_an_invalid_argument(
    client: Client, call: Callable[[Client, str], Any]
) -> None:
    with refused() as refusal:
        call(client, "a\nb")

    assert refusal.code == StatusCode.INVALID_ARGUMENT
    assert refusal.fields == ["operation_id"]


def _first(arrived: "SimpleQueue[OperationRecord | RpcError | None]") -> OperationRecord:
    first = arrived.get(timeout=PATIENCE)
    if isinstance(first, RpcError):
        raise first
    assert first is not None
    return first


def test_watch_sends_the_record_as_it_is_and_again_as_it_changes(client: Client) -> None:
    id_ = client.started(cancel_policy=CancelPolicy.COOPERATIVE)
    arrived = watch(client, id_)

    first = _first(arrived)
    client.cancel(id_)
    second = _first(arrived)
    client.complete(id_, response=packed(Empty()))
    third = _first(arrived)

    assert [record.revision for record in (first, second, third)] == [1, 2, 3]
    assert second.HasField("cancel_requested_at")
    assert third == get(client, id_)
    assert arrived.get(timeout=PATIENCE) is None


def test_watch_of_a_done_operation_sends_it_once(client: Client) -> None:
    id_ = client.complete(client.started()).id
    arrived = watch(client, id_)

    assert _first(arrived) == get(client, id_)
    assert arrived.get(timeout=PATIENCE) is None


def test_watch_ends_when_the_operation_is_ended_by_the_server_itself(client: Client) -> None:
    arrived = watch(client, client.started(timeout=Duration(nanos=300_000_000)))

    assert not _first(arrived).operation.done
    assert _first(arrived).operation.done
    assert arrived.get(timeout=PATIENCE) is None


def test_many_watchers_of_one_operation_all_see_its_end(server: ServerProcess) -> None:
    id_ = server.client.started()
    watchers = [watch(server.client, id_) for _ in range(50)]
    assert not any(_first(watcher).operation.done for watcher in watchers)

    server.client.complete(id_)

    assert all(_first(watcher).operation.done for watcher in watchers)


def test_a_watch_of_what_expires_meanwhile_ends_with_not_found_or_its_end(client: Client) -> None:
    """Its watcher may be too late to see the end of an operation that is kept for no time."""
    id_ = client.started(retention=Duration(nanos=1_000))
    arrived = watch(client, id_)
    _first(arrived)

    client.complete(id_)

    last = arrived.get(timeout=PATIENCE)
    if isinstance(last, RpcError):
        assert refusal_from(last).code == StatusCode.NOT_FOUND
    else:
        assert last is not None
        assert last.operation.done


def test_a_quiet_watch_repeats_its_record_until_there_is_news(
    database_url: str, tmp_path: Path
) -> None:
    with serving(tmp_path, database_url, watch_repeat="100ms") as server:
        id_ = server.client.started()
        arrived = watch(server.client, id_)
        first = _first(arrived)

        assert [_first(arrived) for _ in range(3)] == [first] * 3

        server.client.complete(id_)
        last = first
        while last.revision == 1:
            last = _first(arrived)
        assert last.operation.done
        assert arrived.get(timeout=PATIENCE) is None


def test_a_watch_that_is_not_to_repeat_sends_each_state_once(
    database_url: str, tmp_path: Path
) -> None:
    with serving(tmp_path, database_url, watch_repeat="0s") as server:
        id_ = server.client.started()
        arrived = watch(server.client, id_)
        first = _first(arrived)
        server.client.complete(id_)

        assert [first.revision, _first(arrived).revision] == [1, 2]
        assert arrived.get(timeout=PATIENCE) is None
