"""What 1,000 works cost the process that runs them: CPU, memory and connections, at rest.

    .venv/bin/python bench/producers.py sqlite:////tmp/bench.db 2>/dev/null       # a new database

Starts 1,000 operations with leases of a minute in one asyncio producer, which renews and watches all of
them, lets them rest, and ends them. Prints what each work took.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from datetime import timedelta
from pathlib import Path

from opservice_client.aio import Producer, Work
from served import serve

WORKS = 1_000
AT_ONCE = 50
REST_SECONDS = 60.0


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def resident_kib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def connections(port: str) -> int:
    """How many TCP connections this machine has open to the port, as their clients."""
    files = [Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6")]
    opened = [row for file in files for row in file.read_text().splitlines()[1:]]
    peer = f":{int(port):04X}"
    return sum(row.split()[2].endswith(peer) and row.split()[3] == "01" for row in opened)


async def main(address: str) -> None:
    done = asyncio.Event()

    async def work(_: Work) -> None:
        await done.wait()

    async with Producer(address) as producer:
        one = await producer.start()
        one.run(work)
        memory, cpu, began = resident_kib(), cpu_seconds(), time.perf_counter()
        works = []
        for _ in range(WORKS // AT_ONCE):
            works += await asyncio.gather(*(producer.start() for _ in range(AT_ONCE)))
            for each in works[-AT_ONCE:]:
                each.run(work)
        await asyncio.sleep(2)  # until all are watched
        print(f"started in {time.perf_counter() - began - 2:.1f} s", end=", ")
        print(f"{(cpu_seconds() - cpu) / WORKS * 1e3:.2f} ms CPU a work")
        print(f"memory: {(resident_kib() - memory) / WORKS:.1f} KiB a work")
        print(f"connections: {connections(address.rpartition(':')[2])}")
        cpu = cpu_seconds()
        await asyncio.sleep(REST_SECONDS)
        rest = (cpu_seconds() - cpu) / WORKS * 1e3
        print(f"at rest: {rest:.2f} ms CPU a work in {REST_SECONDS:.0f} s")
        cpu, began = cpu_seconds(), time.perf_counter()
        done.set()
        await producer.close(timedelta(minutes=5))
        assert all(each.operation.HasField("response") for each in works)
        print(f"ended in {time.perf_counter() - began:.1f} s", end=", ")
        print(f"{(cpu_seconds() - cpu) / WORKS * 1e3:.2f} ms CPU a work")


if __name__ == "__main__":
    with serve(sys.argv[1]) as (address, _):
        asyncio.run(main(address))
