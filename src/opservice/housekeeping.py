"""What time does to operations: lapsed leases, timeouts, cancel grace, retention.

Every replica does all of it, without a leader: a sweep changes only what is still due when its
statement runs, by the database's clock, and passes over rows that another replica is changing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import structlog

from opservice.errors import StoreError
from opservice.logs import AUDIT_LOGGER
from opservice.operation import SECOND, DeleteExpired, LapseLeases, Sweep
from opservice.store.operations import OperationStore

SWEEP_LIMIT = 200
"""Rows a sweep changes at once: bounds how long it keeps other writers waiting."""

CHECKPOINT_SECONDS = 30
"""How much of what was done last a copy of an SQLite file without its log may lack."""

log = structlog.stdlib.get_logger("opservice.housekeeping")
audit = structlog.stdlib.get_logger(AUDIT_LOGGER)


async def keep_house(
    store: OperationStore, sweeps: Sequence[Sweep], interval: int, restart_grace: int
) -> None:
    """Runs the sweeps every `interval` microseconds, until cancelled.

    Leases may have lapsed only because nothing could renew them: after the start, and after the
    database was away, they are let be for `restart_grace` microseconds.
    """
    loop = asyncio.get_running_loop()
    lapses_from = loop.time() + restart_grace / SECOND
    while True:
        more_is_due = False
        # A batch of each in turn, so that much of one does not keep the others waiting.
        for sweep in sweeps:
            if isinstance(sweep, LapseLeases) and loop.time() < lapses_from:
                continue
            try:
                more_is_due |= await _sweep(store, sweep)
            except StoreError as error:
                log.warning("sweep failed", sweep=_name(sweep), cause=str(error.__cause__ or error))
                lapses_from = loop.time() + restart_grace / SECOND
            except Exception:  # whatever it is, the other sweeps must go on
                log.exception("sweep failed", sweep=_name(sweep))
        if not more_is_due:
            # Replicas that were started together should not sweep together for ever.
            await asyncio.sleep(interval / SECOND * random.uniform(0.75, 1))


async def keep_checkpointing(store: OperationStore, seconds: float) -> None:
    """Every `seconds` puts what SQLite has in its log (-wal) into the database file, until cancelled."""
    while True:
        await asyncio.sleep(seconds * random.uniform(0.75, 1))
        try:
            await store.checkpoint()
        except StoreError as error:
            log.warning("checkpoint failed", cause=str(error.__cause__ or error))


async def _sweep(store: OperationStore, sweep: Sweep) -> bool:
    """Whether there may be more."""
    ids = (await store.sweep(sweep)).ids
    if ids:
        log.info("swept", sweep=_name(sweep), count=len(ids), operation_ids=ids[:10])
        if isinstance(sweep, DeleteExpired):  # of which there may be very many
            audit.info("swept", sweep=_name(sweep), operation_ids=ids)
        else:
            for id_ in ids:
                audit.info("swept", sweep=_name(sweep), operation_id=id_, done=True)
    return len(ids) == sweep.limit


def _name(sweep: Sweep) -> str:
    return type(sweep).__name__
