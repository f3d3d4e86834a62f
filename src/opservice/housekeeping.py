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
from opservice.operation import SECOND, Sweep
from opservice.store.batching import OperationStore

SWEEP_LIMIT = 200
"""Rows a sweep changes at once: bounds how long it keeps other writers waiting."""

log = structlog.stdlib.get_logger("opservice.housekeeping")


async def keep_house(store: OperationStore, sweeps: Sequence[Sweep], interval: int) -> None:
    """Runs the sweeps every `interval` microseconds, until cancelled."""
    while True:
        # Replicas that were started together should not sweep together for ever.
        await asyncio.sleep(interval / SECOND * random.uniform(0.75, 1))
        for sweep in sweeps:
            try:
                await _sweep(store, sweep)
            except StoreError as error:
                log.warning("sweep failed", sweep=_name(sweep), cause=str(error.__cause__ or error))


async def _sweep(store: OperationStore, sweep: Sweep) -> None:
    while True:
        ids = (await store.sweep(sweep)).ids
        if ids:
            log.info("swept", sweep=_name(sweep), count=len(ids), operation_ids=ids[:10])
        if len(ids) < sweep.limit:
            return


def _name(sweep: Sweep) -> str:
    return type(sweep).__name__
