"""scripts/audit.sh finds what a database knows of what is locked."""

import json
import os
import subprocess
from pathlib import Path
from zipfile import ZipFile

from support.tools import require_tool

ROOT = Path(__file__).parents[2]


def audit(database: Path) -> subprocess.CompletedProcess[str]:
    require_tool("osv-scanner", "scripts/audit.sh says how to")
    return subprocess.run(
        [ROOT / "scripts" / "audit.sh", database.name],
        cwd=database.parent,
        env={**os.environ, "LC_ALL": "C"},
        text=True,
        capture_output=True,
        check=False,
    )


def write_database(directory: Path, *advisories: dict[str, object]) -> None:
    path = directory / "osv-scanner" / "PyPI" / "all.zip"
    path.parent.mkdir(parents=True)
    with ZipFile(path, "w") as archive:
        for each in advisories:
            archive.writestr(f"{each['id']}.json", json.dumps(each))


def advisory(package: str, fixed: str) -> dict[str, object]:
    events = [{"introduced": "0"}, {"fixed": fixed}]
    return {
        "schema_version": "1.6.0",
        "id": "TEST-2026-0001",
        "modified": "2026-01-01T00:00:00Z",
        "affected": [
            {
                "package": {"ecosystem": "PyPI", "name": package},
                "ranges": [{"type": "ECOSYSTEM", "events": events}],
            }
        ],
    }


def test_an_advisory_for_a_locked_version_is_found(tmp_path: Path) -> None:
    write_database(tmp_path, advisory("protobuf", fixed="1000"))
    audited = audit(tmp_path)
    assert audited.returncode == 1
    assert "TEST-2026-0001" in audited.stdout
    assert "requirements/runtime.txt" in audited.stdout


def test_an_advisory_for_versions_before_the_locked_one_is_none(tmp_path: Path) -> None:
    write_database(tmp_path, advisory("protobuf", fixed="1"))
    assert audit(tmp_path).returncode == 0


def test_an_empty_database_finds_nothing(tmp_path: Path) -> None:
    write_database(tmp_path)
    assert audit(tmp_path).returncode == 0


def test_a_database_that_is_missing_is_no_clean_bill(tmp_path: Path) -> None:
    audited = audit(tmp_path)
    assert audited.returncode == 2
    assert "not audited: there is no" in audited.stderr


def test_a_database_that_cannot_be_read_is_no_clean_bill(tmp_path: Path) -> None:
    write_database(tmp_path)
    (tmp_path / "osv-scanner" / "PyPI" / "all.zip").write_text("broken")
    audited = audit(tmp_path)
    assert audited.returncode == 2
    assert "not audited: osv-scanner failed" in audited.stderr
