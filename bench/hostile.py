"""What a client that means well sees while others attack the server.

    PYTHONPATH=tests .venv/bin/python bench/hostile.py 2> /dev/null       # every attack for a minute
    PYTHONPATH=tests .venv/bin/python bench/hostile.py --seconds 10 'rapid resets' 'slow readers'

Serves a new SQLite database and calls it 50 times a second, first in quiet, then beside each attack of
tests/support/hostile.py, which runs in a process of the lowest priority. Another server, which takes signed
tokens, is there for failed authentication, and quiet until then. Prints the latencies of the calls,
from when each was due, p99 as a multiple of the quiet one, how many failed, and the server's CPU time and
memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from subprocess import Popen

from served import serve
from support.bystander import Bystander
from support.hostile import ATTACKS, FAILED_AUTHENTICATION, Done, launch
from support.identities import AUDIENCE, ISSUER, Issuer
from support.process import cpu_seconds, peak_mib, restart_peak

QUIET = "(quiet)"
HEADING = (
    f"{'attack':25} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} {'p99 ratio':>9} {'failed':>7}"
    f" {'cores':>6} {'peak MiB':>9}   sent"
)


@dataclass
class Served:
    address: str
    process: Popen[str]
    token: str = ""
    """Of the client that means well."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=", ".join(ATTACKS))
    parser.add_argument("--seconds", type=float, default=60, help="of each attack")
    arguments = parser.parse_args()
    attacks, seconds = arguments.attacks or list(ATTACKS), arguments.seconds
    if unknown := set(attacks) - set(ATTACKS):
        parser.error(f"there is no attack named {', '.join(sorted(unknown))}")
    print(HEADING)
    with open_to_all() as usual, asking_who_calls() as asking:
        quiet: list[float] = []
        for name in (QUIET, *attacks, QUIET):
            served = asking if name == FAILED_AUTHENTICATION else usual
            p99 = asyncio.run(beside(name, served, seconds, median(quiet or [0])))
            if name == QUIET:
                quiet.append(p99)
            if served.process.poll() is not None:
                sys.exit(f"the server ended with {served.process.returncode}")


@contextmanager
def open_to_all() -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as made, serve(f"sqlite:///{made}/bench.db") as running:
        yield Served(*running)


@contextmanager
def asking_who_calls() -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as made:
        issuer = Issuer(Path(made))
        asks = ["--jwks", str(issuer.file), "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE]
        with serve(f"sqlite:///{made}/bench.db", *asks) as running:
            yield Served(*running, issuer.token("ann", "admin:*"))


async def beside(name: str, served: Served, seconds: float, quiet_p99: float) -> float:
    """Prints a row. Returns the calls' p99, in milliseconds."""
    pid = served.process.pid
    bystander = Bystander(served.address, served.token)
    await bystander.prepare()
    restart_peak(pid)
    attacker = None if name == QUIET else launch(name, served.address, seconds)
    cpu, began = cpu_seconds(pid), time.monotonic()
    over = began + seconds
    await bystander.run(
        lambda: attacker.poll() is not None if attacker else time.monotonic() > over
    )
    cores = (cpu_seconds(pid) - cpu) / (time.monotonic() - began)
    failed = len(bystander.failures)
    return row(name, bystander.took, failed, cores, pid, quiet_p99, said_by(attacker))


def row(
    name: str,
    seconds: list[float],
    failed: int,
    cores: float,
    pid: int,
    quiet_p99: float,
    said: str,
) -> float:
    """Prints what calls beside an attack took. Returns their p99, in milliseconds."""
    took = sorted(each * 1000 for each in seconds)
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    ratio = f"{p99 / quiet_p99:9.1f}" if quiet_p99 else " " * 9
    print(
        f"{name:25} {p50:8.1f} {p99:8.1f} {took[-1]:8.1f} {ratio} {failed:7}"
        f" {cores:6.2f} {peak_mib(pid):9.0f}   {said}",
        flush=True,
    )
    return p99


def said_by(attacker: Popen[str] | None) -> str:
    if attacker is None:
        return ""
    said, _ = attacker.communicate()
    done = Done(**json.loads(said))
    return f"{done.bytes / 1e6:.0f} MB, {done.connections} connections, {done.calls} calls"


if __name__ == "__main__":
    main()
