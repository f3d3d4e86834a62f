"""Who may read what the server keeps, and who could put something else in its place."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from opservice.common.private_files import check_place, group_id
from opservice.domain.errors import StartupError
from opservice.runtime.logs import _AuditFile
from opservice.store.engine import open_database
from opservice.store.migrations import migrate
from support.server import ServerProcess, serving

SUFFIXES = ("", "-wal", "-shm")
OTHER_GROUP = 54321


def modes(file: Path) -> list[int]:
    return [stat.S_IMODE(Path(f"{file}{suffix}").stat().st_mode) for suffix in SUFFIXES]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "operations.db"


def open_files(file: Path, group: int | None = None) -> list[int]:
    """Opens the database, and returns the modes of its files."""
    database = open_database(f"sqlite:///{file}", group=group)
    try:
        migrate(database)
        return modes(file)
    finally:
        database.close()


def test_a_new_database_is_for_the_servers_user_alone(file: Path) -> None:
    umask = os.umask(0)
    try:
        assert open_files(file) == [0o600] * 3
    finally:
        os.umask(umask)


def test_an_existing_database_is_made_private(file: Path) -> None:
    other = open_database(f"sqlite:///{file}")
    migrate(other)
    for suffix in SUFFIXES:
        Path(f"{file}{suffix}").chmod(0o644)
    assert open_files(file) == [0o600] * 3
    other.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to any group")
def test_a_group_may_use_all_three_files(file: Path) -> None:
    assert open_files(file, OTHER_GROUP) == [0o660] * 3
    assert file.stat().st_gid == OTHER_GROUP


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_link_in_the_place_of_a_file_is_refused(file: Path, tmp_path: Path, suffix: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    precious.chmod(0o644)
    Path(f"{file}{suffix}").symlink_to(precious)
    with pytest.raises(StartupError, match="symbolic link"):
        open_database(f"sqlite:///{file}")
    assert precious.read_text() == "precious"
    assert stat.S_IMODE(precious.stat().st_mode) == 0o644


@pytest.mark.parametrize(("mode", "refused"), [(0o777, True), (0o1777, False), (0o755, False)])
def test_a_directory_that_everybody_may_write_to_is_refused(
    file: Path, mode: int, refused: bool
) -> None:
    file.parent.chmod(mode)
    if not refused:
        check_place(file)
        return
    with pytest.raises(StartupError, match="chmod o-w"):
        check_place(file)


def test_an_existing_audit_log_is_made_private_and_kept(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_text("before\n")
    log.chmod(0o644)
    _AuditFile(log, None).close()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert log.read_text() == "before\n"


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(StartupError, match="no such group"):
        group_id("no-such-group-here")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to any group")
def test_a_server_gives_its_files_to_the_group(tmp_path: Path, file: Path, workers: int) -> None:
    audit = tmp_path / "audit.log"
    settings: dict[str, Any] = {"workers": workers, "file_group": OTHER_GROUP, "audit_log": audit}
    with serving(tmp_path, f"sqlite:///{file}", **settings) as server:
        server.client.started()
        assert modes(file) == [0o660] * 3
        assert {Path(f"{file}{suffix}").stat().st_gid for suffix in SUFFIXES} == {OTHER_GROUP}
        assert stat.S_IMODE(audit.stat().st_mode) == 0o640
        assert audit.stat().st_gid == OTHER_GROUP


@pytest.mark.slow
def test_a_link_as_the_audit_log_is_one_line(tmp_path: Path, file: Path) -> None:
    link = tmp_path / "audit.log"
    link.symlink_to(tmp_path / "elsewhere")
    server = ServerProcess(tmp_path, f"sqlite:///{file}", audit_log=link)
    assert server.expect_refusal() == 1
    assert "symbolic link" in server.stderr
    assert "Traceback" not in server.stderr
