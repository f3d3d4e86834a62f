"""The file of the audit log: what stands in it, who may read it, and what becomes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.client import Client
from support.server import ServerProcess, serving
from wire.test_audit import AUDIT, audited, lines_of


def test_it_is_told_whatever_else_is_logged(tmp_path: Path, sqlite_url: str) -> None:
    file = tmp_path / "audit.log"
    with serving(tmp_path, sqlite_url, log_level="error", audit_log=file) as server:
        id_ = server.client.started()

        assert [line["operation_id"] for line in audited(server)] == [id_]
        assert [line["operation_id"] for line in lines_of(file)] == [id_]


def test_the_file_has_nothing_but_the_audit_log(tmp_path: Path, sqlite_url: str) -> None:
    file = tmp_path / "audit.log"
    with serving(tmp_path, sqlite_url, log_level="debug", audit_log=file) as server:
        server.client.get(server.client.started())
        server.client.started()

        assert {line["logger"] for line in server.log()} > {AUDIT}
        assert [line["logger"] for line in lines_of(file)] == [AUDIT] * 2


def mode(file: Path) -> int:
    return file.stat().st_mode & 0o777


def test_the_file_is_for_nobody_else_to_read(tmp_path: Path, sqlite_url: str) -> None:
    file = tmp_path / "audit.log"
    with serving(tmp_path, sqlite_url, audit_log=file):
        assert mode(file) == 0o600


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path, sqlite_url: str) -> None:
    file, old = tmp_path / "audit.log", tmp_path / "audit.log.1"
    with serving(tmp_path, sqlite_url, audit_log=file) as server:
        before = server.client.started()
        file.rename(old)
        after = server.client.started()

        assert [line["operation_id"] for line in lines_of(old)] == [before]
        assert [line["operation_id"] for line in lines_of(file)] == [after]
        assert mode(file) == 0o600


def test_a_file_is_gone_on_with_after_a_restart(tmp_path: Path, sqlite_url: str) -> None:
    file = tmp_path / "audit.log"
    with serving(tmp_path, sqlite_url, audit_log=file) as server:
        ids = [server.client.started()]
        server.terminate()
        server.start()
        ids.append(server.client.started())

        assert [line["operation_id"] for line in lines_of(file)] == ids


def test_a_file_that_cannot_be_written_is_a_refusal_to_start(
    tmp_path: Path, sqlite_url: str
) -> None:
    file = tmp_path / "missing" / "audit.log"
    server = ServerProcess(tmp_path, sqlite_url, audit_log=file)

    assert server.expect_refusal() == 1
    assert server.stderr == (
        f"opservice: cannot write the audit log {file}: No such file or directory\n"
    )


def test_what_was_done_is_answered_when_the_file_cannot_be_written_any_more(
    tmp_path: Path, sqlite_url: str
) -> None:
    """It stands in the log in any case."""
    file = tmp_path / "logs" / "audit.log"
    file.parent.mkdir()
    with serving(tmp_path, sqlite_url, audit_log=file) as server:
        file.rename(tmp_path / "audit.log")
        file.parent.rmdir()

        id_ = server.client.started()

        assert f'"operation_id": "{id_}"' in server.stderr
        assert f"No such file or directory: '{file}'" in server.stderr


@pytest.mark.slow
def test_all_workers_write_one_file(tmp_path: Path, sqlite_url: str) -> None:
    file = tmp_path / "audit.log"
    with serving(tmp_path, sqlite_url, workers=2, audit_log=file) as server:
        ids = {Client(server.channel()).started() for _ in range(30)}

        lines = lines_of(file)
        assert {line["operation_id"] for line in lines} == ids
        assert {line["worker"] for line in lines} == {1, 2}
