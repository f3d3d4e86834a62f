"""`opservice backup`, beside a server that writes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from support.client import Client
from support.server import run_opservice, serving


@pytest.mark.slow
def test_a_backup_beside_a_loaded_server_has_what_was_acknowledged_before(tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    url = f"sqlite:///{tmp_path}/operations.db"
    stop = threading.Event()
    acknowledged: list[str] = []

    def start_operations(client: Client) -> None:
        while not stop.is_set():
            acknowledged.append(client.started())

    with serving(tmp_path, url) as server:
        callers = [
            threading.Thread(target=start_operations, args=(Client(server.channel()),))
            for _ in range(4)
        ]
        for each in callers:
            each.start()
        try:
            while len(acknowledged) < 100:
                stop.wait(0.01)
            before = list(acknowledged)
            made = run_opservice("backup", str(backup), environment={"OPSERVICE_DATABASE": url})
        finally:
            stop.set()
            for each in callers:
                each.join()
        assert made.returncode == 0, made.stderr
        assert made.stdout.startswith("Backed up ")
        server.client.started()
        assert server.terminate() == 0

    assert not (tmp_path / "operations.db-wal").exists()
    with serving(tmp_path, f"sqlite:///{backup}") as restored:
        for id_ in before:
            assert restored.client.get(id_).id == id_


def test_postgresql_is_referred_to_its_own_tools() -> None:
    made = run_opservice(
        "backup", "nothing.db", environment={"OPSERVICE_DATABASE": "postgresql:///x"}
    )
    assert made.returncode == 1
    assert "pg_dump" in made.stderr
    assert "Traceback" not in made.stderr
