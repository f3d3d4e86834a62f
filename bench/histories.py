"""Random clients of two replicas of two workers, with everything disturbed, for as long as asked.

    PYTHONPATH=tests .venv/bin/python bench/histories.py --minutes 30 --database sqlite
    PYTHONPATH=tests .venv/bin/python bench/histories.py --minutes 30 --database postgresql --seed 7

In rounds of about a minute: clients call while replicas, workers and the database are paused and killed,
connections cut and COMMITs lost (tests/support/disturbances.py); then all is let be until the leased
operations have ended, everything is read through each replica, and the round is checked and forgotten.
Prints a line a round and a table at the end. The history of a round with violations is written to a file
(--into), and the exit code is then 1. A seed repeats what is chosen, not what meets what.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random, SystemRandom

from support.chaos import Chaos, run_chaos
from support.disturbances import Disturber, Postgres
from support.history import Violation
from support.postgres import PostgresServer
from support.proxy import CommitLosingProxy
from support.server import serving

GRACE = 3
ROUND_SECONDS = 50
SHOWN = 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=2, help="at least one round is run")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(10**9))
    parser.add_argument("--into", type=Path, default=Path(), help="a directory for bad histories")
    arguments = parser.parse_args()
    print(f"{arguments.database}, seed {arguments.seed}", flush=True)
    bad = run(arguments.database, arguments.minutes * 60, arguments.seed, arguments.into)
    sys.exit(1 if bad else 0)


def run(database: str, seconds: float, seed: int, into: Path) -> int:
    """How many violations there were."""
    random, over = Random(seed), time.monotonic() + seconds
    totals: Counter[str] = Counter()
    calls: Counter[tuple[str, str]] = Counter()
    ends: Counter[str] = Counter()
    settings = {
        "workers": 2,
        "restart_grace": f"{GRACE}s",
        "housekeeping_interval": "100ms",
        "cancel_grace": "500ms",
        "watch_repeat": "100ms",
    }
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url, postgres = stack.enter_context(made(database, directory))
        replicas = [
            stack.enter_context(serving(directory, url, environment=None, **settings))
            for _ in range(2)
        ]
        number = 0
        while number == 0 or time.monotonic() < over:
            number += 1
            disturber = Disturber(replicas, Random(random.random()), postgres)
            chaos = run_chaos(
                replicas,
                seed=random.randrange(10**9),
                seconds=ROUND_SECONDS,
                disturber=disturber,
                holders=6,
                name=f"r{number}-",
            )
            found = chaos.check(GRACE)
            faults = Counter(each.kind for each in chaos.disturbances)
            faults["cut connections"] = chaos.cuts
            totals += faults
            totals.update(events=len(chaos.events), violations=len(found), leases=len(chaos.leases))
            calls += chaos.calls
            ends += chaos.ends
            told = ", ".join(f"{count} {kind}" for kind, count in sorted(faults.items()))
            print(
                f"round {number}: {len(chaos.events)} events, {len(chaos.leases)} leases,"
                f" {len(found)} violations; {told}",
                flush=True,
            )
            if found:
                tell(chaos, found, into / f"history-{database}-{seed}-{number}")
    print_table(totals, calls, ends)
    return totals["violations"]


@contextmanager
def made(database: str, directory: Path) -> Iterator[tuple[str, Postgres | None]]:
    """The URL of a new database."""
    if database == "sqlite":
        yield f"sqlite:///{directory}/histories.db", None
        return
    cluster = PostgresServer()
    try:
        url = cluster.create_database()
        with CommitLosingProxy(cluster.port) as proxy:
            name = url.rpartition("/")[2]
            through = url.replace(f":{cluster.port}/", f":{proxy.port}/")
            yield through, Postgres(cluster, name, proxy)
    finally:
        cluster.remove()


def tell(chaos: Chaos, found: list[Violation], path: Path) -> None:
    lines = [f"VIOLATION {violation}" for violation in found]
    lines += [str(lease) for lease in chaos.leases]
    lines += [str(each) for each in chaos.disturbances]
    lines += [str(event) for event in chaos.events]
    path.write_text("\n".join(lines) + "\n")
    print(f"all in {path}; the first:", *found[:SHOWN], sep="\n", flush=True)


def print_table(totals: Counter[str], calls: Counter[tuple[str, str]], ends: Counter[str]) -> None:
    print(f"\n{'call':16} {'ok':>9} {'refused':>9} {'unknown':>9}")
    for call in sorted({call for call, _ in calls}):
        counts = [calls[call, answer] for answer in ("ok", "refused", "unknown")]
        print(f"{call:16}", *(f"{count:9}" for count in counts))
    print("\noperations by their end: ", dict(ends))
    print()
    for name, count in totals.items():
        print(f"{name:24} {count:9}")


if __name__ == "__main__":
    main()
