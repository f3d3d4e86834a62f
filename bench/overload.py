"""What is left of the rate when twice as many calls come as can be answered.

    go install github.com/bojand/ghz/cmd/ghz@latest
    .venv/bin/python bench/overload.py sqlite:////tmp/overload.db --ghz ~/go/bin/ghz

Finds the peak first: Gets of a running operation, 64 at a time. Then has ghz send twice as many a second,
whether or not they are answered, as clients do that wait for 1 s and for 20 s, to servers that let so many
calls wait to be accepted (`--max-pending-requests`). Each server is new. Goodput is what was answered in time
with OK, from the first call to the last answer, as a part of the peak. Refused are those that got another
answer than that the time was up.

Where ghz and others leave the server less of the processor than it had at the peak, goodput falls with that.
So there stands as well how many calls it answered in time for each second of its own CPU time, as a part of
the same at the peak: what is missing there is what dealing with the excess costs.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import grpc

from opservice._proto.opservice.v1.producer_service_pb2 import StartRequest
from opservice._proto.opservice.v1.producer_service_pb2_grpc import ProducerServiceStub
from opservice.store.engine import open_database
from opservice.store.migrations import migrate
from served import SERVE
from speed import Server, run

SECONDS = 10
LATE = "DeadlineExceeded"


@dataclass(frozen=True)
class Answers:
    codes: Counter[str]
    seconds: float
    refused_ms: list[float]
    memory_mib: int
    server_cores: float

    @property
    def goodput(self) -> float:
        return self.codes["OK"] / self.seconds

    @property
    def per_cpu_second(self) -> float:
        return self.goodput / self.server_cores

    @property
    def offered(self) -> float:
        return self.codes.total() / self.seconds


class Bench:
    def __init__(self, url: str, ghz: str) -> None:
        self._url = url
        self._ghz = ghz

    def ask(self, *options: str, pending: int) -> Answers:
        """What a new server answers to Gets that ghz makes with these options."""
        for_so_long = ("-z", f"{SECONDS}s", "--duration-stop", "wait")
        serve = (*SERVE, "--log-level", "error")
        limit = ("--max-pending-requests", str(pending))
        with run(*serve, "--database", self._url, *limit) as server:
            with grpc.insecure_channel(server.address) as channel:
                started = ProducerServiceStub(channel).Start(StartRequest()).operation
            cpu = server.cpu_seconds()
            call = "yandex.cloud.operation.OperationService/Get"
            printed = subprocess.run(
                [
                    *(self._ghz, "--insecure", "--call", call, "-O", "json", "--connections", "4"),
                    *("-d", json.dumps({"operation_id": started.id})),
                    *(*for_so_long, *options, server.address),
                ],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            report = json.loads(printed)
            seconds = report["total"] / 1e9
            return Answers(
                Counter(report["statusCodeDistribution"]),
                seconds,
                [
                    each["latency"] / 1e6
                    for each in report["details"]
                    if each["status"] not in ("OK", LATE)
                ],
                peak_memory(server),
                (server.cpu_seconds() - cpu) / seconds,
            )


def peak_memory(server: Server) -> int:
    """The most that the process has had resident, in MiB."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("database", help="URL of a new database")
    parser.add_argument("--ghz", default="ghz", help="the program")
    parser.add_argument(
        "--pending", default="20000,1000,300,100", help="calls that may wait, one by one"
    )
    arguments = parser.parse_args()
    database = open_database(arguments.database)
    migrate(database)
    database.close()
    bench = Bench(arguments.database, arguments.ghz)
    peak = bench.ask("-c", "64", pending=10_000)
    assert set(peak.codes) == {"OK"}, peak.codes
    print(
        f"peak: {peak.goodput:,.0f} Gets/s, {peak.server_cores:.2f} cores, {peak.memory_mib} MiB\n"
    )
    print(
        "| may wait | clients wait, s | offered/s | of the peak | **goodput, of the peak** | by CPU | codes"
        " | refused after, p50 ms | p99 | server, cores | MiB |"
    )
    print(f"{'|---' * 11}|")
    for pending in map(int, arguments.pending.split(",")):
        for timeout in (1, 20):
            rate = int(2 * peak.goodput)
            answers = bench.ask(
                *("--async", "-r", str(rate), "-c", "1000", "--timeout", f"{timeout}s"),
                pending=pending,
            )
            print(line(pending, timeout, answers, peak), flush=True)


def line(pending: int, timeout: int, answers: Answers, peak: Answers) -> str:
    codes = ", ".join(f"{count:,} {code}" for code, count in answers.codes.most_common())
    refused = quantiles(answers.refused_ms, n=100) if len(answers.refused_ms) > 1 else None
    cells = (
        f"{pending:,}",
        str(timeout),
        f"{answers.offered:,.0f}",
        f"{answers.offered / peak.goodput:.0%}",
        f"**{answers.goodput / peak.goodput:.0%}**",
        f"{answers.per_cpu_second / peak.per_cpu_second:.0%}",
        codes,
        f"{refused[49]:.0f}" if refused else "",
        f"{refused[98]:.0f}" if refused else "",
        f"{answers.server_cores:.2f}",
        str(answers.memory_mib),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
