"""`serve --demo`: a few operations of an imaginary container registry, to look at and to cancel."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.demo.v1 import container_registry_pb2 as registry_pb
from opservice.common.loggers import get_logger
from opservice.domain.errors import PreconditionFailed, StoreError
from opservice.domain.operation import (
    DAY,
    SECOND,
    CancelPolicy,
    Complete,
    Fail,
    Progress,
    Renew,
    Start,
    hash_lease_token,
    new_id,
)
from opservice.methods.convert import CANCELLED, failure_from_pb, payload_to_bytes
from opservice.store.service import OperationStore

FILES = (registry_pb.DESCRIPTOR,)
"""That define the messages of the demo's operations."""

_LEASE = 15 * SECOND

log = get_logger("opservice.demo")


@dataclass(frozen=True, slots=True)
class Job:
    """What one demo operation does: `seconds` steps of a second each, then its result."""

    method: str
    description: str
    metadata: Message
    result: Message
    seconds: int
    unit: str
    cancel_policy: CancelPolicy = CancelPolicy.IMMEDIATE


async def run_demo(store: OperationStore, announce: Callable[[str], None], call: str) -> None:
    """Runs the jobs side by side. `call` is a command line with a place for id and method."""
    jobs = _jobs()
    ids = [new_id("crd") for _ in jobs]
    tokens = [secrets.token_urlsafe(16) for _ in jobs]
    announce("Demo operations, running now:")
    for job, id_, token in zip(jobs, ids, tokens, strict=True):
        try:
            await _start(store, job, id_, token)
        except StoreError as error:
            log.warning("the demo could not start its operations", cause=error.message)
            return
        announce(f"  {id_}  {job.description} ({job.seconds} s, cancel: {job.cancel_policy.name})")
    announce("Look at one, and cancel one:")
    announce("  " + call.format(id=ids[0], method="Get"))
    announce("  " + call.format(id=ids[2], method="Cancel"))
    await asyncio.gather(
        *(_work(store, job, id_, token) for job, id_, token in zip(jobs, ids, tokens, strict=True))
    )


async def _start(store: OperationStore, job: Job, id_: str, token: str) -> None:
    await store.apply(
        Start(
            id=id_,
            retention=DAY,
            parent="folders/demo",
            method=f"opservice.demo.v1.{job.method}",
            description=job.description,
            created_by="demo",
            metadata=_packed(job.metadata),
            cancel_policy=job.cancel_policy,
            # When the server is stopped in mid-demo, the next one ends what was left.
            lease=_LEASE,
            lease_token_hash=hash_lease_token(id_, token),
        )
    )


async def _work(store: OperationStore, job: Job, id_: str, token: str) -> None:
    token_hash = hash_lease_token(id_, token)
    try:
        for second in range(job.seconds):
            progress = Progress(second, job.seconds, job.unit, job.description)
            renewed = await store.apply(Renew(id_, token_hash, progress=progress))
            if renewed.record.cancel_requested_at is not None:
                await store.apply(Fail(id_, CANCELLED, token_hash))
                return
            await asyncio.sleep(1)
        if isinstance(job.result, Status):
            await store.apply(Fail(id_, failure_from_pb(job.result), token_hash))
        else:
            await store.apply(Complete(id_, _packed(job.result), token_hash))
    except PreconditionFailed:  # somebody cancelled it
        log.info("demo operation ended by another", operation_id=id_)
    except StoreError as error:
        log.warning("demo operation left to its lease", operation_id=id_, cause=error.message)


def _packed(message: Message) -> bytes:
    payload = Any()
    payload.Pack(message)
    return payload_to_bytes(payload)


def _jobs() -> list[Job]:
    registry, image, scan = (new_id("crp") for _ in range(3))
    made = registry_pb.Registry(
        id=registry,
        folder_id="demo",
        name="team-images",
        status=registry_pb.Registry.ACTIVE,
        labels={"team": "demo"},
    )
    made.created_at.FromSeconds(int(time.time()))
    found = registry_pb.ScanResult(id=scan, image_id=image)
    found.vulnerabilities.high, found.vulnerabilities.low = 2, 11
    return [
        Job(
            "RegistryService.Create",
            "Create registry",
            registry_pb.CreateRegistryMetadata(registry_id=registry),
            made,
            60,
            "steps",
        ),
        Job(
            "ImageService.Delete",
            "Delete image",
            registry_pb.DeleteImageMetadata(image_id=image),
            Empty(),
            20,
            "layers",
            CancelPolicy.UNSUPPORTED,
        ),
        Job(
            "ScannerService.Scan",
            "Scan image",
            registry_pb.ScanMetadata(scan_result_id=scan, image_id=image),
            found,
            120,
            "packages",
            CancelPolicy.COOPERATIVE,
        ),
        Job(
            "RegistryService.Create",
            "Create registry, whose name is taken",
            registry_pb.CreateRegistryMetadata(registry_id=new_id("crp")),
            Status(code=Code.ALREADY_EXISTS, message="Registry team-images exists already"),
            30,
            "steps",
        ),
    ]
