"""The services: each mutating call checks the request, starts an operation, runs the work in the
background, and answers with the operation at once.

What a team would copy is `Api` and one of the services.
"""

from __future__ import annotations

import asyncio
import logging
import re
from datetime import timedelta
from typing import NoReturn, cast

import grpc
from google.protobuf.message import Message
from yandex.cloud.containerregistry.v1 import image_service_pb2 as image_api
from yandex.cloud.containerregistry.v1 import image_service_pb2_grpc as image_grpc
from yandex.cloud.containerregistry.v1 import registry_service_pb2 as registry_api
from yandex.cloud.containerregistry.v1 import registry_service_pb2_grpc as registry_grpc
from yandex.cloud.containerregistry.v1 import scanner_service_pb2 as scanner_api
from yandex.cloud.containerregistry.v1 import scanner_service_pb2_grpc as scanner_grpc
from yandex.cloud.containerregistry.v1.image_pb2 import Image
from yandex.cloud.containerregistry.v1.registry_pb2 import Registry
from yandex.cloud.containerregistry.v1.scanner_pb2 import ScanResult
from yandex.cloud.operation.operation_pb2 import Operation

from opservice_client import CancelPolicy, Failed, Progress, StartFailed, idempotency_key
from opservice_client.aio import Producer, Work

from .callers import Context, id_from, new_id, user_of

log = logging.getLogger(__name__)

SERVICES = "yandex.cloud.containerregistry.v1"
NAME = re.compile("[a-z][-a-z0-9]{1,61}[a-z0-9]")
Code = grpc.StatusCode


class Store:
    """Registries, images and scans, in memory: a real service has its database here."""

    def __init__(self) -> None:
        self.registries: dict[str, Registry] = {}
        self.images: dict[str, Image] = {}
        self.scans: dict[str, ScanResult] = {}
        self.deleted: set[str] = set()

    def images_of(self, registry_id: str) -> list[Image]:
        return [each for each in self.images.values() if each.name.startswith(f"{registry_id}/")]

    def fill(self, registry: Registry) -> None:
        """As if somebody had pushed: there is no `docker push` here."""
        for tag in ("1.0", "1.1", "2.0"):
            image = Image(id=id_from("crd", f"{registry.id}:{tag}".encode()), tags=[tag])
            image.name = f"{registry.id}/app"
            self.images[image.id] = image


class Api:
    """What the services share. `pace` is how many seconds a step of any work takes."""

    def __init__(self, producer: Producer, store: Store, lease: timedelta, pace: float) -> None:
        self.producer = producer
        self.store = store
        self.lease = lease
        self.pace = pace

    async def start(
        self,
        context: Context,
        method: str,
        description: str,
        metadata: Message,
        cancel_policy: CancelPolicy.ValueType,
    ) -> Work:
        try:
            return await self.producer.start(
                description=description,
                metadata=metadata,
                method=f"{SERVICES}.{method}",
                created_by=await user_of(context),
                cancel_policy=cancel_policy,
                lease=self.lease,
                id_prefix="crr",
                context=context,
            )
        except StartFailed as error:
            if error.code == Code.INVALID_ARGUMENT:  # the key was used for another request
                await context.abort(error.code, error.details)
            log.exception("%s: the operation was not started", method)
            await context.abort(Code.UNAVAILABLE, "Operations cannot be started now")

    async def check_known(self, context: Context, kind: str, id_: str, known: bool) -> None:
        """Refuses an id that never was.

        One that was deleted may be this request's own doing, if it is repeated under its key: then
        opservice, which knows, is to answer with the same operation.
        """
        if not id_:
            await context.abort(Code.INVALID_ARGUMENT, f"{kind} id is required")
        if not known and not (id_ in self.store.deleted and idempotency_key(context)):
            await context.abort(Code.NOT_FOUND, f"{kind} {id_} not found")

    async def steps(self, work: Work, total: int, unit: str) -> None:
        """Stands for the work. A cancel of the operation raises CancelledError where it waits."""
        for done in range(total):
            work.report(Progress(done=done, total=total, unit=unit))
            await asyncio.sleep(self.pace)


class RegistryService(registry_grpc.RegistryServiceServicer):
    def __init__(self, api: Api) -> None:
        self.api = api
        self.registries = api.store.registries

    async def Create(
        self, request: registry_api.CreateRegistryRequest, context: Context
    ) -> Operation:
        if not request.folder_id:
            await context.abort(Code.INVALID_ARGUMENT, "folder_id is required")
        if not NAME.fullmatch(request.name):
            await context.abort(Code.INVALID_ARGUMENT, f"name must match {NAME.pattern}")
        registry = Registry(
            id=await new_id("crp", request, context),
            folder_id=request.folder_id,
            name=request.name,
            status=Registry.CREATING,
            labels=request.labels,
        )
        # Not IMMEDIATE: it would end the operation while the registry is still being made.
        work = await self.api.start(
            context,
            "RegistryService.Create",
            "Create registry",
            registry_api.CreateRegistryMetadata(registry_id=registry.id),
            CancelPolicy.COOPERATIVE,
        )
        work.run(self._create, registry)  # which does nothing when this request is a repeat
        return operation_of(work)

    async def _create(self, work: Work, registry: Registry) -> Registry:
        wanted = registry.folder_id, registry.name
        if wanted in [(each.folder_id, each.name) for each in self.registries.values()]:
            raise Failed(Code.ALREADY_EXISTS, f"Registry {registry.name} already exists")
        self.registries[registry.id] = registry
        try:
            await self.api.steps(work, 3, "steps")
        except BaseException:  # cancelled, or the service is being stopped
            del self.registries[registry.id]
            raise
        registry.created_at.GetCurrentTime()
        registry.status = Registry.ACTIVE
        self.api.store.fill(registry)
        return registry

    async def Delete(
        self, request: registry_api.DeleteRegistryRequest, context: Context
    ) -> Operation:
        id_ = request.registry_id
        await self.api.check_known(context, "Registry", id_, id_ in self.registries)
        work = await self.api.start(
            context,
            "RegistryService.Delete",
            "Delete registry",
            registry_api.DeleteRegistryMetadata(registry_id=id_),
            CancelPolicy.UNSUPPORTED,
        )
        work.run(self._delete, id_)
        return operation_of(work)

    async def _delete(self, work: Work, id_: str) -> None:
        # Looked at here, not in Delete: a repeated request must not be refused for what has changed since.
        registry = self.registries.get(id_)
        if registry is None:
            raise Failed(Code.NOT_FOUND, f"Registry {id_} not found")
        if registry.status != Registry.ACTIVE or self.api.store.images_of(id_):
            raise Failed(Code.FAILED_PRECONDITION, f"Registry {id_} is in use")
        registry.status = Registry.DELETING
        try:
            await self.api.steps(work, 2, "steps")
        except BaseException:
            registry.status = Registry.ACTIVE
            raise
        del self.registries[id_]
        self.api.store.deleted.add(id_)

    async def Get(self, request: registry_api.GetRegistryRequest, context: Context) -> Registry:
        found = self.registries.get(request.registry_id)
        return found or await not_found(context, "Registry", request.registry_id)


class ImageService(image_grpc.ImageServiceServicer):
    def __init__(self, api: Api) -> None:
        self.api = api
        self.images = api.store.images

    async def Delete(self, request: image_api.DeleteImageRequest, context: Context) -> Operation:
        id_ = request.image_id
        await self.api.check_known(context, "Image", id_, id_ in self.images)
        work = await self.api.start(
            context,
            "ImageService.Delete",
            "Delete image",
            image_api.DeleteImageMetadata(image_id=id_),
            CancelPolicy.UNSUPPORTED,
        )
        work.run(self._delete, id_)
        return operation_of(work)

    async def _delete(self, work: Work, id_: str) -> None:
        await self.api.steps(work, 4, "layers")
        if self.images.pop(id_, None) is None:
            raise Failed(Code.NOT_FOUND, f"Image {id_} not found")
        self.api.store.deleted.add(id_)

    async def List(
        self, request: image_api.ListImagesRequest, context: Context
    ) -> image_api.ListImagesResponse:
        return image_api.ListImagesResponse(images=self.api.store.images_of(request.registry_id))


class ScannerService(scanner_grpc.ScannerServiceServicer):
    def __init__(self, api: Api) -> None:
        self.api = api
        self.scans = api.store.scans

    async def Scan(self, request: scanner_api.ScanRequest, context: Context) -> Operation:
        image_id = request.image_id
        await self.api.check_known(context, "Image", image_id, image_id in self.api.store.images)
        id_ = await new_id("chs", request, context)
        work = await self.api.start(
            context,
            "ScannerService.Scan",
            "Scan image",
            scanner_api.ScanMetadata(scan_result_id=id_),
            CancelPolicy.COOPERATIVE,
        )
        work.run(self._scan, ScanResult(id=id_, image_id=image_id, status=ScanResult.RUNNING))
        return operation_of(work)

    async def _scan(self, work: Work, scan: ScanResult) -> ScanResult:
        if scan.image_id not in self.api.store.images:
            raise Failed(Code.NOT_FOUND, f"Image {scan.image_id} not found")
        self.scans[scan.id] = scan
        try:
            await self.api.steps(work, 100, "packages")
        except BaseException:  # half a scan is none
            del self.scans[scan.id]
            raise
        scan.vulnerabilities.high, scan.vulnerabilities.low = 2, 11
        scan.scanned_at.GetCurrentTime()
        scan.status = ScanResult.READY
        return scan

    async def Get(self, request: scanner_api.GetScanResultRequest, context: Context) -> ScanResult:
        found = self.scans.get(request.scan_result_id)
        return found or await not_found(context, "Scan result", request.scan_result_id)


async def not_found(context: Context, kind: str, id_: str) -> NoReturn:
    await context.abort(Code.NOT_FOUND, f"{kind} {id_} not found")


def operation_of(work: Work) -> Operation:
    """The client's Operation is the SDK's at run time, but not to a type checker."""
    return cast("Operation", work.operation)
