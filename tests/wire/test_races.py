"""Rivals at the same operation: exactly one result, everybody agrees, every loser is told."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from support.client import TOKEN, Client, Refusal, packed, refusal_from
from support.fixtures import empty_database
from support.server import eventually, serving

SOON = Duration(seconds=1)
RESPONSE = packed(ErrorInfo(reason="COMPLETED"))
ERROR = Status(code=Code.DATA_LOSS, message="failed")
AT_ONCE = 100
"""Rounds that run side by side."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def replicas(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Client]]:
    """Clients of every server on one database: on PostgreSQL there are two."""
    directory = tmp_path_factory.mktemp("races")
    database = empty_database(request, directory)
    settings = {"housekeeping_interval": "10ms", "restart_grace": "0s"}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serving(directory, database, **settings))
            for _ in range(2 if request.param == "postgresql" else 1)
        ]
        # Several connections: on one, the calls would be in an order.
        yield [Client(server.channel()) for server in servers for _ in range(4)]


@dataclass
class Round:
    """One operation, its rivals, and what each of them was told."""

    id: str
    seen: list[Operation] = field(default_factory=list)
    """States that anybody was shown, in no order."""
    won: list[str] = field(default_factory=list)
    """Writers who were told that the operation ended as they asked."""
    refusals: list[Refusal] = field(default_factory=list)

    def complete(self, client: Client) -> None:
        self._end(
            "complete", lambda: client.complete(self.id, lease_token=TOKEN, response=RESPONSE)
        )

    def fail(self, client: Client) -> None:
        self._end("fail", lambda: client.fail(self.id, ERROR, lease_token=TOKEN))

    def cancel(self, client: Client) -> None:
        self.seen.append(client.cancel(self.id))

    def observe(self, client: Client) -> None:
        for _ in range(3):
            self.seen.append(client.get(self.id))

    def _end(self, name: str, write: Callable[[], Operation]) -> None:
        try:
            self.seen.append(write())
            self.won.append(name)
        except grpc.RpcError as error:
            self.refusals.append(refusal_from(error))

    def verify(self, clients: list[Client]) -> str:
        """Who won: `complete`, `fail`, or the code that the server ended the operation with."""

        def ends() -> list[Operation]:
            now = [client.get(self.id) for client in clients]
            return now if all(operation.done for operation in now) else []

        self.seen += eventually(ends)
        done = [operation for operation in self.seen if operation.done]
        result = done[0]
        assert all(operation == result for operation in done)

        winner = Code.Name(result.error.code)
        if result.HasField("response"):
            assert result.response == RESPONSE
            winner = "complete"
        elif result.error == ERROR:
            winner = "fail"
        assert winner in {"complete", "fail", "CANCELLED", "ABORTED", "DEADLINE_EXCEEDED"}
        assert self.won == [winner] * (winner in {"complete", "fail"})

        assert len(self.won) + len(self.refusals) == 2
        for refusal in self.refusals:
            assert refusal.reason == "OPERATION_DONE"
            assert refusal.one(Status).code == result.error.code
        return winner


def run_rounds(clients: list[Client], count: int) -> Counter[str]:
    """Starts operations that time will end, and has everybody at them when it does."""
    moments = [{"lease": SOON}, {"timeout": SOON}, {"lease": SOON, "timeout": SOON}]
    policies = [CancelPolicy.IMMEDIATE, CancelPolicy.COOPERATIVE]

    def start() -> Round:
        fields: dict[str, Any] = random.choice(moments)
        policy = random.choice(policies)
        return Round(
            random.choice(clients).started(lease_token=TOKEN, cancel_policy=policy, **fields)
        )

    winners: Counter[str] = Counter()
    with ThreadPoolExecutor(24) as threads:
        for _ in range(count // AT_ONCE or 1):
            rounds = list(threads.map(lambda _: start(), range(min(AT_ONCE, count))))
            jobs = [
                (random.uniform(0.5, 1.2), job)
                for one in rounds
                for job in (one.complete, one.fail, one.cancel, one.observe, one.observe)
            ]
            started = time.monotonic()

            def run(job: tuple[float, Callable[[Client], None]]) -> None:
                at, act = job
                time.sleep(max(0.0, started + at - time.monotonic()))  # noqa: B023
                act(random.choice(clients))

            list(threads.map(run, sorted(jobs, key=lambda job: job[0])))
            winners.update(threads.map(lambda one: one.verify(clients), rounds))
    return winners


def test_rivals_leave_one_result_that_all_agree_on(replicas: list[Client]) -> None:
    assert run_rounds(replicas, 50).total() == 50


@pytest.mark.slow
def test_a_thousand_rounds_of_rivals_leave_one_result_each(replicas: list[Client]) -> None:
    winners = run_rounds(replicas, 1_000)

    assert winners.total() == 1_000
    # Otherwise it was no race.
    assert set(winners) >= {"complete", "fail", "CANCELLED", "ABORTED", "DEADLINE_EXCEEDED"}


@pytest.mark.parametrize("replicas", ["postgresql"], indirect=True)
def test_200_starts_through_two_servers_make_one_operation_with_one_owner(
    replicas: list[Client],
) -> None:
    together = Barrier(200)

    def start(number: int) -> tuple[str, bool]:
        together.wait()
        started = replicas[number % len(replicas)].start(
            idempotency_key="the same for all", lease_token=f"token-of-thread-{number:04}"
        )
        return started.operation.id, started.owned

    with ThreadPoolExecutor(200) as threads:
        answers = list(threads.map(start, range(200)))

    assert len({id_ for id_, _ in answers}) == 1
    assert sum(owned for _, owned in answers) == 1
