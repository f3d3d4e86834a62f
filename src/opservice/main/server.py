"""The composition root: puts the parts of a server together, runs them until it stops, and drains."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from opservice import __version__
from opservice.auth.authenticator import Authenticator
from opservice.background.housekeeping import (
    CHECKPOINT_SECONDS,
    COUNT_SECONDS,
    SWEEP_LIMIT,
    keep_checkpointing,
    keep_counting,
    keep_house,
)
from opservice.common import tracing
from opservice.common.addresses import socket_path
from opservice.common.loggers import get_logger
from opservice.common.metrics import BUILD, counts_for_all, flush, keep_flushing, own_process
from opservice.common.open_files import connections_of
from opservice.common.threads import OneThread
from opservice.domain.operation import (
    SECOND,
    DeleteExpired,
    EndCancelGrace,
    LapseLeases,
    ReachTimeouts,
    Sweep,
)
from opservice.fronts.backpressure import UnreadResponses
from opservice.fronts.grpc.adapter import Methods
from opservice.fronts.grpc.server import GrpcOptions, listen, new_server
from opservice.fronts.grpc.services import KnownTypes, known_types, own_methods
from opservice.main import demo
from opservice.main.http import HTTP_PART, HttpFront, MetricsFront
from opservice.methods.admission import Admission, AdmissionLimits
from opservice.methods.convert import LEASE_EXPIRED, TIMED_OUT
from opservice.methods.endpoints import OWN_ENDPOINTS
from opservice.methods.guard import GuardedStore
from opservice.methods.pipeline import Pipeline
from opservice.methods.readiness import Readiness
from opservice.methods.registry import Method
from opservice.methods.services import api_methods
from opservice.methods.serving import FILE_LOST, STOPPING, ServingState
from opservice.methods.validation import Limits
from opservice.runtime.components import Components
from opservice.runtime.ports import listening_sockets
from opservice.runtime.security import Security
from opservice.runtime.settings import Settings
from opservice.runtime.settings.groups import (
    ConnectionSettings,
    DiscoverySettings,
    OperationSettings,
)
from opservice.runtime.unix_socket import bound
from opservice.store.engine import Database
from opservice.store.repository import Repository
from opservice.store.service import OperationStore

CLOSE_SECONDS = 5
"""How long the end of a server may wait for its database."""
_WILDCARDS = {"0.0.0.0", "[::]"}  # noqa: S104 - to warn of them

_GC_THRESHOLDS = (700, 10, 1000)
"""Python's own, but with full collections a hundred times rarer. No call is answered during one, which takes
0.3 s with 10,000 streams. It finds next to nothing: calls that end leave no cycles."""
_OPERATION_SERVICE = "yandex.cloud.operation.OperationService"

log = get_logger("opservice.server")


async def run(
    settings: Settings,
    database: Database,
    security: Security,
    types: KnownTypes,
    stop: asyncio.Event,
    announce: Callable[[str], None],
    *,
    share_port: bool = False,
    store: OperationStore | None = None,
    owns_process: bool = True,
) -> None:
    """Serves until `stop` is set, then drains and closes the database, which was prepared before.

    With `share_port`, other processes of this user may listen on the same port. `store` is another one on the
    database than the settings ask for. A server that does not own its process leaves the garbage collector
    and the umask as they are, and does not end the process when the database hangs at its end. The directory
    of its Unix socket has to be private.

    Raises StartupError when it cannot listen, and ComponentFailed, after it has drained, when a part of the
    server has failed.
    """
    if store is None:
        store = OperationStore(
            database,
            Repository(),
            settings.storage.poll_interval,
            notify=not settings.storage.no_notify,
            resume_window=settings.operations.resume_window,
        )
    BUILD.labels(__version__).set(1)
    traces = tracing.start(__version__) if owns_process else None
    state = ServingState()
    loop = asyncio.get_running_loop()
    database.driver.when_lost(lambda: loop.call_soon_threadsafe(state.stop, FILE_LOST))
    readiness = Readiness(state, store, security.keys)
    # Else a flood of connections to one front would leave no files for the other, nor for the database.
    part = 1 - HTTP_PART if settings.listening.serves_http else 1
    server = new_server(grpc_options(settings.connections, part=part, share_port=share_port))
    listening = ExitStack()
    try:
        credentials = None if security.tls is None else security.tls.grpc_credentials
        mode = int(settings.listening.unix_socket_mode, 8)
        address = listen(
            server,
            settings.listening.listen,
            credentials,
            lambda path, bind: bound(path, mode, bind, owns_process=owns_process),
            listening,
        )
        admission = _admission(settings, security.authenticator)
        guarded = GuardedStore(store, security.authenticator)
        pipeline = Pipeline(admission, settings.limits.max_calls)
        unread = UnreadResponses(settings.limits.max_unsent_bytes)
        served = Methods(pipeline, unread)
        methods = _api_methods(settings, guarded, address)
        served.add(methods)
        served.add(own_methods(state, readiness, types))
        server.add_generic_rpc_handlers((served,))

        async def not_ready() -> Sequence[str]:
            return (await readiness.check()).reasons

        http: HttpFront | None = None
        sockets: list[socket.socket] = []
        http_address: str | None = None
        numbers: MetricsFront | None = None
        number_sockets: list[socket.socket] = []
        if settings.listening.has_metrics_listener:
            number_sockets, _ = listening.enter_context(
                listening_sockets(
                    settings.listening.metrics_listen, "--metrics-listen", share=share_port
                )
            )
            numbers = MetricsFront(settings, not_ready)
        if settings.listening.serves_http:
            sockets, http_address = listening.enter_context(
                listening_sockets(settings.listening.http_listen, "--http-listen", share=share_port)
            )
            http = HttpFront(settings, security, pipeline, methods, types, unread, not_ready)
        if owns_process:
            own_process()
            # What there is now stays until the end: looking for garbage in it would stop all calls for 50 ms.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*_GC_THRESHOLDS)
        await server.start()
        async with Components(stop) as components:
            _start_background(components, settings, security, database, store)
            if http is not None:
                await http.start(sockets, components)
            if numbers is not None:
                await numbers.start(number_sockets, components)
            _announce(settings, security, database, address, http_address, announce)
            if settings.processes.demo and not stop.is_set():
                shown = demo.run_demo(store, announce, _grpcurl(settings, address))
                components.start("the demo", shown, may_end=True)
            await stop.wait()
            drain = settings.processes.drain / SECOND
            log.info("draining", seconds=drain)
            state.stop(STOPPING)
            store.stop_following()
            admission.stop()
            components.cancel()
            stopping = [server.stop(drain)]
            if http is not None:
                stopping.append(http.stop(drain))
            await asyncio.gather(*stopping)
            flush()
            if numbers is not None:  # the last, so that the drain can be seen
                await numbers.stop(0)
        log.info("stopped")
    finally:
        await server.stop(None)
        listening.close()
        await _close(store, owns_process=owns_process)
        if traces is not None:
            await OneThread[None]("traces").run(traces.stop)


def _start_background(
    components: Components,
    settings: Settings,
    security: Security,
    database: Database,
    store: OperationStore,
) -> None:
    """Starts what goes on beside calls."""
    operations = settings.operations
    components.start(
        "housekeeping",
        keep_house(
            store,
            sweeps_of(operations.cancel_grace, operations.resume_window),
            operations.housekeeping_interval,
            operations.restart_grace,
            lambda: security.keys is None or security.keys.has_keys,
        ),
    )
    components.start("the metrics of calls", keep_flushing())
    if counts_for_all():
        counting = keep_counting(store, COUNT_SECONDS)
        components.start("the count of running operations", counting)
    if database.driver.embedded:
        components.start("checkpoints", keep_checkpointing(store, CHECKPOINT_SECONDS))
    if security.keys is not None:
        components.start("the reading of keys", security.keys.keep_fresh())


def _announce(
    settings: Settings,
    security: Security,
    database: Database,
    address: str,
    http_address: str | None,
    announce: Callable[[str], None],
) -> None:
    """Says that the server is ready, and what the operator should know about it."""
    if not settings.discovery.advertise and address.rpartition(":")[0] in _WILDCARDS:
        log.warning(
            "set --advertise: SDKs that discover services here would be told this address",
            address=address,
        )
    if http_address is not None and _is_for_some(settings):
        log.warning(
            "every user of this machine can call by HTTP, whatever the mode of the Unix socket:"
            " set --http-listen off, or authentication"
        )
    for warning in security.warnings(is_local=settings.listening.is_local):
        log.warning(warning)
    transport = "plaintext" if security.tls is None else "TLS"
    shown = database.url.shown
    line = f"opservice {__version__} serving on {address} ({transport}, {shown})"
    if http_address is not None:
        line += f", {'http' if security.tls is None else 'https'}://{http_address}"
    announce(line)
    log.info(
        "serving", address=address, http_address=http_address, security=transport, database=shown
    )


def _is_for_some(settings: Settings) -> bool:
    """Whether nothing but the mode of a Unix socket says who may call by gRPC."""
    on_socket = socket_path(settings.listening.listen) is not None
    return on_socket and not settings.security.authenticates


async def _close(store: OperationStore, *, owns_process: bool) -> None:
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await store.close()
    except TimeoutError:
        # A thread that waits for the database cannot be ended, only left. Nobody was told of success.
        log.error("the database hangs: stopped without waiting for it")  # noqa: TRY400 - no more to say
        if owns_process:
            os._exit(1)


def build_known_types(settings: DiscoverySettings) -> KnownTypes:
    """The types that reflection knows. Raises StartupError when a descriptor set cannot be used."""
    return known_types(demo.FILES, settings.descriptor_set)


def grpc_options(
    settings: ConnectionSettings, *, part: float = 1, share_port: bool = False
) -> GrpcOptions:
    """The settings of connections, as the gRPC front takes them. `part` is its part of the open files."""
    return GrpcOptions(
        max_message_bytes=settings.max_message_bytes,
        max_concurrent_streams=settings.max_concurrent_streams,
        max_connections=connections_of(settings.max_connections, part),
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
        resume_window=operations.resume_window,
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


def sweeps_of(cancel_grace: int, resume_window: int) -> list[Sweep]:
    """What housekeeping does. `cancel_grace` and `resume_window` are microseconds."""
    return [
        LapseLeases(LEASE_EXPIRED, SWEEP_LIMIT),
        ReachTimeouts(TIMED_OUT, SWEEP_LIMIT),
        EndCancelGrace(cancel_grace, SWEEP_LIMIT),
        DeleteExpired(SWEEP_LIMIT, resume_window),
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
