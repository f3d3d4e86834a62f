"""Traces, where there are none."""

from __future__ import annotations

import os
import subprocess
import sys


def test_a_propagator_that_is_not_installed_matters_to_no_server_without_traces() -> None:
    environment = {**os.environ, "OTEL_PROPAGATORS": "tracecontext,nothing"}
    program = [sys.executable, "-c", "import opservice.main.serve"]
    result = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
