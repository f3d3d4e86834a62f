"""How much more 256 writers write than one, by how long the disk takes for an fsync.

    .venv/bin/python bench/group_commit.py

Serves new SQLite databases with every fsync made slower by a library that cc builds and the server is started
with (LD_PRELOAD). One writer waits for an fsync with each write; 256 share them. A call that does not answer
OK ends the run. Prints the rates, what part of a core the server used for them, and the fsyncs of each: where
256 writers make a server's core busy, that is the limit and not the disk.

The load comes from this process, which takes the other core.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from opservice.store.engine import open_database
from opservice.store.migrations import migrate
from served import SERVE
from speed import Call, Ids, Send, Server, complete, connect, fill, run, start

WRITERS = (1, 256)
SECONDS = 4.0
WARM_UP_SECONDS = 0.5
ROWS = 60_000
"""Running operations, for Complete to end."""

SHIM = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static unsigned long *count;
static struct timespec delay;

__attribute__((constructor)) static void begin(void) {
    long microseconds = atol(getenv("FSYNC_MICROSECONDS"));
    delay.tv_sec = microseconds / 1000000;
    delay.tv_nsec = microseconds % 1000000 * 1000;
    int file = open(getenv("FSYNC_COUNT"), O_RDWR);
    count = mmap(0, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
}

static int slowly(long call, int file) {
    __atomic_add_fetch(count, 1, __ATOMIC_RELAXED);
    if (delay.tv_sec || delay.tv_nsec) nanosleep(&delay, 0);
    return syscall(call, file);
}

int fsync(int file) { return slowly(SYS_fsync, file); }
int fdatasync(int file) { return slowly(SYS_fdatasync, file); }
"""


class Fsyncs:
    """The library, and what it counted."""

    def __init__(self, directory: Path) -> None:
        self._library = directory / "slow_fsync.so"
        self._count = directory / "fsyncs"
        self._count.write_bytes(bytes(8))
        source = directory / "slow_fsync.c"
        source.write_text(SHIM)
        options = ("-shared", "-fPIC", "-O2", "-o", str(self._library))
        subprocess.run(["cc", *options, source], check=True)  # noqa: S607 - whichever is installed

    @contextmanager
    def slower_by(self, milliseconds: float) -> Iterator[None]:
        """For processes that are started within."""
        names = {
            "LD_PRELOAD": str(self._library),
            "FSYNC_MICROSECONDS": str(int(milliseconds * 1000)),
            "FSYNC_COUNT": str(self._count),
        }
        os.environ.update(names)
        try:
            yield
        finally:
            for name in names:
                del os.environ[name]

    def counted(self) -> int:
        return int.from_bytes(self._count.read_bytes(), "little")


async def write(send: Send, calls: Iterator[Call], writers: int, seconds: float) -> int:
    """How many calls were answered, each with OK."""
    until = time.perf_counter() + seconds
    answered = 0

    async def writer() -> None:
        nonlocal answered
        while time.perf_counter() < until:
            await send(next(calls))
            answered += 1

    await asyncio.gather(*[writer() for _ in range(writers)])
    return answered


async def measure(
    server: Server, fsyncs: Fsyncs, kinds: Mapping[str, Iterator[Call]], milliseconds: float
) -> None:
    async with connect(server) as send:
        for name, calls in kinds.items():
            rates, cells = [], []
            for writers in WRITERS:
                await write(send, calls, writers, WARM_UP_SECONDS)
                cpu, synced, began = server.cpu_seconds(), fsyncs.counted(), time.perf_counter()
                answered = await write(send, calls, writers, SECONDS)
                took = time.perf_counter() - began
                rates.append(answered / took)
                busy = (server.cpu_seconds() - cpu) / took
                shared = answered / max(1, fsyncs.counted() - synced)
                cells.append(f"{rates[-1]:,.0f} | {shared:.1f} | {busy:.0%}")
            factor = rates[1] / rates[0]
            print(
                f"| {name} | {milliseconds:g} | {' | '.join(cells)} | **{factor:.1f}** |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--ms", default="0,1,2,5,10,20,40,80", help="added to each fsync, one by one"
    )
    print(
        "| call | fsync + ms | one writer: calls/s | calls an fsync | of a core"
        " | 256 writers: calls/s | calls an fsync | of a core | **factor** |"
        f"\n|{'---|' * 9}"
    )
    for each in parser.parse_args().ms.split(","):
        with tempfile.TemporaryDirectory() as made:
            url = f"sqlite:///{made}/operations.db"
            database = open_database(url)
            migrate(database)
            ids = Ids((), fill(database, ROWS))
            database.close()
            kinds = {
                "Start": (start() for _ in itertools.count()),
                "Complete": (complete(ids) for _ in itertools.count()),
            }
            fsyncs = Fsyncs(Path(made))
            serve = (*SERVE, "--log-level", "error")
            with fsyncs.slower_by(float(each)), run(*serve, "--database", url) as server:
                asyncio.run(measure(server, fsyncs, kinds, float(each)))


if __name__ == "__main__":
    main()
