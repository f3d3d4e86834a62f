"""The exposition of metrics, and that workers' numbers survive them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from opservice.common.metrics import DIRECTORY_VARIABLE, WORKER_VARIABLE, exposition

_COUNT = """
from opservice.common.metrics import *
STARTED.inc({started}); CONNECTIONS.inc({connections}); RUNNING.set({running})
print(exposition("")[0].decode())
"""


def worker(directory: Path, number: int, **values: int) -> dict[str, float]:
    """What a worker tells that counts these; it ends as one that is killed."""
    told = subprocess.run(
        [sys.executable, "-c", _COUNT.format(**values) + "import os; os._exit(1)"],
        env={**os.environ, DIRECTORY_VARIABLE: str(directory), WORKER_VARIABLE: str(number)},
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(told)
        for sample in family.samples
        if not sample.labels
    }


def test_workers_tell_the_sums_of_all_and_lose_nothing_with_one(tmp_path: Path) -> None:
    worker(tmp_path, 1, started=3, connections=5, running=7)
    both = worker(tmp_path, 2, started=10, connections=1, running=6)
    assert both["opservice_operations_started_total"] == 13
    assert both["opservice_database_connections"] == 6
    assert both["opservice_operations_running"] == 7
    files = sorted(tmp_path.iterdir())
    again = worker(tmp_path, 1, started=1, connections=2, running=2)
    assert again["opservice_operations_started_total"] == 14
    assert again["opservice_database_connections"] == 3
    assert again["opservice_operations_running"] == 6
    assert sorted(tmp_path.iterdir()) == files


def test_one_process_tells_of_itself() -> None:
    told, kind = exposition("")
    names = {family.name for family in text_string_to_metric_families(told.decode())}
    assert {"process_cpu_seconds", "process_open_fds", "opservice_operations_started"} <= names
    assert kind.startswith("text/plain")


_FOREIGN = """
from pathlib import Path
import opservice.common.metrics as metrics
metrics.STARTED.inc()
metrics.REFUSALS.labels("INTERNAL").inc()
metrics.WAITS.labels("Watch").inc()
from prometheus_client import Counter
Counter("theirs", "Of the program.").inc()
names = [name.decode(errors="replace") for name in map(Path.read_bytes, Path({directory!r}).iterdir())]
print("theirs_total" in "".join(names), "opservice" in "".join(names))
"""


def test_the_files_of_a_program_that_runs_a_server_stay_its_own(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", _FOREIGN.format(directory=str(tmp_path))],
        env={**os.environ, DIRECTORY_VARIABLE: str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told.split() == ["True", "False"]
