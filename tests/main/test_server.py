"""The composition root, as far as it takes no process of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from opservice.main.serve import prepare_database
from opservice.main.server import build_known_types, run
from opservice.runtime.components import ComponentFailed
from opservice.runtime.reload import read_files
from opservice.runtime.security import Security
from opservice.runtime.settings import Settings
from support.logs import capture_logs
from support.server import PATIENCE


async def test_a_part_of_the_server_that_fails_stops_the_server(tmp_path: Path) -> None:
    settings = Settings.of(
        http_listen="off",
        listen="127.0.0.1:0",
        database=f"sqlite:///{tmp_path}/a.db",
        demo=True,
        drain=0,
    )
    files = read_files(settings.security)
    printed = []

    def announce(line: str) -> None:
        if line.startswith("Demo"):  # from a task of its own
            raise RuntimeError("unexpected")
        printed.append(line)

    running = run(
        settings,
        prepare_database(settings.storage),
        Security(settings.security, files),
        build_known_types(settings.discovery),
        asyncio.Event(),
        announce,
    )
    with capture_logs() as logged, pytest.raises(ComponentFailed, match="the demo failed"):
        await asyncio.wait_for(running, PATIENCE)

    assert [line.split()[2] for line in printed] == ["serving"]
    events = [line["event"] for line in logged]
    assert events.index("a component failed, and so the server stops") < events.index("draining")
    assert "stopped" not in events
