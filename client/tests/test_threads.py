"""What only the producer with threads has to see to."""

from __future__ import annotations

import threading
from collections.abc import Coroutine, Iterator

import pytest
from google.rpc.code_pb2 import Code

from opservice_client import Producer, Progress, Work, sync
from opservice_client.testing import OperationServer
from support.server import ServerProcess, eventually

from .conftest import ended


@pytest.fixture
def producer(server: ServerProcess) -> Iterator[Producer]:
    with Producer(server.address) as producer:
        yield producer


@pytest.mark.parametrize("unexpected", [StopIteration, SystemExit, KeyboardInterrupt])
def test_what_an_event_loop_cannot_carry_fails_the_operation_too(
    producer: Producer, server: ServerProcess, unexpected: type[BaseException]
) -> None:
    def body(work: Work) -> None:
        raise unexpected

    work = producer.start()
    work.run(body)

    assert ended(server, work.id).error.code == Code.INTERNAL


def test_nothing_can_be_started_once_closed(producer: Producer) -> None:
    producer.close()

    with pytest.raises(RuntimeError, match="closed"):
        producer.start()


def test_work_that_closes_its_own_producer_raises_and_the_producer_goes_on(
    producer: Producer, server: ServerProcess
) -> None:
    def body(work: Work) -> str:
        with pytest.raises(RuntimeError, match=f"{work.id} closes its own producer"):
            producer.close()
        return "done"

    work = producer.start()
    work.run(body)

    assert ended(server, work.id).HasField("response")
    producer.start()


def test_closing_that_is_interrupted_ends_soon_when_the_server_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sync, "_STOP_SECONDS", 0.1)
    go_on = threading.Event()
    with OperationServer(backend="memory") as server:
        producer = Producer(server.target)
        producer.start().run(lambda _work: go_on.wait())

    def interrupted(coroutine: Coroutine[object, object, None]) -> None:
        coroutine.close()
        raise KeyboardInterrupt

    def close() -> None:
        with pytest.raises(KeyboardInterrupt):
            producer.close()

    assert producer._threads is not None
    monkeypatch.setattr(producer._threads, "wait", interrupted)
    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(60)
    go_on.set()

    assert not closing.is_alive()


def test_work_that_outlives_its_producer_is_told_and_may_go_on_reporting(
    producer: Producer, server: ServerProcess
) -> None:
    def body(work: Work) -> None:
        running.set()
        assert work.cancelled.wait(60)
        assert closed.wait(60)
        work.report(Progress(done=1))
        reported.set()

    running, closed, reported = threading.Event(), threading.Event(), threading.Event()
    work = producer.start()
    work.run(body)
    assert running.wait(60)
    producer.close()
    closed.set()

    assert reported.wait(60)
    assert server.client.get(work.id).error.code == Code.ABORTED


def test_a_block_that_outlives_its_producer_is_left_without_waiting(
    producer: Producer, server: ServerProcess
) -> None:
    def handle() -> None:
        with work:
            entered.set()
            assert work.cancelled.wait(60)
            assert closed.wait(60)
            work.complete()

    entered, closed = threading.Event(), threading.Event()
    work = producer.start()
    handler = threading.Thread(target=handle)
    handler.start()
    assert entered.wait(60)
    producer.close()
    closed.set()

    handler.join(60)
    assert not handler.is_alive()
    assert server.client.get(work.id).error.code == Code.ABORTED


def test_more_works_than_threads_wait_their_turn(server: ServerProcess) -> None:
    with Producer(server.address, max_workers=1) as producer:
        works = [producer.start() for _ in range(3)]
        for work in works:
            work.run(lambda _: None)

        for work in works:
            assert ended(server, work.id).HasField("response")


def test_work_that_waits_for_its_turn_when_the_producer_closes_never_runs(
    server: ServerProcess,
) -> None:
    def first(work: Work) -> None:
        running.set()
        assert work.cancelled.wait(60)
        work.raise_if_cancelled()

    ran, running = threading.Event(), threading.Event()
    with Producer(server.address, max_workers=1) as producer:
        works = [producer.start(), producer.start()]
        works[0].run(first)
        assert running.wait(60)
        works[1].run(lambda _: ran.set())

    eventually(lambda: server.client.get(works[1].id).error.code == Code.ABORTED)
    assert not ran.is_set()
