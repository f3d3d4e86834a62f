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
from opservice.operation import SECOND, LapseLeases, Sweep
from opservice.store.batching import OperationStore

SWEEP_LIMIT = 200
"""Rows a sweep changes at once: bounds how long it keeps other writers waiting."""

log = structlog.stdlib.get_logger("opservice.housekeeping")


async def keep_house(
    store: OperationStore, sweeps: Sequence[Sweep], interval: int, restart_grace: int
) -> None:
    """Runs the sweeps every `interval` microseconds, until cancelled.

    Leases may have lapsed only because no server was there to renew them, so for the first
    `restart_grace` microseconds they are let be.
    """
    loop = asyncio.get_running_loop()
    lapses_from = loop.time() + restart_grace / SECOND
    while True:
        # Replicas that were started together should not sweep together for ever.
        await asyncio.sleep(interval / SECOND * random.uniform(0.75, 1))
        for sweep in sweeps:
            if isinstance(sweep, LapseLeases) and loop.time() < lapses_from:
                continue
            try:
                await _sweep(store, sweep)
            except StoreError as error:
                log.warning("sweep failed", sweep=_name(sweep), cause=str(error.__cause__ or error))
            except Exception:
                log.exception("sweep failed", sweep=_name(sweep))


async def _sweep(store: OperationStore, sweep: Sweep) -> None:
    while True:
        ids = (await store.sweep(sweep)).ids
        if ids:
            log.info("swept", sweep=_name(sweep), count=len(ids), operation_ids=ids[:10])
        if len(ids) < sweep.limit:
            return


def _name(sweep: Sweep) -> str:
    return type(sweep).__name__
