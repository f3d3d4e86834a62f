"""What is done to servers and their database while clients call them, one thing after the other."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol

from support.lease_rules import Disturbance
from support.proxy import CommitLosingProxy, Loss
from support.server import ServerProcess, eventually


class PausableDatabase(Protocol):
    def processes(self) -> list[int]: ...
    def execute(self, statement: str) -> object: ...


@dataclass(frozen=True)
class Postgres:
    """The cluster, the database in it, and the network between it and the servers."""

    cluster: PausableDatabase
    database: str
    proxy: CommitLosingProxy


@dataclass
class Disturber:
    """Pauses and kills, and disturbs the database when it is PostgreSQL."""

    replicas: Sequence[ServerProcess]
    random: Random
    postgres: Postgres | None = None
    pause: tuple[float, float] = (4.5, 7)
    """The shortest and the longest pause, in seconds."""
    done: list[Disturbance] = field(default_factory=list)

    async def run(self, until: float) -> None:
        """What is worst, all other kinds in a random order, and so on; each is over before `until`."""
        worst, kinds = [self._pause_all], [self._pause_replica, self._pause_worker, self._kill]
        if self.postgres is not None:
            worst += [self._pause_database]
            kinds += [self._lose_commits, self._end_connections]
        while True:
            for kind in [*worst, *self.random.sample(kinds, len(kinds))]:
                calm = self.random.uniform(1.5, 3.5)
                if time.monotonic() + calm + self.pause[1] > until:
                    return
                await asyncio.sleep(calm)
                await kind()

    @property
    def everybody(self) -> tuple[int, ...]:
        return tuple(range(len(self.replicas)))

    async def _pause_all(self) -> None:
        pids = [pid for each in self.replicas for pid in family(each.pid)]
        await self._pause("pause of all replicas", pids, self.everybody)

    async def _pause_replica(self) -> None:
        index = self.random.randrange(len(self.replicas))
        await self._pause("pause of a replica", family(self.replicas[index].pid), (index,))

    async def _pause_worker(self) -> None:
        """The other workers of its replica go on, and may do what is due."""
        _, *workers = family(self.random.choice(self.replicas).pid)
        if workers:
            await self._pause("pause of a worker", [self.random.choice(workers)], ())

    async def _pause_database(self) -> None:
        assert self.postgres is not None
        pids = self.postgres.cluster.processes()
        await self._pause("pause of the database", pids, self.everybody)

    async def _pause(self, kind: str, pids: Sequence[int], replicas: tuple[int, ...]) -> None:
        with paused(pids):
            began = time.monotonic()
            await asyncio.sleep(self.random.uniform(*self.pause))
            ended = time.monotonic()
        self.done.append(Disturbance(kind, began, ended, replicas))

    async def _kill(self) -> None:
        index = self.random.randrange(len(self.replicas))
        await asyncio.to_thread(self.replicas[index].kill)
        began = time.monotonic()
        await asyncio.sleep(self.random.uniform(0, 2))
        await asyncio.to_thread(self.replicas[index].start)
        self.done.append(Disturbance("kill of a replica", began, time.monotonic(), (index,)))

    async def _lose_commits(self) -> None:
        assert self.postgres is not None
        began = time.monotonic()
        for _ in range(self.random.randint(1, 4)):
            loss: Loss = self.random.choice(["request", "answer"])
            await asyncio.to_thread(lose_commit, self.postgres.proxy, loss)
        self.done.append(Disturbance("lost COMMITs", began, time.monotonic()))

    async def _end_connections(self) -> None:
        assert self.postgres is not None
        began = time.monotonic()
        statement = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{self.postgres.database}' AND random() < 0.5"
        )
        await asyncio.to_thread(self.postgres.cluster.execute, statement)
        self.done.append(Disturbance("ended connections", began, time.monotonic()))


def lose_commit(proxy: CommitLosingProxy, loss: Loss) -> None:
    """Returns when it is lost."""
    lost = proxy.lost
    proxy.lose_next(loss)
    eventually(lambda: proxy.lost > lost)


def family(pid: int) -> list[int]:
    """The process and all that it started, parents before children."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [pid, *(each for child in text.split() for each in family(int(child)))]


@contextmanager
def paused(pids: Sequence[int]) -> Iterator[None]:
    """They stand still inside the block, as in a virtual machine that is suspended."""
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
