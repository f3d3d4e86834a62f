"""No process of ours runs code from the directory that it is started in: others may write there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.server import PATIENCE, clean_environment, serving
from support.tools import stable_port

OTHERS = {
    "click",
    "grpc",
    "psycopg",
    "sitecustomize",
    "sqlalchemy",
    "structlog",
    "usercustomize",
    "uvloop",
    "yaml",
}
AFTER_RUNPY = {"asyncio", "json", "logging", "multiprocessing", "pickle", "socket", "ssl"}
"""Of the standard library; what Python imports for `-m` itself comes before anything of ours."""


@pytest.fixture
def traces(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once a module of the working directory, which has these, was run."""
    directory, traces = tmp_path / "hostile", tmp_path / "traces"
    directory.mkdir()
    for name in request.param:
        code = f"open({str(traces)!r}, 'a').write({name + ' '!r})\nraise SystemExit('was run')\n"
        (directory / f"{name}.py").write_text(code)
    monkeypatch.chdir(directory)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return traces


@pytest.mark.slow
@pytest.mark.parametrize("traces", [OTHERS | AFTER_RUNPY], indirect=True, ids=["ours"])
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_python_m_opservice_runs_nothing_of_it(
    tmp_path: Path, sqlite_url: str, traces: Path, workers: int
) -> None:
    with serving(tmp_path, sqlite_url, workers=workers) as server:
        assert server.client.started()
        assert server.terminate() == 0

    assert not traces.exists()


@pytest.mark.slow
@pytest.mark.parametrize("traces", [OTHERS | sys.stdlib_module_names], indirect=True, ids=["all"])
def test_the_command_and_its_workers_run_nothing_of_it(sqlite_url: str, traces: Path) -> None:
    command = Path(sys.executable).with_name("opservice")
    if not command.exists():
        pytest.skip("opservice is not installed beside this Python: pip install -e .")
    address = f"127.0.0.1:{stable_port()}"
    process = subprocess.Popen(
        [command, "serve", "--workers", "2", "--listen", address, "--http-listen", "off"],
        env=clean_environment(OPSERVICE_DATABASE=sqlite_url),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "serving on" in process.stdout.readline()
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()

    assert not traces.exists()
