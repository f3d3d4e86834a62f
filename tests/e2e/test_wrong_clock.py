"""A server whose clock is an hour wrong, beside a PostgreSQL whose clock is right."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code

from support.client import TOKEN
from support.postgres import PostgresServer
from support.server import eventually, serving
from support.tools import require_tool


@pytest.mark.slow
@pytest.mark.parametrize("offset", ["+3600s", "-3600s"])
def test_a_server_with_a_wrong_clock_ends_the_leases_that_lapsed_and_no_other(
    offset: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    faketime = require_tool("faketime", "apt-get install faketime")
    preload = subprocess.run(
        [faketime, "-f", offset, "printenv", "LD_PRELOAD"],
        capture_output=True,
        text=True,
        check=True,
    )
    wrong = {"LD_PRELOAD": preload.stdout.strip(), "FAKETIME": offset}
    with serving(
        tmp_path,
        postgres.create_database(),
        environment=wrong,
        housekeeping_interval="10ms",
    ) as server:
        client = server.client
        renewed = client.started(lease=Duration(seconds=1800), lease_token=TOKEN)
        client.renew(renewed, lease_token=TOKEN)
        lapsing = client.started(lease=Duration(seconds=1), lease_token=TOKEN)
        ended = eventually(lambda: op if (op := client.get(lapsing)).done else None)
        assert ended.error.code == Code.ABORTED
        assert not client.get(renewed).done
