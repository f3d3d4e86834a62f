"""What a client that means well sees while others attack the server.

    PYTHONPATH=tests .venv/bin/python bench/hostile.py 2> /dev/null       # every attack for a minute
    PYTHONPATH=tests .venv/bin/python bench/hostile.py --seconds 10 'rapid resets' 'slow readers'

Serves a new SQLite database and calls it 50 times a second, first in quiet, then beside each attack of
tests/support/hostile.py, which runs in a process of the lowest priority. Prints the latencies of the calls,
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
from statistics import median
from subprocess import Popen

from expiry import serve
from support.bystander import Bystander
from support.hostile import ATTACKS, Done, launch
from support.process import cpu_seconds, peak_mib, restart_peak

QUIET = "(quiet)"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=", ".join(ATTACKS))
    parser.add_argument("--seconds", type=float, default=60, help="of each attack")
    arguments = parser.parse_args()
    attacks, seconds = arguments.attacks or list(ATTACKS), arguments.seconds
    if unknown := set(attacks) - set(ATTACKS):
        parser.error(f"there is no attack named {', '.join(sorted(unknown))}")
    print(
        f"{'attack':22} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} {'p99 ratio':>9} {'failed':>7}"
        f" {'cores':>6} {'peak MiB':>9}   sent"
    )
    with tempfile.TemporaryDirectory() as made, serve(f"sqlite:///{made}/bench.db") as running:
        address, process = running
        quiet: list[float] = []
        for name in (QUIET, *attacks, QUIET):
            p99 = asyncio.run(beside(name, address, process.pid, seconds, median(quiet or [0])))
            if name == QUIET:
                quiet.append(p99)
            if process.poll() is not None:
                sys.exit(f"the server ended with {process.returncode}")


async def beside(name: str, address: str, pid: int, seconds: float, quiet_p99: float) -> float:
    """Prints a row. Returns the calls' p99, in milliseconds."""
    restart_peak(pid)
    bystander = Bystander(address)
    attacker = None if name == QUIET else launch(name, address, seconds)
    cpu, began = cpu_seconds(pid), time.monotonic()
    over = began + seconds
    await bystander.run(
        lambda: attacker.poll() is not None if attacker else time.monotonic() > over
    )
    cores = (cpu_seconds(pid) - cpu) / (time.monotonic() - began)
    took = sorted(each * 1000 for each in bystander.took)
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    ratio = f"{p99 / quiet_p99:9.1f}" if quiet_p99 else " " * 9
    print(
        f"{name:22} {p50:8.1f} {p99:8.1f} {took[-1]:8.1f} {ratio} {len(bystander.failures):7}"
        f" {cores:6.2f} {peak_mib(pid):9.0f}   {said_by(attacker)}",
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
