"""`opservice serve`: from settings to a server that runs until a signal, in one process or in several."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from opservice.common.loggers import get_logger
from opservice.common.private_files import group_id
from opservice.domain.errors import StoreUnavailable
from opservice.main.server import CLOSE_SECONDS, build_known_types, run
from opservice.main.worker import worker_command
from opservice.runtime.reload import Reload, ReloadableFiles, Reloader, read_files
from opservice.runtime.security import Security
from opservice.runtime.settings import Settings
from opservice.runtime.settings.groups import StorageSettings
from opservice.runtime.settings.security import SecuritySettings
from opservice.runtime.supervisor import Supervisor
from opservice.store.engine import Database, open_database
from opservice.store.migrations import check_schema, migrate

_KILL_SECONDS = CLOSE_SECONDS + 3
"""How long after --drain a worker that still runs is killed."""

log = get_logger("opservice.server")


async def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serves in this process until SIGTERM or SIGINT, then drains.

    `announce` gets the lines to print, the first of which says that the server is ready. Raises StartupError
    or StoreError when it cannot start, ComponentFailed when a part of it has failed.
    """
    stop = asyncio.Event()
    _stop_on_signals(stop)
    # Everything that can be wrong with the settings is found before the database is touched.
    files = read_files(settings.security)
    security = Security(settings.security, files)
    _reload_on_hangup(settings.security, files, security.replace)
    await security.start()
    types = build_known_types(settings.discovery)
    database = await asyncio.to_thread(prepare_database, settings.storage)
    await run(settings, database, security, types, stop, announce)


async def supervise(settings: Settings, announce: Callable[[str], None]) -> int:
    """Serves with several processes until SIGTERM or SIGINT. Returns the exit code once all have drained.

    `announce` gets the lines to print, the first of which says that all processes are ready. Raises
    StartupError or StoreError when one of them cannot start.
    """
    stop = asyncio.Event()
    supervisor = Supervisor(settings, worker_command, stop, announce, kill_seconds=_KILL_SECONDS)
    _stop_on_signals(stop, supervisor.kill_workers)
    # What can be wrong with the settings is found once, and before the database is touched.
    files = read_files(settings.security)
    await Security(settings.security, files).start()
    build_known_types(settings.discovery)
    supervisor.use(files)
    _reload_on_hangup(settings.security, files, supervisor.reload)
    database = await asyncio.to_thread(prepare_database, settings.storage)
    database.close()
    return await supervisor.run()


def _stop_on_signals(stop: asyncio.Event, at_once: Callable[[], None] = lambda: None) -> None:
    """Sets `stop` at the first SIGTERM or SIGINT. The second one calls `at_once`, and ends the process."""

    def on_signal() -> None:
        if stop.is_set():
            log.warning("stopped at once by a second signal")
            at_once()
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)


def _reload_on_hangup(
    settings: SecuritySettings, files: ReloadableFiles, on_reload: Callable[[Reload], None]
) -> None:
    reloader = Reloader(settings, files, on_reload)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.request)


def prepare_database(settings: StorageSettings) -> Database:
    """Opens the database, brings its schema up to date where that is asked for, and checks it. May block.

    Raises StartupError or StoreError when it cannot be served from.
    """
    database = open_database(settings.database, group=group_id(settings.file_group))
    migrates = database.driver.embedded or settings.migrate
    try:
        _prepare_schema(database, migrates=migrates)
    except StoreUnavailable:
        # A connection that is lost while SQLAlchemy makes it counts as one that cannot be made.
        log.warning("the database is not available: trying once more")
        _prepare_schema(database, migrates=migrates)
    for warning in database.warnings():
        log.warning(warning)
    if not settings.no_notify and database.through_pooler():
        log.warning(
            "a pooler is between this server and PostgreSQL: give --no-notify, unless the pooler is in"
            " session mode"
        )
    return database


def _prepare_schema(database: Database, *, migrates: bool) -> None:
    database.check_connections()
    if migrates:
        before, after = migrate(database)
        if before != after:
            log.info("migrated", before=before, after=after)
    check_schema(database)
