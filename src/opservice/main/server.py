"""The composition root: from settings to a running server, and down again."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack

import structlog

from opservice import __version__
from opservice.auth.authenticator import Authenticator
from opservice.background.housekeeping import (
    CHECKPOINT_SECONDS,
    SWEEP_LIMIT,
    keep_checkpointing,
    keep_house,
)
from opservice.common.addresses import socket_path
from opservice.common.private_files import group_id
from opservice.domain.errors import StoreUnavailable
from opservice.domain.operation import (
    SECOND,
    DeleteExpired,
    EndCancelGrace,
    LapseLeases,
    ReachTimeouts,
    Sweep,
)
from opservice.fronts.grpc.adapter import Methods
from opservice.fronts.grpc.server import GrpcOptions, listen, new_server
from opservice.fronts.grpc.services import KnownTypes, known_types, own_methods
from opservice.main import demo
from opservice.methods.admission import Admission, AdmissionLimits
from opservice.methods.convert import LEASE_EXPIRED, TIMED_OUT
from opservice.methods.endpoints import OWN_ENDPOINTS
from opservice.methods.guard import GuardedStore
from opservice.methods.pipeline import Pipeline
from opservice.methods.registry import Method
from opservice.methods.services import api_methods
from opservice.methods.serving import ServingState
from opservice.methods.validation import Limits
from opservice.runtime.reload import Reloader, read_files
from opservice.runtime.security import Security
from opservice.runtime.settings import Settings
from opservice.runtime.settings.groups import (
    ConnectionSettings,
    DiscoverySettings,
    OperationSettings,
    StorageSettings,
)
from opservice.runtime.unix_socket import bound
from opservice.store.engine import Database, open_database
from opservice.store.migrations import check_schema, migrate
from opservice.store.repository import Repository
from opservice.store.service import OperationStore

CLOSE_SECONDS = 5
"""How long the end of a server may wait for its database."""
_WILDCARDS = {"0.0.0.0", "[::]"}  # noqa: S104 - to warn of them

_OPERATION_SERVICE = "yandex.cloud.operation.OperationService"

log = structlog.stdlib.get_logger("opservice.server")


async def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, then drains. `announce` gets the line that says it is ready.

    Raises StartupError, or StoreError, when it cannot start.
    """
    stop = _stop_on_signals()
    # Everything that can be wrong with the settings is found before the database is touched.
    files = read_files(settings.security)
    security = Security(settings.security, files)

    reloader = Reloader(settings.security, files, security.replace)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.request)
    await security.start()
    types = build_known_types(settings.discovery)
    database = await asyncio.to_thread(prepare_database, settings.storage)
    await run(settings, database, security, types, stop, announce)


async def run(
    settings: Settings,
    database: Database,
    security: Security,
    types: KnownTypes,
    stop: asyncio.Event,
    announce: Callable[[str], None],
    *,
    share_port: bool = False,
) -> None:
    """Serves until `stop`, then drains and closes the database, which was prepared before.

    With `share_port` other processes of this user may listen on the same port. Raises StartupError
    when it cannot listen.
    """
    store = OperationStore(
        database,
        Repository(),
        settings.storage.poll_interval,
        notify=not settings.storage.no_notify,
    )
    state = ServingState()
    loop = asyncio.get_running_loop()
    database.driver.when_lost(lambda: loop.call_soon_threadsafe(state.stop))
    server = new_server(grpc_options(settings.connections, share_port=share_port))
    listening = ExitStack()
    try:
        credentials = None if security.tls is None else security.tls.of_grpc
        mode = int(settings.listening.unix_socket_mode, 8)
        address = listen(
            server,
            settings.listening.listen,
            credentials,
            lambda path, bind: bound(path, mode, bind),
            listening,
        )
        admission = _admission(settings, security.authenticator)
        guarded = GuardedStore(store, security.authenticator)
        served = Methods(
            Pipeline(admission, settings.limits.max_calls), settings.limits.max_unsent_bytes
        )
        served.add(_api_methods(settings, guarded, address))
        served.add(own_methods(state, types))
        server.add_generic_rpc_handlers((served,))
        # What there is now stays until the end: looking for garbage in it would stop all calls for 50 ms.
        gc.collect()
        gc.freeze()
        await server.start()
        background = [
            asyncio.create_task(
                keep_house(
                    store,
                    _sweeps(settings.operations.cancel_grace),
                    settings.operations.housekeeping_interval,
                    settings.operations.restart_grace,
                    lambda: security.keys is None or security.keys.has_keys,
                )
            )
        ]
        if database.driver.embedded:
            background.append(asyncio.create_task(keep_checkpointing(store, CHECKPOINT_SECONDS)))
        if security.keys is not None:
            background.append(asyncio.create_task(security.keys.keep_fresh()))
        transport = "plaintext" if security.tls is None else "TLS"
        shown = database.url.shown
        if not settings.discovery.advertise and address.rpartition(":")[0] in _WILDCARDS:
            log.warning(
                "set --advertise: SDKs that look for services here would be told", address=address
            )
        for warning in security.warnings(is_local=settings.listening.is_local):
            log.warning(warning)
        announce(f"opservice {__version__} serving on {address} ({transport}, {shown})")
        log.info("serving", address=address, security=transport, database=shown)
        if settings.processes.demo and not stop.is_set():
            background.append(
                asyncio.create_task(demo.run_demo(store, announce, _grpcurl(settings, address)))
            )
        await stop.wait()
        log.info("draining", seconds=settings.processes.drain / SECOND)
        state.stop()
        store.stop_following()
        admission.stop()
        for task in background:
            task.cancel()
        await server.stop(settings.processes.drain / SECOND)
        await asyncio.gather(*background, return_exceptions=True)
        log.info("stopped")
    finally:
        await server.stop(None)
        listening.close()
        await _close(store)


def _stop_on_signals() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT. A second one ends the process at once."""
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            log.warning("stopped at once by a second signal")
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop


async def _close(store: OperationStore) -> None:
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await store.close()
    except TimeoutError:
        # A thread that waits for the database cannot be ended, only left. Nobody was told of success.
        log.error("the database hangs: stopped without waiting for it")  # noqa: TRY400 - no more to say
        os._exit(1)


def build_known_types(settings: DiscoverySettings) -> KnownTypes:
    """The types that reflection knows. Raises StartupError when a descriptor set cannot be used."""
    return known_types(demo.FILES, settings.descriptor_set)


def prepare_database(settings: StorageSettings) -> Database:
    """Brings the schema up to date where that is asked for, and checks it.

    Raises StartupError or StoreError when it cannot be served from.
    """
    database = open_database(settings.database, group=group_id(settings.file_group))
    try:
        _prepare_schema(database, migrates=database.driver.embedded or settings.migrate)
    except StoreUnavailable:
        # A connection that is lost while SQLAlchemy makes it counts as one that cannot be made.
        log.warning("the database is not available: trying once more")
        _prepare_schema(database, migrates=database.driver.embedded or settings.migrate)
    for warning in database.warnings():
        log.warning(warning)
    if not settings.no_notify and database.through_pooler():
        log.warning(
            "a pooler is between this server and PostgreSQL: give --no-notify, unless it is in session mode"
        )
    return database


def _prepare_schema(database: Database, *, migrates: bool) -> None:
    database.check_connections()
    if migrates:
        before, after = migrate(database)
        if before != after:
            log.info("migrated", before=before, after=after)
    check_schema(database)


def grpc_options(settings: ConnectionSettings, *, share_port: bool = False) -> GrpcOptions:
    return GrpcOptions(
        max_message_bytes=settings.max_message_bytes,
        max_concurrent_streams=settings.max_concurrent_streams,
        max_connections=settings.max_connections,
        max_pending_requests=settings.max_pending_requests,
        handshake_timeout=settings.handshake_timeout,
        keepalive=settings.keepalive,
        compression=not settings.no_compression,
        share_port=share_port,
    )


def _api_methods(settings: Settings, store: GuardedStore, address: str) -> tuple[Method, ...]:
    operations = settings.operations
    own = dict.fromkeys(OWN_ENDPOINTS, settings.discovery.advertise or address)
    return api_methods(
        store,
        _limits(operations),
        max_wait=operations.max_wait,
        watch_repeat=operations.watch_repeat,
        hide_error=operations.hide_error_until_done,
        endpoints=own | settings.discovery.endpoints(),
    )


def _admission(settings: Settings, authenticator: Authenticator | None) -> Admission:
    limits = AdmissionLimits(
        rate_limit=settings.limits.rate_limit,
        rate_burst=settings.limits.rate_burst,
        failed_auth_rate=settings.limits.failed_auth_rate,
        max_waits=settings.limits.max_waits,
        max_waits_per_caller=settings.limits.max_waits_per_caller,
    )
    asks_for_certificates = settings.security.tls_client_ca is not None
    return Admission(limits, authenticator, asks_for_certificates=asks_for_certificates)


def _limits(settings: OperationSettings) -> Limits:
    return Limits(
        settings.retention,
        settings.max_retention,
        settings.max_lease,
        settings.max_payload_bytes,
        settings.max_running_per_parent or None,
    )


def _sweeps(cancel_grace: int) -> list[Sweep]:
    return [
        LapseLeases(LEASE_EXPIRED, SWEEP_LIMIT),
        ReachTimeouts(TIMED_OUT, SWEEP_LIMIT),
        EndCancelGrace(cancel_grace, SWEEP_LIMIT),
        DeleteExpired(SWEEP_LIMIT),
    ]


def _grpcurl(settings: Settings, address: str) -> str:
    """A line to paste into a shell, with places for an id and a method."""
    security = (
        "-plaintext"
        if settings.security.tls_cert is None
        else f"-cacert {settings.security.tls_cert}"
    )
    if settings.security.authenticates:
        security += ' -H "authorization: Bearer $TOKEN"'
    path = socket_path(address)
    if path is not None:
        address = f"-unix {path}"
    request = '\'{{"operation_id": "{id}"}}\''
    return f"grpcurl {security} -d {request} {address} {_OPERATION_SERVICE}/{{method}}"
