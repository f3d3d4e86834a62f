"""What a client of HTTP that means well sees while others attack the server by HTTP.

    PYTHONPATH=tests .venv/bin/python bench/hostile_http.py 2> /dev/null       # every attack for 20 s
    PYTHONPATH=tests .venv/bin/python bench/hostile_http.py --seconds 10 slowloris 'hard JSON'

As bench/hostile.py does by gRPC, with the attacks of tests/support/hostile_http.py. The server allows one
caller 20,000 waits: all come from one address here. Prints a row for each attack, with the p99 of the calls
as a multiple of the quiet one.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from statistics import median
from subprocess import Popen
from urllib.parse import urlsplit

from hostile import HEADING, QUIET, row, said_by
from support.hostile import launch
from support.hostile_http import HTTP_ATTACKS
from support.http_bystander import HttpBystander
from support.process import cpu_seconds, restart_peak

_SETTINGS = {
    "--listen": "127.0.0.1:0",
    "--http-listen": "127.0.0.1:0",
    "--log-level": "error",
    "--max-waits-per-caller": "20000",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=", ".join(HTTP_ATTACKS))
    parser.add_argument("--seconds", type=float, default=20, help="of each attack")
    arguments = parser.parse_args()
    attacks, seconds = arguments.attacks or list(HTTP_ATTACKS), arguments.seconds
    if unknown := set(attacks) - set(HTTP_ATTACKS):
        parser.error(f"there is no attack named {', '.join(sorted(unknown))}")
    print(HEADING)
    command = [sys.executable, "-m", "opservice", "serve"]
    given = [each for setting in _SETTINGS.items() for each in setting]
    with tempfile.TemporaryDirectory() as made:
        database = ["--database", f"sqlite:///{made}/bench.db"]
        with Popen([*command, *given, *database], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            try:
                quiet: list[float] = []
                for name in (QUIET, *attacks, QUIET):
                    p99 = asyncio.run(beside(name, url, process, seconds, median(quiet or [0])))
                    if name == QUIET:
                        quiet.append(p99)
                    if process.poll() is not None:
                        sys.exit(f"the server ended with {process.returncode}")
            finally:
                process.terminate()


async def beside(
    name: str, url: str, process: Popen[str], seconds: float, quiet_p99: float
) -> float:
    """Prints a row. Returns the calls' p99, in milliseconds."""
    bystander = HttpBystander(url)
    await bystander.prepare()
    restart_peak(process.pid)
    attacker = None
    if name != QUIET:
        attacker = launch(name, urlsplit(url).netloc, seconds, "support.hostile_http")
    cpu, began = cpu_seconds(process.pid), time.monotonic()
    over = began + seconds
    await bystander.run(
        lambda: attacker.poll() is not None if attacker else time.monotonic() > over
    )
    cores = (cpu_seconds(process.pid) - cpu) / (time.monotonic() - began)
    return row(
        name,
        bystander.took,
        len(bystander.failures),
        cores,
        process.pid,
        quiet_p99,
        said_by(attacker),
    )


if __name__ == "__main__":
    main()
