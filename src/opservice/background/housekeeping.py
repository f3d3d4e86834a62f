"""The sweeps, which end or delete operations whose time has come: leases, timeouts, cancel grace, retention.

Every replica sweeps, without a leader. A sweep changes only operations that were due at a time that was read
from the database's clock before, and skips rows that another replica is changing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from opservice.background.grace import Grace
from opservice.common.jitter import jitter
from opservice.common.loggers import AUDIT_LOGGER, get_logger
from opservice.domain.errors import StoreError
from opservice.domain.operation import SECOND, DeleteExpired, Sweep
from opservice.store.service import OperationStore

SWEEP_LIMIT = 200
"""Rows that a sweep changes at once, at most. This bounds how long other writers wait for it."""

CHECKPOINT_SECONDS = 30
"""How much of the last work a copy of an SQLite file without its log (-wal) may lack."""

COUNT_SECONDS = 15
"""How old the number of running operations in the metrics may be."""

LEAST_WATCH_SECONDS, MOST_WATCH_SECONDS = 0.1, 1.0
"""The bounds of how often the server checks whether it can take renewals; else as often as it sweeps."""

log = get_logger("opservice.housekeeping")
audit = get_logger(AUDIT_LOGGER)


async def keep_house(
    store: OperationStore,
    sweeps: Sequence[Sweep],
    interval: int,
    restart_grace: int,
    knows_callers: Callable[[], bool] = lambda: True,
) -> None:
    """Runs the sweeps every `interval` microseconds, until cancelled.

    Operations may have become due only because nobody could reach the server. So none is ended for
    `restart_grace` microseconds after the start and after each gap (see grace.py). The time in which
    `knows_callers` is false is a gap too: all callers are refused, such as before the keys were read.
    """
    loop = asyncio.get_running_loop()
    grace = Grace(restart_grace / SECOND, loop.time())
    store.when_write_fails = lambda: grace.gap(loop.time())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_watch(store, grace, interval / SECOND, knows_callers))
        tasks.create_task(_sweep_all(store, grace, sweeps, interval / SECOND))


async def _watch(
    store: OperationStore, grace: Grace, interval: float, knows_callers: Callable[[], bool]
) -> None:
    """Tells `grace` of pauses of this process, of the database's clock, and of writes that became durable."""
    loop = asyncio.get_running_loop()
    seconds = min(max(interval, LEAST_WATCH_SECONDS), MOST_WATCH_SECONDS)
    while True:
        began = loop.time()
        try:
            clock, awaited = await store.read_clock()
            grace.read(clock, began, loop.time())
            began = loop.time()
            if awaited:
                await store.prove_writes()
            grace.proven(clock, began, loop.time())
        except StoreError as error:
            grace.gap(loop.time())
            log.warning("database check failed", cause=str(error.__cause__ or error))
        except Exception:
            grace.gap(loop.time())
            log.exception("database check failed")
        if not knows_callers():
            grace.gap(loop.time())
        began = loop.time()
        await asyncio.sleep(seconds)
        grace.slept(began, seconds, loop.time())


async def _sweep_all(
    store: OperationStore, grace: Grace, sweeps: Sequence[Sweep], interval: float
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        more_is_due = False
        # One batch of each in turn: a sweep with much to do must not keep the others waiting.
        for sweep in sweeps:
            # Deleting takes nothing from a producer, so gaps do not matter.
            cutoff = (grace.reading if isinstance(sweep, DeleteExpired) else grace.cutoff)(
                loop.time()
            )
            if cutoff is None:
                continue
            try:
                more_is_due |= await _sweep(store, sweep, cutoff)
            except StoreError as error:
                log.warning("sweep failed", sweep=_name(sweep), cause=str(error.__cause__ or error))
                grace.gap(loop.time())
            except Exception:  # whatever it is, the other sweeps must go on
                log.exception("sweep failed", sweep=_name(sweep))
                grace.gap(loop.time())
        if not more_is_due:
            # Replicas that started together should not sweep together forever.
            await asyncio.sleep(interval * jitter.uniform(0.75, 1))


async def keep_checkpointing(store: OperationStore, seconds: float) -> None:
    """Moves SQLite's log (-wal) into the database file every `seconds`, until cancelled."""
    while True:
        await asyncio.sleep(seconds * jitter.uniform(0.75, 1))
        try:
            await store.checkpoint()
        except StoreError as error:
            log.warning("checkpoint failed", cause=str(error.__cause__ or error))
        except Exception:  # whatever it is, the next checkpoint must be tried
            log.exception("checkpoint failed")


async def keep_counting(store: OperationStore, seconds: float) -> None:
    """Has the running operations counted for the metrics, every `seconds`, until cancelled."""
    while True:
        try:
            await store.count_running()
        except StoreError as error:
            log.debug("count failed", cause=str(error.__cause__ or error))
        except Exception:  # whatever it is, the next count must be tried
            log.exception("count failed")
        await asyncio.sleep(seconds * jitter.uniform(0.75, 1))


async def _sweep(store: OperationStore, sweep: Sweep, cutoff: int) -> bool:
    """Runs one sweep. Returns whether more operations may be due."""
    ids = (await store.sweep(sweep, cutoff)).ids
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
