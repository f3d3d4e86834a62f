"""Random clients are told nothing that a correct server would not tell, whatever is cut and killed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

import pytest

from conftest import Backend
from support.chaos import Chaos, Disturb, run_chaos
from support.disturbances import Disturber, Postgres, lose_commit
from support.history import Call
from support.postgres import PostgresServer
from support.proxy import CommitLosingProxy
from support.server import serving

SETTINGS: dict[str, Any] = {
    "housekeeping_interval": "100ms",
    "cancel_grace": "500ms",
    "watch_repeat": "100ms",
}
COMMON: list[Call] = [
    "Start",
    "Get",
    "GetRecord",
    "Wait",
    "Watch",
    "Renew",
    "Cancel",
    "Complete",
    "Fail",
]
RARE: list[Call] = [
    "Delete", "List", "LongrunningGet", "LongrunningWait", "LongrunningCancel", "LongrunningDelete"
]  # fmt: skip
SHOWN = 5
GRACE = 3  # seconds, where leases are kept

_TERMINATE_ONE = """
    SELECT pg_terminate_backend(pid) FROM (
        SELECT pid FROM pg_stat_activity WHERE datname = '{}' ORDER BY random() LIMIT 1
    ) AS chosen
"""


@dataclass(frozen=True)
class Shaky:
    """A database, and what disturbs it; nothing disturbs SQLite."""

    url: str
    disturb: Disturb | None = None
    postgres: Postgres | None = None


@pytest.fixture
def shaky(backend: Backend, database_url: str, request: pytest.FixtureRequest) -> Iterator[Shaky]:
    """Ends connections to PostgreSQL, loses COMMITs, and loses the answers to COMMITs."""
    if backend == "sqlite":
        yield Shaky(database_url)
        return
    postgres: PostgresServer = request.getfixturevalue("postgres")
    terminate = _TERMINATE_ONE.format(database_url.rpartition("/")[2])
    with CommitLosingProxy(postgres.port) as proxy:
        turns: Iterator[Disturb] = cycle(
            [
                lambda: lose_commit(proxy, "answer"),
                lambda: postgres.execute(terminate),
                lambda: lose_commit(proxy, "request"),
            ]
        )
        url = database_url.replace(f":{postgres.port}/", f":{proxy.port}/")
        name = database_url.rpartition("/")[2]
        yield Shaky(url, lambda: next(turns)(), Postgres(postgres, name, proxy))


def assert_correct(
    directory: Path,
    shaky: Shaky,
    settings: Sequence[dict[str, Any]],
    *,
    seconds: float,
    kills: int = 0,
    pauses: bool = False,
) -> Chaos:
    """Runs a server with each of the settings on one database, and clients on all of them.

    With `pauses` everything that a Disturber does is done, and leases are kept and left.
    CHAOS_SEED=number has the clients, the cuts and the kills choose as they did in another run; what
    meets what is up to the machine.
    """
    seed = int(os.environ.get("CHAOS_SEED") or SystemRandom().randrange(10**9))
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(serving(directory, shaky.url, **{**SETTINGS, **each}))
            for each in settings
        ]
        how: dict[str, Any] = {"kills": kills, "disturb": shaky.disturb}
        if pauses:
            how = {"disturber": Disturber(replicas, Random(seed), shaky.postgres), "holders": 6}
        chaos = run_chaos(replicas, seed=seed, seconds=seconds, **how)

    if shaky.postgres is not None and not pauses:
        assert shaky.postgres.proxy.lost > 1
    found = chaos.check(GRACE)
    written = directory / "history"
    lines = [*chaos.leases, *chaos.disturbances, *chaos.events]
    written.write_text("".join(f"{line}\n" for line in lines))
    told = "\n\n".join(map(str, found[:SHOWN]))
    assert not found, f"{len(found)} violations, CHAOS_SEED={seed}, all in {written}:\n{told}"
    return chaos


def assert_eventful(chaos: Chaos, least: int = 5) -> None:
    """Otherwise it would show little. More than so many calls of each common kind must have succeeded."""
    calls = chaos.calls
    assert all(calls[kind, "ok"] > least for kind in COMMON), calls
    if not least:
        return
    assert all(calls[kind, "ok"] for kind in RARE), calls
    for kind in ("Renew", "Complete", "Fail"):
        assert calls[kind, "refused"] > 5, calls
        assert calls[kind, "unknown"] > 1, calls
    assert set(chaos.ends) >= {"response", "DATA_LOSS", "CANCELLED", "DEADLINE_EXCEEDED"}
    assert chaos.cuts > 5


@pytest.mark.parametrize(
    ("backend", "seconds", "kills"),
    [
        ("sqlite", 6, 1),
        pytest.param("sqlite", 10, 1, marks=pytest.mark.slow),
        pytest.param("postgresql", 10, 1, marks=pytest.mark.slow),
        pytest.param("sqlite", 30, 6, marks=pytest.mark.slow),
        pytest.param("postgresql", 30, 6, marks=pytest.mark.slow),
    ],
)
def test_two_replicas_answer_as_one_correct_server_would(
    tmp_path: Path, shaky: Shaky, seconds: float, kills: int
) -> None:
    chaos = assert_correct(tmp_path, shaky, [{}, {}], seconds=seconds, kills=kills)

    assert_eventful(chaos, least=5 if kills > 1 else 0)


@pytest.mark.slow
def test_replicas_that_only_poll_for_changes_answer_as_one_correct_server_would(
    tmp_path: Path, shaky: Shaky
) -> None:
    polling = {"no_notify": True, "poll_interval": "50ms"}

    chaos = assert_correct(tmp_path, shaky, [polling, polling], seconds=20, kills=3)

    assert_eventful(chaos)


@pytest.mark.slow
def test_paused_workers_answer_as_one_correct_server_would_and_end_only_the_leases_that_are_left(
    tmp_path: Path, shaky: Shaky
) -> None:
    workers = {"workers": 2, "restart_grace": f"{GRACE}s"}

    chaos = assert_correct(tmp_path, shaky, [workers, workers], seconds=40, pauses=True)

    assert_eventful(chaos)
    assert "ABORTED" in chaos.ends
    assert len({each.kind for each in chaos.disturbances}) > 2
