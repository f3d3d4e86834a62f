"""Random clients on some replicas of a server whose connections are cut and that are killed meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, cast

import grpc

from opservice._proto.opservice.v1.operation_record_service_pb2 import GetOperationRecordRequest
from support.answers import refusal_to_fields, state_of
from support.client import Client
from support.disturbances import Disturber
from support.history import Event, Sight, Violation, check
from support.holders import Holder
from support.lease_rules import Disturbance, Lease, check_leases
from support.listing_rules import Listing, check_listings
from support.random_clients import (
    FOLLOWER,
    WORKER,
    Act,
    Pool,
    RandomClient,
)
from support.relay import Relay
from support.server import ServerProcess, eventually

_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # a connection for each client
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 100),
]

_OFTEN, _SELDOM = (0.1, 0.3), (0.3, 1.5)
"""Seconds between cuts."""
_AWAIT_LEASES = 45.0
"""Seconds: longer than `check_leases` allows."""

Disturb = Callable[[], object]


@dataclass(frozen=True)
class Chaos:
    """What happened. The last events are what each replica says of each operation in the end."""

    events: list[Event]
    cuts: int
    listings: list[Listing]
    leases: list[Lease]
    disturbances: list[Disturbance]
    replicas: int
    calm_since: float

    def check(self, grace: float) -> list[Violation]:
        """All rules; `grace` is the restart grace of the servers, in seconds."""
        found = check(self.events) + check_listings(self.events, self.listings)
        return found + check_leases(
            self.events,
            self.leases,
            self.disturbances,
            replicas=self.replicas,
            grace=grace,
            calm_since=self.calm_since,
            clock=time.time() - time.monotonic(),
        )

    @property
    def calls(self) -> Counter[tuple[str, str]]:
        """How often each call was answered how."""
        return Counter((event.call, event.answer) for event in self.events)

    @property
    def ends(self) -> Counter[str]:
        """How the operations ended, by the first word of the result."""
        ends = {
            event.operation_id: str(sight.state.result).split()[0]
            for event in self.events
            for sight in event.seen
            if sight.state.done
        }
        return Counter(ends.values())


def run_chaos(
    replicas: Sequence[ServerProcess],
    *,
    seed: int,
    seconds: float,
    kills: int = 0,
    disturb: Disturb | None = None,
    disturber: Disturber | None = None,
    workers: int = 8,
    followers: int = 4,
    holders: int = 0,
    name: str = "",
) -> Chaos:
    """Runs clients for some seconds, then reads everything through every replica.

    Meanwhile connections are cut every 0.1 to 0.3 s (with a disturber, 0.3 to 1.5 s), and one replica
    after the other is killed and started again, `kills` times in all. `disturb` is called about every half
    second, on a thread. `disturber` does whatever it does. The names of all clients, keys and tokens begin
    with `name`, which must be another for each run on one database.
    """
    pool = Pool(name)
    acts = [WORKER] * workers + [FOLLOWER] * followers
    cuts = asyncio.run(
        _chaos(replicas, pool, Random(seed), seconds, kills, disturb, disturber, acts, holders)
    )
    calm_since = time.monotonic()
    _await_leases(replicas[0], pool)
    for number, replica in enumerate(replicas, 1):
        _read_everything(replica, f"last-reader-{number}", pool)
    done = [] if disturber is None else disturber.done
    return Chaos(pool.events, cuts, pool.listings, pool.leases, done, len(replicas), calm_since)


async def _chaos(
    replicas: Sequence[ServerProcess],
    pool: Pool,
    random: Random,
    seconds: float,
    kills: int,
    disturb: Disturb | None,
    disturber: Disturber | None,
    acts: Sequence[Sequence[Act]],
    holders: int,
) -> int:
    async with AsyncExitStack() as stack:
        relays = [await stack.enter_async_context(Relay(each.address)) for each in replicas]
        clients: list[RandomClient] = []
        for number, its_acts in enumerate([*acts, *[None] * holders], 1):
            roads = []
            for relay in relays:
                channel = grpc.aio.insecure_channel(relay.address, _OPTIONS)
                roads.append(Client(cast("grpc.Channel", await stack.enter_async_context(channel))))
            own = Random(random.random())
            if its_acts is None:
                clients.append(Holder(f"h{number}", roads, pool, own, []))
            else:
                clients.append(RandomClient(f"c{number}", roads, pool, own, its_acts))
        until = time.monotonic() + seconds
        trouble = [
            _cut(relays, Random(random.random()), until, _SELDOM if disturber else _OFTEN),
            _kill(replicas, Random(random.random()), seconds, kills),
        ]
        if disturb is not None:
            trouble.append(_disturb(disturb, Random(random.random()), until))
        if disturber is not None:
            trouble.append(disturber.run(until))
        async with asyncio.TaskGroup() as group:
            for each in (*trouble, *(client.run(until) for client in clients)):
                group.create_task(each)
        return sum(relay.cuts for relay in relays)


async def _cut(
    relays: Sequence[Relay], random: Random, until: float, pace: tuple[float, float]
) -> None:
    while time.monotonic() < until:
        await asyncio.sleep(random.uniform(*pace))
        relay = random.choice(relays)
        if random.random() < 0.5:
            relay.lose_answers()
            await asyncio.sleep(random.uniform(0.005, 0.05))
        relay.cut()


async def _kill(
    replicas: Sequence[ServerProcess], random: Random, seconds: float, kills: int
) -> None:
    for number in range(kills):
        await asyncio.sleep(seconds / (kills + 1) * random.uniform(0.6, 0.9))
        replica = replicas[number % len(replicas)]
        await asyncio.to_thread(replica.kill)
        await asyncio.sleep(random.uniform(0, 0.5))
        await asyncio.to_thread(replica.start)


async def _disturb(disturb: Disturb, random: Random, until: float) -> None:
    while time.monotonic() < until:
        await asyncio.sleep(random.uniform(0.3, 0.7))
        await asyncio.to_thread(disturb)


def _await_leases(replica: ServerProcess, pool: Pool) -> None:
    """Until they have ended; after a generous time no more: `check_leases` says which have not."""
    running = {lease.operation_id for lease in pool.leases}
    deadline = time.monotonic() + _AWAIT_LEASES
    while running and time.monotonic() < deadline:
        for id_ in list(running):
            with suppress(grpc.RpcError):  # it may take a moment until all is well again
                if replica.client.get(id_).done:
                    running.discard(id_)
        time.sleep(0.1)


def _read_everything(replica: ServerProcess, name: str, pool: Pool) -> None:
    ids = sorted({event.operation_id for event in pool.events} - {""})
    for id_ in ids:
        pool.events.append(eventually(partial(_read, replica, name, id_)))


def _read(replica: ServerProcess, name: str, operation_id: str) -> Event | None:
    """None when it could not be read: what was disturbed last may take a moment to recover."""
    invoked_at = time.monotonic()
    told: dict[str, Any]
    try:
        record = replica.client.records.Get(GetOperationRecordRequest(operation_id=operation_id))
    except grpc.RpcError as error:
        told = refusal_to_fields(error)
        if told["answer"] != "refused":
            return None
    else:
        told = {"seen": (Sight(time.monotonic(), state_of(record)),)}
    return Event(
        client=name,
        call="GetRecord",
        operation_id=operation_id,
        invoked_at=invoked_at,
        returned_at=time.monotonic(),
        **told,
    )
