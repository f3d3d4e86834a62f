"""The random numbers of pauses."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import os
from opservice.common.jitter import jitter

for _ in range(3):
    if not os.fork():
        print(jitter.random(), flush=True)
        os._exit(0)
    os.wait()
"""


def test_processes_that_were_forked_from_one_do_not_pause_in_step() -> None:
    told = subprocess.run([sys.executable, "-c", _PROGRAM], check=True, capture_output=True)

    assert len(set(told.stdout.split())) == 3
