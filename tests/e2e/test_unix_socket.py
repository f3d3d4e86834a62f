"""`--listen unix:PATH`, for proxies and sidecars of the same machine."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.server import PATIENCE, ServerProcess, run_opservice, serving
from support.tools import require_tool


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("s")
    database = f"sqlite:///{directory}/operations.db"
    with serving(directory, database, listen=f"unix:{directory}/a.sock") as running:
        yield running


def socket_of(server: ServerProcess) -> Path:
    return Path(server.settings["listen"].removeprefix("unix:"))


def test_calls_through_the_socket_are_answered(server: ServerProcess) -> None:
    assert server.client.get(id_ := server.client.started()).id == id_


def test_only_the_owner_may_connect_by_default(server: ServerProcess) -> None:
    status = socket_of(server).lstat()
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600


@pytest.mark.parametrize(("http_listen", "warnings"), [("127.0.0.1:0", 1), ("off", 0)])
def test_http_that_everybody_may_use_beside_the_socket_is_warned_of(
    tmp_path: Path, http_listen: str, warnings: int
) -> None:
    with serving(
        tmp_path,
        f"sqlite:///{tmp_path}/operations.db",
        listen=f"unix:{tmp_path}/a.sock",
        http_listen=http_listen,
    ) as server:
        warned = [line["event"] for line in server.log(level="warning")]
        assert sum("mode of the Unix socket" in event for event in warned) == warnings


def test_grpcurl_speaks_through_the_socket(server: ServerProcess) -> None:
    grpcurl = require_tool(
        "grpcurl", "go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest"
    )
    answer = subprocess.run(
        [grpcurl, "-plaintext", "-unix", "-d", json.dumps({"description": "by grpcurl"}),
         socket_of(server), "opservice.v1.ProducerService/Start"],
        capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    started = json.loads(answer.stdout)["operation"]
    assert server.client.get(started["id"]).description == "by grpcurl"


def test_the_command_line_takes_the_socket_and_sends_tokens_there(server: ServerProcess) -> None:
    shown = run_opservice(
        "get", server.client.started(), "--server", server.address,
        environment={"OPSERVICE_TOKEN": "t", "http_proxy": "http://127.0.0.1:1"},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr


def test_another_server_does_not_take_the_socket(server: ServerProcess, tmp_path: Path) -> None:
    other = ServerProcess(
        tmp_path, f"sqlite:///{tmp_path}/operations.db", listen=f"unix:{socket_of(server)}"
    )
    assert other.expect_refusal() == 1
    assert "another server listens there" in other.stderr
    assert server.client.started()


@pytest.mark.slow
def test_what_a_killed_server_left_is_replaced_and_removed_at_the_end(tmp_path: Path) -> None:
    listen = f"unix:{tmp_path}/a.sock"
    with serving(
        tmp_path, f"sqlite:///{tmp_path}/operations.db", listen=listen, unix_socket_mode="0666"
    ) as server:
        id_ = server.client.started()
        server.kill()
        assert socket_of(server).is_socket()
        server.start()
        assert server.client.get(id_).id == id_
        assert stat.S_IMODE(socket_of(server).stat().st_mode) == 0o666
        assert server.terminate() == 0
        assert not socket_of(server).exists()


@pytest.mark.slow
def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("precious")
    server = ServerProcess(tmp_path, f"sqlite:///{tmp_path}/operations.db", listen=f"unix:{file}")
    assert server.expect_refusal() == 1
    assert "no socket" in server.stderr
    assert file.read_text() == "precious"


@pytest.mark.slow
def test_a_directory_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    server = ServerProcess(
        tmp_path, f"sqlite:///{tmp_path}/operations.db", listen=f"unix:{tmp_path}/no/a.sock"
    )
    assert server.expect_refusal() == 1
    assert "the directory must exist" in server.stderr
    assert "Traceback" not in server.stderr
