"""A short run of fuzz/targets.py; scripts/fuzz.sh runs it for longer."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

from support.tools import missing

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_no_target_lets_an_exception_pass_that_is_not_ours() -> None:
    if importlib.util.find_spec("atheris") is None:
        missing("atheris", "pip install -r requirements/fuzz.txt (Linux on x86_64 only)")

    process = subprocess.run([ROOT / "scripts/fuzz.sh", "3"], capture_output=True, text=True)

    assert process.returncode == 0, process.stderr[-4000:]
    assert process.stdout.count("fuzzing ") == 13
