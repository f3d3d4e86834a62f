"""Clients that start leased operations and keep the leases, until they stop on purpose."""

from __future__ import annotations

import asyncio
import time
from itertools import cycle
from typing import Any

from google.protobuf.duration_pb2 import Duration

from opservice._proto.opservice.v1 import producer_service_pb2 as producer_pb
from support.answers import text
from support.history import Event
from support.lease_rules import LAPSED, Lease
from support.random_clients import CANCELLED, Known, RandomClient

LEASES = (3, 4)
"""Seconds. Pauses are longer."""


class Holder(RandomClient):
    """One leased operation after the other, each renewed every third of its lease."""

    async def run(self, until: float) -> None:
        while time.monotonic() < until:
            await self._hold(until)

    async def _hold(self, until: float) -> None:
        seconds = self._random.choice(LEASES)
        token, metadata = f"the token of {self._marker('t')}", self._marker("m")
        request = producer_pb.StartRequest(
            metadata=text(metadata),
            parent=self._pool.parent,
            lease=Duration(seconds=seconds),
            lease_token=token,
            idempotency_key=token,
        )
        started_at = time.monotonic()
        while True:
            event = await self._ask(
                "Start",
                "",
                lambda client: client.producer.Start,
                request,
                attempts=(LAPSED, CANCELLED),
                metadata=metadata,
                key=token,
                token=token,
            )
            if event.answer == "ok":
                break
            if time.monotonic() > until:
                return
        lease = Lease(event.operation_id, self.name, seconds, started_at)
        self._pool.leases.append(lease)
        known = Known(event.operation_id, token, immediate=True)
        known.done = event.seen[-1].state.done
        stops_at = min(until, time.monotonic() + self._random.uniform(4, 25))
        await self._keep(known, seconds, stops_at)
        lease.kept_until = time.monotonic()
        if (
            not known.done and self._random.random() < 0.5
        ):  # otherwise silently, as one that crashed
            await self.complete(known)

    async def _keep(self, known: Known, seconds: float, until: float) -> None:
        replicas = cycle(self._random.sample(self._replicas, len(self._replicas)))
        due = time.monotonic() + seconds / 3
        while not known.done and (now := time.monotonic()) < until:
            if now < due:
                await asyncio.sleep(min(due, until) - now)
                continue
            event = await self._renew(known, client=next(replicas), patience=seconds / 6)
            if event.answer != "unknown":
                due = event.invoked_at + seconds / 3

    async def _renew(self, known: Known, **how: Any) -> Event:
        metadata = self._marker("m")
        request = producer_pb.RenewRequest(
            operation_id=known.id, lease_token=known.token, metadata=text(metadata)
        )
        return await self._ask(
            "Renew", known, lambda client: client.producer.Renew, request, metadata=metadata, **how
        )
