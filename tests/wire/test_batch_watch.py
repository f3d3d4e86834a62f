"""OperationRecordService.BatchWatch."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import RpcError, StatusCode

from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord, Progress
from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    BatchWatchOperationRecordsRequest,
    DeleteOperationRecordRequest,
    GetOperationRecordRequest,
    OperationRecordEvent,
)
from opservice.domain.operation import new_id
from support.client import Client, refusal_from, refused
from support.server import PATIENCE, ServerProcess, serving

CAUGHT_UP = "caught up"


class Stream:
    """A BatchWatch, and what it has told. `known` is what its client knows: revisions by id."""

    def __init__(self, client: Client, **fields: Any) -> None:
        self.call = client.records.BatchWatch(BatchWatchOperationRecordsRequest(**fields))
        self.known: dict[str, int] = {}
        self.token = ""
        self._arrived: SimpleQueue[OperationRecordEvent | RpcError | None] = SimpleQueue()
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for event in self.call:
                self._arrived.put(event)
            self._arrived.put(None)
        except RpcError as error:
            self._arrived.put(error)

    def next(self) -> OperationRecord | str | None:
        """A record, the id of what was removed, CAUGHT_UP, or None at the end."""
        event = self._arrived.get(timeout=PATIENCE)
        if isinstance(event, RpcError):
            raise event
        if event is None:
            return None
        self.token = event.resume_token or self.token
        match event.WhichOneof("event"):
            case "record":
                id_ = event.record.operation.id
                assert event.record.revision >= self.known.get(id_, 0), "a revision went back"
                self.known[id_] = event.record.revision
                return event.record
            case "removed_id":
                self.known.pop(event.removed_id, None)
                return event.removed_id
            case _:
                return CAUGHT_UP

    def first(self) -> list[OperationRecord | str]:
        """What there is at first."""
        return [*iter(self._next_of_first, CAUGHT_UP)]

    def _next_of_first(self) -> OperationRecord | str:
        told = self.next()
        assert told is not None
        return told

    def record(self) -> OperationRecord:
        told = self.next()
        assert isinstance(told, OperationRecord), told
        return told

    def until(self, id_: str, revision: int) -> OperationRecord:
        """Passes over what comes before the record in this revision."""
        while not isinstance(told := self.next(), OperationRecord) or (
            (told.operation.id, told.revision) != (id_, revision)
        ):
            assert told is not None
        return told

    def cut(self) -> str:
        """Breaks off. The token to continue with."""
        self.call.cancel()
        return self.token


def ids_of(told: list[OperationRecord | str]) -> list[str]:
    return [each if isinstance(each, str) else each.operation.id for each in told]


def get(client: Client, operation_id: str) -> OperationRecord:
    return client.records.Get(GetOperationRecordRequest(operation_id=operation_id))


def delete(client: Client, operation_id: str) -> None:
    client.records.Delete(DeleteOperationRecordRequest(operation_id=operation_id))


def renew(client: Client, operation_id: str, done: int = 1) -> None:
    client.renew(operation_id, progress=Progress(done=done))


@pytest.fixture
def parent() -> str:
    """One that no other test uses."""
    return f"folders/{new_id()}"


# By ids.


def test_what_there_is_comes_first_and_then_each_change_until_all_are_done(client: Client) -> None:
    one, two = client.started(), client.started()
    stream = Stream(client, operation_ids=[one, two, one])

    assert stream.first() == [get(client, one), get(client, two)]

    renew(client, two)
    assert stream.record().revision == 2
    client.complete(two)
    assert stream.record() == get(client, two)
    client.cancel(one)
    assert stream.record() == get(client, one)
    assert stream.next() is None


def test_of_done_operations_each_is_told_once(client: Client) -> None:
    ids = [client.complete(client.started()).id for _ in range(3)]
    stream = Stream(client, operation_ids=ids)

    assert ids_of(stream.first()) == ids
    assert stream.next() is None


def test_what_is_not_there_is_told_as_removed(client: Client) -> None:
    id_ = client.started()
    stream = Stream(client, operation_ids=["nowhere", id_])

    assert ids_of(stream.first()) == ["nowhere", id_]
    client.complete(id_)
    assert stream.record().operation.done
    assert stream.next() is None


def test_an_operation_that_the_server_ends_is_told(client: Client) -> None:
    stream = Stream(client, operation_ids=[client.started(timeout=Duration(nanos=300_000_000))])

    assert len(stream.first()) == 1
    assert stream.record().operation.done
    assert stream.next() is None


def test_a_thousand_operations_are_followed_in_one_stream(client: Client) -> None:
    ids = [client.started() for _ in range(30)] + [f"none-{number:0123}" for number in range(970)]
    stream = Stream(client, operation_ids=ids)

    assert ids_of(stream.first()) == ids
    for id_ in ids[:30]:
        client.complete(id_)
    assert sorted(stream.record().operation.id for _ in range(30)) == sorted(ids[:30])
    assert stream.next() is None


# Of a parent.


def test_of_a_parent_what_there_is_comes_first_and_then_what_comes_later(
    client: Client, parent: str
) -> None:
    older = client.started(parent=parent)
    client.started(parent=f"{parent}/below")
    stream = Stream(client, parent=parent)

    assert stream.first() == [get(client, older)]

    newer = client.started(parent=parent)
    assert stream.record() == get(client, newer)
    client.started(parent=f"{parent}/below")
    client.complete(older)
    assert stream.record() == get(client, older)


def test_an_empty_parent_is_caught_up_at_once(client: Client, parent: str) -> None:
    stream = Stream(client, parent=parent)

    assert stream.first() == []
    id_ = client.started(parent=parent)
    assert stream.record().operation.id == id_


def test_a_dash_follows_the_operations_of_all_parents(client: Client, parent: str) -> None:
    filter_ = f'description = "{parent}"'
    ids = [client.started(parent=each, description=parent) for each in ("", parent)]
    stream = Stream(client, parent="-", filter=filter_)

    assert ids_of(stream.first()) == ids[::-1]
    ids.append(client.started(parent=f"{parent}/below", description=parent))
    assert stream.record().operation.id == ids[2]


def test_what_does_not_match_the_filter_any_more_is_removed_and_comes_back(
    client: Client, parent: str
) -> None:
    stream = Stream(client, parent=parent, filter="done = false")
    assert stream.first() == []

    one, two = client.started(parent=parent), client.started(parent=parent)
    assert [stream.record().operation.id for _ in range(2)] == [one, two]
    client.complete(one)
    assert stream.next() == one
    client.complete(two)
    assert stream.next() == two


def test_of_what_never_matched_nothing_is_told(client: Client, parent: str) -> None:
    stream = Stream(client, parent=parent, filter="method = wanted")
    assert stream.first() == []

    client.complete(client.started(parent=parent, method="other"))
    wanted = client.started(parent=parent, method="wanted")

    assert stream.record().operation.id == wanted


def test_what_is_deleted_is_removed(client: Client, parent: str) -> None:
    id_ = client.complete(client.started(parent=parent)).id
    stream = Stream(client, parent=parent)
    assert ids_of(stream.first()) == [id_]

    delete(client, id_)

    assert stream.next() == id_


def test_what_expires_is_removed(client: Client, parent: str) -> None:
    id_ = client.started(parent=parent, retention=Duration(nanos=500_000_000))
    stream = Stream(client, parent=parent)
    assert ids_of(stream.first()) == [id_]

    client.complete(id_)

    told = stream.next()
    if isinstance(told, OperationRecord):  # it may be too late for its end
        assert told.operation.done
        told = stream.next()
    assert told == id_


def test_many_operations_of_a_parent_are_told_in_pages(client: Client, parent: str) -> None:
    starts = [
        client.producer.Start.future(request) for request in [_start(parent) for _ in range(1100)]
    ]
    ids = {call.result().operation.id for call in starts}
    stream = Stream(client, parent=parent)

    assert set(ids_of(stream.first())) == ids


def _start(parent: str) -> Any:
    from opservice._proto.opservice.v1.producer_service_pb2 import StartRequest

    return StartRequest(parent=parent)


# Continued.


def test_a_stream_goes_on_after_a_break_and_tells_only_what_has_changed(
    client: Client, parent: str
) -> None:
    ids = [client.started(parent=parent) for _ in range(5)]
    stream = Stream(client, parent=parent)
    stream.first()
    renew(client, ids[0])
    assert stream.record().revision == 2
    token = stream.cut()

    renew(client, ids[1])
    client.complete(ids[2])
    delete(client, client.complete(ids[3]).id)
    new = client.started(parent=parent)
    again = Stream(client, parent=parent, resume_token=token)

    assert sorted(ids_of(again.first())) == sorted([ids[1], ids[2], ids[3], new])
    assert again.known == {ids[1]: 2, ids[2]: 2, new: 1}
    client.complete(ids[4])
    assert again.record() == get(client, ids[4])


def test_a_stream_by_ids_goes_on_and_ends_when_the_rest_is_done(client: Client) -> None:
    ids = [client.started() for _ in range(3)]
    stream = Stream(client, operation_ids=ids)
    stream.first()
    client.complete(ids[0])
    assert stream.record().operation.done
    token = stream.cut()

    client.complete(ids[1])
    again = Stream(client, operation_ids=ids, resume_token=token)

    assert ids_of(again.first()) == [ids[1]]
    client.complete(ids[2])
    assert again.record().operation.done
    assert again.next() is None


def test_a_stream_that_is_broken_off_again_and_again_misses_nothing(
    client: Client, parent: str
) -> None:
    stream = Stream(client, parent=parent)
    stream.first()
    known: dict[str, int] = {}
    ids: list[str] = []
    for number in range(12):
        ids.append(client.started(parent=parent))
        renew(client, ids[number // 2], number + 1)
        for _ in range(number % 3):
            stream.next()
        known |= stream.known
        stream = Stream(client, parent=parent, resume_token=stream.cut())
    stream.first()
    known |= stream.known

    assert known == {id_: get(client, id_).revision for id_ in ids}


def test_what_stopped_to_match_during_a_break_is_removed(client: Client, parent: str) -> None:
    ids = [client.started(parent=parent) for _ in range(2)]
    stream = Stream(client, parent=parent, filter="done = false")
    stream.first()
    token = stream.cut()

    client.complete(ids[0])
    again = Stream(client, parent=parent, filter="done = false", resume_token=token)

    assert again.first() == [ids[0]]


def test_a_token_of_another_request_is_an_invalid_argument(client: Client, parent: str) -> None:
    stream = Stream(client, parent=parent)
    stream.first()
    token = stream.cut()
    wrong: list[dict[str, Any]] = [
        {"parent": parent, "resume_token": token, "filter": "done = true"},
        {"parent": f"{parent}/below", "resume_token": token},
        {"operation_ids": ["x"], "resume_token": token},
        {"parent": parent, "resume_token": "x" + token[1:]},
        {"parent": parent, "resume_token": token + "AAAA"},
        {"parent": parent, "resume_token": "é"},
    ]
    for fields in wrong:
        with refused() as refusal:
            Stream(client, **fields).next()

        assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, ["resume_token"])


def test_a_token_that_is_too_old_is_told_so(database_url: str, tmp_path: Path) -> None:
    with serving(tmp_path, database_url, resume_window="0s") as server:
        stream = Stream(server.client, parent="folders/a")
        stream.first()
        with refused() as refusal:
            Stream(server.client, parent="folders/a", resume_token=stream.cut()).next()

    assert (refusal.code, refusal.reason) == (StatusCode.ABORTED, "RESUME_TOKEN_EXPIRED")


# What is wrong.


def test_ids_and_a_parent_are_an_invalid_argument(client: Client) -> None:
    with refused() as refusal:
        Stream(client, operation_ids=["x", ""], parent="folders/a", filter="(").next()

    assert refusal.fields == ["operation_ids[1]", "parent", "filter"]


def test_too_many_ids_are_an_invalid_argument(client: Client) -> None:
    with refused() as refusal:
        Stream(client, operation_ids=["x"] * 1001).next()

    assert refusal.fields == ["operation_ids"]


def test_a_wrong_parent_and_filter_are_an_invalid_argument(client: Client) -> None:
    with refused() as refusal:
        Stream(client, parent="folders/-", filter="(").next()

    assert refusal.fields == ["parent", "filter"]


# In time.


def test_a_quiet_stream_says_again_that_it_is_caught_up(database_url: str, tmp_path: Path) -> None:
    with serving(tmp_path, database_url, watch_repeat="100ms") as server:
        id_ = server.client.started()
        stream = Stream(server.client, operation_ids=[id_])
        stream.first()

        assert [stream.next() for _ in range(3)] == [CAUGHT_UP] * 3
        server.client.complete(id_)
        while (told := stream.next()) == CAUGHT_UP:
            pass
        assert isinstance(told, OperationRecord)
        assert stream.next() is None


def test_a_server_that_drains_ends_streams_with_unavailable(
    sqlite_url: str, tmp_path: Path
) -> None:
    with serving(tmp_path, sqlite_url) as server:
        streams = [
            Stream(server.client, operation_ids=[server.client.started()]),
            Stream(server.client, parent="-"),
        ]
        for stream in streams:
            stream.first()

        server.send_signal(signal.SIGTERM)

        for stream in streams:
            with refused() as refusal:
                stream.next()
            assert (refusal.code, refusal.reason) == (StatusCode.UNAVAILABLE, "SERVER_STOPPING")
        assert server.wait() == 0


def test_a_stream_goes_on_with_a_server_that_was_killed(database_url: str, tmp_path: Path) -> None:
    with serving(tmp_path, database_url) as server:
        ids = [server.client.started(parent="folders/a") for _ in range(3)]
        stream = Stream(server.client, parent="folders/a")
        stream.first()
        server.client.complete(ids[0])
        assert stream.record().operation.done

        server.kill()
        with pytest.raises(grpc.RpcError):
            stream.next()
        server.start()
        client = server.client
        client.complete(ids[1])
        again = Stream(client, parent="folders/a", resume_token=stream.token)

        assert ids_of(again.first()) == [ids[1]]


@contextmanager
def two_servers(directory: Path, database: str, **settings: Any) -> Iterator[list[ServerProcess]]:
    settings = {"poll_interval": "100ms", "housekeeping_interval": "100ms", **settings}
    with (
        serving(directory, database, **settings) as one,
        serving(directory, database, **settings) as other,
    ):
        yield [one, other]


@pytest.mark.slow
@pytest.mark.parametrize("no_notify", [False, True], ids=["notify", "no notify"])
def test_what_another_server_changes_is_told(
    database_url: str, tmp_path: Path, no_notify: bool
) -> None:
    with two_servers(tmp_path, database_url, no_notify=no_notify) as (one, other):
        old = other.client.started(parent="folders/a")
        by_parent = Stream(one.client, parent="folders/a")
        by_ids = Stream(one.client, operation_ids=[old])
        assert ids_of(by_parent.first()) == ids_of(by_ids.first()) == [old]

        new = other.client.started(parent="folders/a")
        by_parent.until(new, 1)
        renew(other.client, new)
        by_parent.until(new, 2)
        other.client.complete(old)
        assert by_parent.until(old, 2).operation.done
        assert by_ids.until(old, 2).operation.done
        assert by_ids.next() is None
        delete(other.client, old)
        assert by_parent.next() == old
        expiring = other.client.started(
            parent="folders/a", retention=Duration(nanos=1_000), timeout=Duration(nanos=500_000_000)
        )
        by_parent.until(expiring, 1)
        while (told := by_parent.next()) != expiring:
            assert isinstance(told, OperationRecord)


@pytest.mark.slow
def test_a_stream_is_continued_by_another_server_while_both_write(
    database_url: str, tmp_path: Path
) -> None:
    with two_servers(tmp_path, database_url) as servers:
        ids = [servers[0].client.started(parent="folders/a") for _ in range(20)]
        stop: list[bool] = []

        def write(client: Client, mine: list[str]) -> None:
            count = 0
            while not stop:
                count += 1
                renew(client, mine[count % len(mine)], count)

        writers = [
            Thread(target=write, args=(servers[0].client, ids[:10])),
            Thread(target=write, args=(servers[1].client, ids[10:])),
        ]
        for writer in writers:
            writer.start()
        known: dict[str, int] = {}
        token = ""
        try:
            for number in range(20):
                stream = Stream(servers[number % 2].client, parent="folders/a", resume_token=token)
                stream.first()
                for _ in range(10):
                    stream.next()
                for id_, revision in stream.known.items():
                    known[id_] = max(revision, known.get(id_, 0))
                token = stream.cut()
        finally:
            stop.append(True)
            for writer in writers:
                writer.join()
        last = Stream(servers[0].client, parent="folders/a", resume_token=token)
        last.first()
        known |= last.known

        assert known == {id_: get(servers[1].client, id_).revision for id_ in ids}


def test_a_refusal_of_a_stream_tells_what_is_wrong(client: Client) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        Stream(client, operation_ids=["a\nb"]).next()

    assert refusal_from(caught.value).fields == ["operation_ids[0]"]
