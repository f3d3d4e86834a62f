"""The crontab of docs/cli.md is run as cron does it: by sh, with hardly any environment."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from opservice._proto.opservice.v1 import operation_record_service_pb2 as pb
from support.server import PATIENCE, ServerProcess

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


@pytest.mark.slow
def test_the_crontab_of_the_page_runs_as_it_stands(server: ServerProcess, tmp_path: Path) -> None:
    (crontab,) = re.findall(r"```text\n(PATH=.*?)```", PAGE, re.DOTALL)
    (script,) = re.findall(r"```sh\n(#!/bin/sh\n.*?)```", PAGE, re.DOTALL)
    *settings, job = crontab.strip().splitlines()
    variables = dict(line.split("=", 1) for line in settings)
    assert variables["OPSERVICE_SERVER"] == "127.0.0.1:50051"
    variables["OPSERVICE_SERVER"] = server.address
    variables["PATH"] = f"{tmp_path}:/usr/bin:/bin"
    programs = {
        "opservice": f'#!/bin/sh\nexec {sys.executable} -m opservice "$@"\n',
        "pg_dump": "#!/bin/sh\necho dumped\n",
        "backup": script.replace("/var/backups", str(tmp_path)),
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    command = job.split(maxsplit=5)[5].replace("\\%", "%").replace("/usr/local/bin", str(tmp_path))

    for _ in range(2):  # on the second machine it is not run
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            start_new_session=True,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    request = pb.ListOperationRecordsRequest(parent="jobs/backup")
    (record,) = server.client.records.List(request).operation_records
    assert record.operation.HasField("response")
    assert record.progress.message == "Dumping"
    assert (tmp_path / "production.sql").read_text() == "dumped\n"
