"""BatchWatch of the servers of opservice_client.testing: what the wire tests, on one server, do not show."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from datetime import timedelta
from random import Random

import grpc
import pytest
from google.rpc.code_pb2 import Code
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opservice_client._proto.opservice.v1.operation_record_service_pb2 import (
    BatchWatchOperationRecordsRequest,
    OperationRecordEvent,
)
from opservice_client._proto.opservice.v1.producer_service_pb2 import (
    CompleteRequest,
    RenewRequest,
    StartRequest,
)
from opservice_client.testing import OperationServer, memory
from opservice_client.testing.changes import Changes
from opservice_client.testing.following import Following
from opservice_client.testing.operations import Operations
from support.batch_watch import CAUGHT_UP, Stream, ids_of
from support.client import TOKEN, Client, Refusal, open_channel, refusal_from
from support.server import eventually

PARENT = "folders/a"
MINUTE = timedelta(minutes=1)


@pytest.fixture(params=["server", "memory"])
def server(request: pytest.FixtureRequest) -> Iterator[OperationServer]:
    with OperationServer(backend=request.param) as running:
        yield running


@pytest.fixture
def client(server: OperationServer) -> Iterator[Client]:
    with open_channel(server.target) as channel:
        yield Client(channel)


def test_a_dash_follows_the_operations_of_all_parents(client: Client) -> None:
    ids = [client.started(parent=parent) for parent in ("", PARENT)]
    stream = Stream(client, parent="-")

    assert ids_of(stream.first()) == ids[::-1]
    new = client.started(parent=f"{PARENT}/below")
    assert stream.record().operation.id == new


def test_what_time_does_to_operations_is_told(server: OperationServer, client: Client) -> None:
    id_ = client.started(lease=MINUTE, lease_token=TOKEN, retention=60 * MINUTE)
    stream = Stream(client, parent="")
    assert ids_of(stream.first()) == [id_]

    server.advance(2 * MINUTE)
    assert stream.record().operation.error.code == Code.ABORTED
    server.advance(90 * MINUTE)
    assert stream.next() == id_


def test_a_stream_can_be_continued_for_eight_minutes(
    server: OperationServer, client: Client
) -> None:
    client.started(parent=PARENT)
    stream = Stream(client, parent=PARENT)
    stream.first()
    token = stream.cut()

    def refusal() -> Refusal | None:
        try:
            assert Stream(client, parent=PARENT, resume_token=token).first() == []
        except grpc.RpcError as error:
            return refusal_from(error)
        return None

    server.advance(7 * MINUTE)
    assert refusal() is None
    server.advance(1.5 * MINUTE)
    # The real server looks at the clock from time to time while anybody follows.
    refused = eventually(refusal)
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "RESUME_TOKEN_EXPIRED")
    assert refused.message == (
        "The stream cannot be continued: forget what it told, and call again without a resume token."
    )


def test_whoever_continues_a_stream_after_its_end_is_told_nothing_again(client: Client) -> None:
    ids = [client.started(), "unknown"]
    stream = Stream(client, operation_ids=ids)
    stream.first()
    client.complete(ids[0])
    stream.record()
    assert stream.next() is None

    again = Stream(client, operation_ids=ids, resume_token=stream.token)
    assert again.first() == []
    assert again.next() is None


def test_a_quiet_stream_says_again_that_it_is_caught_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_WATCH_REPEAT_SECONDS", 0.05)
    with OperationServer(backend="memory") as server, open_channel(server.target) as channel:
        client = Client(channel)
        id_ = client.started()
        stream = Stream(client, operation_ids=[id_])
        stream.first()

        assert [stream.next() for _ in range(3)] == [CAUGHT_UP] * 3
        client.complete(id_)
        while (told := stream.next()) == CAUGHT_UP:
            pass
        assert not isinstance(told, str | None)
        assert stream.next() is None


class Reader:
    """Keeps what it is told, as a client does, and continues the stream that it cuts."""

    def __init__(self, operations: Operations) -> None:
        self.revisions: dict[str, int] = {}
        self._operations = operations
        self._told: set[tuple[str, int]] = set()
        self._token = ""
        self._events = self._begin()

    def _begin(self) -> AsyncGenerator[OperationRecordEvent, None]:
        request = BatchWatchOperationRecordsRequest(parent=PARENT, resume_token=self._token)
        return Following(self._operations, request).events(repeat_seconds=0)

    async def read(self) -> bool:
        """One event. Returns whether it says that all was told."""
        event = await anext(self._events)
        self._token = event.resume_token
        if event.HasField("record"):
            id_, revision = event.record.operation.id, event.record.revision
            assert revision >= self.revisions.get(id_, 0), "a revision went back"
            assert (id_, revision) not in self._told, "a stream tells the same again"
            self._told.add((id_, revision))
            self.revisions[id_] = revision
        elif event.removed_id:
            self.revisions.pop(event.removed_id, None)
        return event.HasField("caught_up")

    async def cut(self) -> None:
        await self._events.aclose()
        self._told.clear()
        if not self._token:
            self.revisions.clear()
        self._events = self._begin()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.sampled_from(["start", "start", "read", "read", "renew", "complete", "delete", "cut"])
    ),
    st.randoms(use_true_random=False),
)
async def test_whatever_happens_between_two_reads_a_reader_knows_all_in_the_end(
    steps: list[str], random: Random
) -> None:
    operations = Operations(cancel_grace=0)
    operations.changes = Changes(now=lambda: 1)  # all of it within one tick of the clock
    running = [operations.start(StartRequest(parent=PARENT), "").operation.id for _ in range(3)]
    done: list[str] = []
    reader = Reader(operations)
    for step in steps:
        if step == "start":
            running.append(operations.start(StartRequest(parent=PARENT), "").operation.id)
        elif step == "read":
            await reader.read()
        elif step == "cut":
            await reader.cut()
        elif step == "renew" and running:
            operations.renew(RenewRequest(operation_id=random.choice(running)))
        elif step == "complete" and running:
            done.append(running.pop(random.randrange(len(running))))
            operations.complete(CompleteRequest(operation_id=done[-1]))
        elif step == "delete" and done:
            operations.delete(done.pop(random.randrange(len(done))))
    for _ in range(2):  # the first may have been on its way before the last change
        while not await reader.read():
            pass

    there = (entry.record for entry in operations.of_parent(PARENT))
    assert reader.revisions == {each.operation.id: each.revision for each in there}
