"""BatchWatch of servers that are set otherwise, are stopped, or are two."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode

from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord
from support.batch_watch import CAUGHT_UP, Stream, delete, get, ids_of, renew
from support.client import Client, refused
from support.server import ServerProcess, serving


def test_a_token_that_is_too_old_is_told_so(database_url: str, tmp_path: Path) -> None:
    with serving(tmp_path, database_url, resume_window="0s") as server:
        stream = Stream(server.client, parent="folders/a")
        stream.first()
        with refused() as refusal:
            Stream(server.client, parent="folders/a", resume_token=stream.cut()).next()

    assert (refusal.code, refusal.reason) == (StatusCode.ABORTED, "RESUME_TOKEN_EXPIRED")


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
