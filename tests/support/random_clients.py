"""Clients that do whatever comes to their mind to the same operations, and record what they are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeAlias

import grpc
from google.longrunning import operations_proto_pb2 as longrunning_pb
from google.longrunning.operations_pb2_grpc import OperationsStub
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.v1 import operation_record_service_pb2 as record_pb
from opservice._proto.opservice.v1 import producer_service_pb2 as producer_pb
from opservice._proto.opservice.v1.operation_record_pb2 import (
    CancelPolicy,
    Progress,
)
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import (
    CancelOperationRequest,
    GetOperationRequest,
)
from support.answers import glimpse_of, refusal_to_fields, state_of, text, told_by
from support.client import Client, unpacked
from support.history import DONE, Call, Event, Sight
from support.lease_rules import LAPSED, Lease
from support.listing_rules import Listing

CANCELLED = "CANCELLED OPERATION_CANCELLED"
TIMED_OUT = "DEADLINE_EXCEEDED OPERATION_TIMEOUT"

_OPERATIONS = 24
"""So many are in play at a time."""
_DEADLINE = 2.0

Act: TypeAlias = "Callable[[RandomClient, Known], Any]"


@dataclass(slots=True)
class Known:
    """An operation that clients have heard of."""

    id: str
    token: str
    immediate: bool
    key: str = ""
    done: bool = False


@dataclass
class Pool:
    """What the clients share: the operations in play, and the history."""

    name: str = ""
    """The names of its clients, and so its keys and tokens, begin with it."""
    events: list[Event] = field(default_factory=list)
    operations: list[Known] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    births: list[int] = field(default_factory=list)
    """When the newest operations were created."""
    listings: list[Listing] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)

    @property
    def parent(self) -> str:
        """Of all operations of the pool."""
        return f"pools/{self.name}" if self.name else ""

    @property
    def short(self) -> bool:
        return len(self.operations) < _OPERATIONS

    def retire(self, known: Known) -> None:
        if known in self.operations:
            self.operations.remove(known)


class RandomClient:
    """One call after the other, each through one of the replicas, until `until` (monotonic time)."""

    def __init__(
        self, name: str, replicas: Sequence[Client], pool: Pool, random: Random, acts: Sequence[Act]
    ) -> None:
        self.name = f"{pool.name}{name}"
        self._replicas = replicas
        self._pool = pool
        self._random = random
        self._acts = acts
        self._count = 0

    async def run(self, until: float) -> None:
        while time.monotonic() < until:
            if self._pool.short and self._random.random() < 0.5:
                await self._start(until)
            elif self._pool.operations:
                await self._act()
            else:
                await asyncio.sleep(0.01)

    async def _act(self) -> None:
        operations = self._pool.operations
        # The first are the most popular, and the oldest.
        known = operations[int(len(operations) * self._random.random() ** 2)]
        await self._random.choice(self._acts)(self, known)
        if known.done and self._random.random() < 0.1:
            self._pool.retire(known)

    async def _start(self, until: float) -> None:
        keys, key = self._pool.keys, ""
        if self._random.random() < 0.6:
            key = f"key {self.name} {len(keys)}"
            if keys and self._random.random() < 0.3:
                key = self._random.choice(keys[-5:])
            keys.append(key)
        await self._start_under(key, until)

    async def _start_under(self, key: str, until: float) -> None:
        """With a key it is repeated until it is answered, as a producer would."""
        token = f"the token of {self._marker('t')}"
        # Whoever starts under the same key asks for the same.
        request, ends = start_request(Random(key or token), key, token)
        request.parent = self._pool.parent
        while True:
            event = await self._ask(
                "Start",
                "",
                lambda client: client.producer.Start,
                request,
                attempts=ends,
                metadata=unpacked(request.metadata, StringValue).value,
                key=key,
                token=token,
            )
            if event.owned:
                immediate = request.cancel_policy == CancelPolicy.IMMEDIATE
                self._pool.operations.append(Known(event.operation_id, token, immediate, key))
                self._pool.births.append(event.seen[0].state.born)
            if not key or event.answer != "unknown" or time.monotonic() > until:
                return

    async def get(self, known: Known) -> None:
        request = GetOperationRequest(operation_id=known.id)
        await self._ask("Get", known, lambda client: client.operations.Get, request)

    async def get_record(self, known: Known) -> None:
        request = record_pb.GetOperationRecordRequest(operation_id=known.id)
        await self._ask("GetRecord", known, lambda client: client.records.Get, request)

    async def wait(self, known: Known) -> None:
        timeout = Duration(nanos=self._random.randrange(300_000_000))
        request = record_pb.WaitOperationRecordRequest(operation_id=known.id, timeout=timeout)
        await self._ask("Wait", known, lambda client: client.records.Wait, request)

    async def watch(self, known: Known) -> None:
        client = self._random.choice(self._replicas)
        request = record_pb.WatchOperationRecordRequest(operation_id=known.id)
        seen: list[Sight] = []
        told: dict[str, Any] = {}
        invoked_at = time.monotonic()
        try:
            async for record in client.records.Watch(request, timeout=self._random.random()):  # type: ignore[attr-defined]  # the stub is of an aio channel
                seen.append(Sight(time.monotonic(), state_of(record)))  # noqa: PERF401 - kept also when the stream breaks
        except grpc.aio.AioRpcError as error:
            told = refusal_to_fields(error)
        await self._record(known, call="Watch", invoked_at=invoked_at, seen=tuple(seen), **told)

    async def renew(self, known: Known) -> None:
        metadata = self._marker("m")
        request = producer_pb.RenewRequest(
            operation_id=known.id,
            lease_token=known.token,
            metadata=text(metadata),
            progress=Progress(done=self._count),
        )
        await self._ask(
            "Renew", known, lambda client: client.producer.Renew, request, metadata=metadata
        )

    async def cancel(self, known: Known) -> None:
        request = CancelOperationRequest(operation_id=known.id)
        await self._ask(
            "Cancel",
            known,
            lambda client: client.operations.Cancel,
            request,
            attempts=(CANCELLED,),
            ends=known.immediate,
        )

    async def complete(self, known: Known) -> None:
        result, metadata = self._marker("r"), self._marker("m")
        request = producer_pb.CompleteRequest(
            operation_id=known.id,
            lease_token=known.token,
            response=text(result),
            metadata=text(metadata),
        )
        await self._end(
            "Complete",
            known,
            lambda client: client.producer.Complete,
            request,
            attempts=(f"response {result}",),
            metadata=metadata,
        )

    async def fail(self, known: Known) -> None:
        result = self._marker("e")
        request = producer_pb.FailRequest(
            operation_id=known.id,
            lease_token=known.token,
            error=Status(code=Code.DATA_LOSS, message=result),
        )
        await self._end(
            "Fail",
            known,
            lambda client: client.producer.Fail,
            request,
            attempts=(f"DATA_LOSS {result}",),
        )

    async def delete(self, known: Known) -> None:
        """A key is used again then, now and then."""
        request: Any
        if self._random.random() < 0.5:
            request = record_pb.DeleteOperationRecordRequest(operation_id=known.id)
            event = await self._ask("Delete", known, lambda client: client.records.Delete, request)
        else:
            request = longrunning_pb.DeleteOperationRequest(name=self._name(known))
            event = await self._ask(
                "LongrunningDelete",
                known,
                lambda client: _longrunning(client).DeleteOperation,
                request,
            )
        if event.answer == "ok":
            known.done = True
            if known.key and self._random.random() < 0.5:
                await self._start_under(known.key, time.monotonic() + _DEADLINE)

    async def delete_if_done(self, known: Known) -> None:
        if known.done or self._random.random() < 0.1:
            await self.delete(known)

    async def longrunning_get(self, known: Known) -> None:
        request = longrunning_pb.GetOperationRequest(name=self._name(known))
        await self._ask(
            "LongrunningGet", known, lambda client: _longrunning(client).GetOperation, request
        )

    async def longrunning_wait(self, known: Known) -> None:
        timeout = Duration(nanos=self._random.randrange(300_000_000))
        request = longrunning_pb.WaitOperationRequest(name=self._name(known), timeout=timeout)
        await self._ask(
            "LongrunningWait", known, lambda client: _longrunning(client).WaitOperation, request
        )

    async def longrunning_cancel(self, known: Known) -> None:
        request = longrunning_pb.CancelOperationRequest(name=self._name(known))
        await self._ask(
            "LongrunningCancel",
            known,
            lambda client: _longrunning(client).CancelOperation,
            request,
            attempts=(CANCELLED,),
        )

    async def list(self, known: Known) -> None:
        """All pages of the newest operations, or of all; a page that is not answered ends it."""
        births = self._pool.births[-30:]
        since = self._random.choice(births) if births and self._random.random() < 0.9 else 0
        done = self._random.choice([None, False, True])
        terms = [] if done is None else [f"done = {str(done).lower()}"]
        if since:
            moment = Timestamp()
            moment.FromMicroseconds(since)
            terms.append(f'created_at > "{moment.ToJsonString()}"')
        request = record_pb.ListOperationRecordsRequest(
            parent=self._pool.parent or "",
            filter=" AND ".join(terms),
            page_size=self._random.randint(3, 40),
        )
        client = self._random.choice(self._replicas)
        listed: list[tuple[str, int]] = []
        began = time.monotonic()
        while True:
            invoked_at = time.monotonic()
            try:
                page = await client.records.List(request, timeout=_DEADLINE)  # type: ignore[misc]  # the stub is of an aio channel
            except grpc.aio.AioRpcError as error:
                told = refusal_to_fields(error)
                await self._record("", call="List", invoked_at=invoked_at, **told)
                return
            for record in page.operation_records:
                state = state_of(record)
                seen = (Sight(time.monotonic(), state),)
                await self._record(
                    record.operation.id, call="List", invoked_at=invoked_at, seen=seen
                )
                listed.append((record.operation.id, state.born))
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        self._pool.listings.append(Listing(began, time.monotonic(), tuple(listed), since, done))

    async def longrunning_list(self, known: Known) -> None:
        """A page of the newest operations."""
        request = longrunning_pb.ListOperationsRequest(
            name=self._pool.parent or "", page_size=self._random.randint(3, 40)
        )
        client = self._random.choice(self._replicas)
        invoked_at = time.monotonic()
        try:
            page = await _longrunning(client).ListOperations(request, timeout=_DEADLINE)
        except grpc.aio.AioRpcError as error:
            told = refusal_to_fields(error)
            await self._record("", call="LongrunningList", invoked_at=invoked_at, **told)
            return
        for operation in page.operations:
            id_ = operation.name.rpartition("/")[2]
            glimpse = glimpse_of(operation)
            await self._record(id_, call="LongrunningList", invoked_at=invoked_at, glimpse=glimpse)

    def _name(self, known: Known) -> str:
        """With the parent or without."""
        parent = self._random.choice(["", self._pool.parent])
        return f"{parent}/operations/{known.id}" if parent else f"operations/{known.id}"

    async def rival(self, known: Known) -> None:
        """Everything at once."""
        acts = [self.complete, self.fail, self.cancel, self.renew, self.get, self.get_record]
        self._random.shuffle(acts)
        await asyncio.gather(*(act(known) for act in acts))

    async def _end(self, call: Call, known: Known, *how: Any, **writes: Any) -> None:
        """A result is safe to repeat."""
        for _ in range(3):
            event = await self._ask(call, known, *how, ends=True, **writes)
            if event.answer != "unknown":
                return

    async def _ask(
        self,
        call: Call,
        known: Known | str,
        method: Callable[[Client], Callable[..., Any]],
        request: Any,
        client: Client | None = None,
        patience: float | None = None,
        **writes: Any,
    ) -> Event:
        """Of a random replica, unless told of which; for so many seconds, unless told for how many."""
        ask = method(client or self._random.choice(self._replicas))
        if patience is None:
            # Now and then too short for an answer.
            patience = self._random.uniform(0, 0.01) if self._random.random() < 0.03 else _DEADLINE
        invoked_at = time.monotonic()
        try:
            answer = await ask(request, timeout=patience)
        except grpc.aio.AioRpcError as error:
            told = refusal_to_fields(error)
        else:
            told = told_by(answer)
            if isinstance(answer, producer_pb.StartResponse):
                known = answer.operation.id
                told["owned"] = answer.owned
        return await self._record(known, call=call, invoked_at=invoked_at, **writes, **told)

    async def _record(self, known: Known | str, **fields: Any) -> Event:
        event = Event(
            client=self.name,
            operation_id=known if isinstance(known, str) else known.id,
            returned_at=time.monotonic(),
            **fields,
        )
        self._pool.events.append(event)
        if isinstance(known, Known):
            done = bool(event.seen) and event.seen[-1].state.done
            known.done = known.done or done or event.refusal == DONE
        if event.answer == "unknown":
            await asyncio.sleep(self._random.uniform(0.005, 0.03))  # its replica may be away
        return event

    def _marker(self, kind: str) -> str:
        self._count += 1
        return f"{kind}.{self.name}.{self._count}"


WORKER: Sequence[Act] = [
    *[RandomClient.get, RandomClient.get_record, RandomClient.renew] * 12,
    *[RandomClient.longrunning_get, RandomClient.delete_if_done, RandomClient.delete_if_done] * 4,
    *[RandomClient.cancel, RandomClient.complete, RandomClient.fail, RandomClient.rival],
    RandomClient.longrunning_cancel,
]
FOLLOWER: Sequence[Act] = [
    *[RandomClient.wait, RandomClient.watch] * 2,
    *[RandomClient.longrunning_wait, RandomClient.longrunning_list, RandomClient.list],
]


def start_request(
    random: Random, key: str, token: str
) -> tuple[producer_pb.StartRequest, tuple[str, ...]]:
    """And the results that it allows the server to give the operation."""
    request = producer_pb.StartRequest(
        metadata=text(f"s.{key or token}"),
        cancel_policy=random.choice([CancelPolicy.IMMEDIATE, CancelPolicy.COOPERATIVE]),
        lease_token=token,
        idempotency_key=key,
    )
    ends = []
    if random.random() < 0.2:
        request.lease.CopyFrom(Duration(seconds=1))
        ends.append(LAPSED)
    if random.random() < 0.2:
        request.timeout.CopyFrom(Duration(nanos=random.randrange(100_000_000, 900_000_000)))
        ends.append(TIMED_OUT)
    return request, tuple(ends)


def _longrunning(client: Client) -> Any:
    return OperationsStub(client.channel)  # type: ignore[no-untyped-call] # has no stub
