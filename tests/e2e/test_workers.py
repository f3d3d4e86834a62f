"""Several processes on one port: they share the work, and live and end as one server."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code

from e2e.test_lifecycle import cancel_in_progress
from opservice._proto.opservice.v1.operation_record_service_pb2 import WaitOperationRecordRequest
from support.client import Client
from support.fixtures import held_up_writes
from support.server import ServerProcess, clean_environment, command_line, eventually, serving
from support.tools import stable_port

CONNECTIONS = 30
"""All of so many lead to the same of two workers once in 10⁸ times."""
MORE_ADDRESSES = ["localhost:0", "0.0.0.0:0", "[::1]:0", "[::]:0"]
NO_POLLS: dict[str, Any] = {"poll_interval": "1h"}


def pid_of(server: ServerProcess, worker: int) -> int:
    """Of the worker that was started last under this number."""
    pid: int = server.log(event="started a worker", worker=worker)[-1]["pid"]
    return pid


def is_running(pid: int) -> bool:
    """A zombie is not: nobody may be there to reap the workers of a killed supervisor."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    return False


def worker_of(server: ServerProcess, client: Client) -> int:
    """The worker at the other end of the client's connection."""
    id_ = client.cancel(client.started()).id
    worker: int = eventually(lambda: server.log(event="call", operation_id=id_))[0]["worker"]
    return worker


def client_of(server: ServerProcess, worker: int) -> Client:
    """A client whose connection leads to this worker."""
    return eventually(
        lambda: client if worker_of(server, client := Client(server.channel())) == worker else None
    )


def wait_for(client: Client, id_: str) -> Any:
    """The future of a Wait that the worker has begun."""
    call = client.records.Wait.future(
        WaitOperationRecordRequest(operation_id=id_, timeout=Duration(seconds=50))
    )
    client.get(id_)  # on one connection calls are begun in their order
    return call


@pytest.mark.slow
def test_connections_are_spread_over_the_workers(tmp_path: Path, sqlite_url: str) -> None:
    with serving(tmp_path, sqlite_url, workers=2) as server:
        ids = {Client(server.channel()).started() for _ in range(CONNECTIONS)}

        lines = eventually(
            lambda: found if len(found := server.log(event="call")) == CONNECTIONS else None
        )
        assert {line["worker"] for line in lines} == {1, 2}
        assert all(server.client.get(id_).id == id_ for id_ in ids)


@pytest.mark.slow
@pytest.mark.parametrize(
    "listen",
    ["127.0.0.1:0", *(pytest.param(each, marks=pytest.mark.slow) for each in MORE_ADDRESSES)],
)
def test_workers_share_whatever_free_port_is_given_to_them(
    tmp_path: Path, sqlite_url: str, listen: str
) -> None:
    settings: dict[str, Any] = {"workers": 2, "listen": listen, "allow_anonymous": True}
    with serving(tmp_path, sqlite_url, **settings) as server:
        assert server.address.startswith(listen[:-1])
        assert server.address != listen
        # Both printed the same line; it is there once.
        assert server.stdout == (
            f"opservice 0.1.0 serving on {server.address} (plaintext, {sqlite_url})\n"
        )
        assert client_of(server, 1).started()
        assert client_of(server, 2).started()


@pytest.mark.slow
def test_a_wait_at_one_worker_is_woken_by_an_end_at_another(
    tmp_path: Path, database_url: str
) -> None:
    with serving(tmp_path, database_url, workers=2, **NO_POLLS) as server:
        one, another = client_of(server, 1), client_of(server, 2)
        for waiting, ending in ((one, another), (another, one)):
            id_ = waiting.started()
            wait = wait_for(waiting, id_)
            assert not wait.done()

            ending.complete(id_)

            assert wait.result().operation.done


def test_a_worker_that_is_killed_is_replaced_while_the_other_serves(
    tmp_path: Path, sqlite_url: str
) -> None:
    with serving(tmp_path, sqlite_url, workers=2) as server:
        other, killed = client_of(server, 2), pid_of(server, 1)
        id_ = other.started()

        os.kill(killed, signal.SIGKILL)
        (line,) = eventually(lambda: server.log(event="a worker ended"))
        assert other.get(id_).id == id_
        eventually(lambda: len(server.log(logger="opservice.server", event="serving")) == 3)

        assert line["worker"] == 1
        assert line["how"] == "was ended by signal 9 (Killed)"
        assert pid_of(server, 1) != killed
        assert client_of(server, 1).get(id_).id == id_
        assert server.terminate() == 0


@pytest.mark.slow
def test_the_log_says_why_a_worker_cannot_replace_another(tmp_path: Path, sqlite_url: str) -> None:
    """And the worker leaves no traceback."""
    logs = tmp_path / "logs"
    logs.mkdir()
    with serving(tmp_path, sqlite_url, workers=2, audit_log=logs / "audit.log") as server:
        logs.rename(tmp_path / "moved")
        os.kill(pid_of(server, 1), signal.SIGKILL)

        _, line = eventually(
            lambda: found if len(found := server.log(event="a worker ended")) > 1 else None
        )[:2]
        assert line["reason"] == (
            f"cannot write the audit log {logs}/audit.log: No such file or directory"
        )
        assert "Traceback" not in server.stderr


@pytest.mark.slow
def test_a_worker_that_dies_again_and_again_is_replaced_ever_more_slowly(
    tmp_path: Path, sqlite_url: str
) -> None:
    with serving(tmp_path, sqlite_url, workers=2) as server:
        for deaths in (1, 2, 3):
            os.kill(pid_of(server, 1), signal.SIGKILL)
            eventually(lambda n=deaths + 2: len(server.log(event="started a worker")) == n)  # type: ignore[misc] # mypy does not see the default's type

        assert [line["next_in"] for line in server.log(event="a worker ended")] == [0.1, 0.2, 0.4]
        assert server.terminate() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to_all"),
    [
        pytest.param(signal.SIGTERM, False, id="TERM to the supervisor"),
        pytest.param(signal.SIGINT, True, id="INT to all processes"),
        pytest.param(signal.SIGTERM, True, id="TERM to all processes", marks=pytest.mark.slow),
    ],
)
def test_calls_in_progress_at_every_worker_end_before_the_server_does(
    tmp_path: Path, sqlite_url: str, number: int, to_all: bool
) -> None:
    with serving(tmp_path, sqlite_url, workers=2) as server:
        workers = [pid_of(server, worker) for worker in (1, 2)]
        clients = [client_of(server, worker) for worker in (1, 2)]
        ids = [client.started() for client in clients]
        with held_up_writes(sqlite_url):
            calls = [cancel_in_progress(*each) for each in zip(clients, ids, strict=True)]
            server.send_signal(number)
            for pid in workers if to_all else []:  # as a terminal or a service manager would
                os.kill(pid, number)
            eventually(lambda: len(server.log(event="draining")) == 3)

        assert server.wait() == 0
        assert [call.result().error.code for call in calls] == [Code.CANCELLED] * 2
        assert [line["event"] for line in server.log(logger="opservice.workers")][-1] == "stopped"
        assert not any(map(is_running, workers))
        assert "Traceback" not in server.stderr


@pytest.mark.slow
def test_a_second_signal_ends_all_workers_at_once(tmp_path: Path, sqlite_url: str) -> None:
    with serving(tmp_path, sqlite_url, workers=2, drain="1h") as server:
        workers = [pid_of(server, worker) for worker in (1, 2)]
        id_ = server.client.started()
        with held_up_writes(sqlite_url):
            cancel_in_progress(server.client, id_)
            server.send_signal(signal.SIGTERM)
            eventually(lambda: server.log(event="draining", logger="opservice.workers"))
            server.send_signal(signal.SIGTERM)

            assert server.wait() == 1
            eventually(lambda: not any(map(is_running, workers)))


@pytest.mark.slow
def test_a_worker_that_does_not_drain_is_killed(tmp_path: Path, sqlite_url: str) -> None:
    with serving(tmp_path, sqlite_url, workers=2, drain="0s") as server:
        os.kill(pid_of(server, 2), signal.SIGSTOP)

        assert server.terminate() == 1
        assert server.log(event="a worker did not end in time: killed", worker=2)
        assert not is_running(pid_of(server, 2))


@pytest.mark.slow
def test_workers_of_a_killed_supervisor_drain_and_leave_the_port(
    tmp_path: Path, sqlite_url: str
) -> None:
    with serving(tmp_path, sqlite_url, workers=2) as server:
        workers = [pid_of(server, worker) for worker in (1, 2)]
        id_ = server.client.started()
        with held_up_writes(sqlite_url):
            call = cancel_in_progress(server.client, id_)
            server.kill()
            eventually(lambda: len(server.log(event="draining")) == 2)

        assert call.result().error.code == Code.CANCELLED
        eventually(lambda: not any(map(is_running, workers)))
        with serving(tmp_path, sqlite_url, listen=server.address) as next_one:
            assert next_one.client.get(id_).done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [(2, 2), *(pytest.param(*each, marks=pytest.mark.slow) for each in [(1, 2), (2, 1)])],
)
def test_a_port_in_use_is_refused_and_the_first_goes_on(
    tmp_path: Path, sqlite_url: str, first: int, second: int
) -> None:
    with serving(tmp_path, sqlite_url, workers=first) as server:
        listen = server.address
        other = ServerProcess(tmp_path, f"{sqlite_url}-2", workers=second, listen=listen)

        assert other.expect_refusal() == 1
        assert f"opservice: cannot listen on {listen}: the port is taken" in other.stderr
        assert "Traceback" not in other.stderr
        assert Client(server.channel()).started()


@pytest.mark.slow
@pytest.mark.parametrize("listen", ["192.0.2.1:50051", "no.such.name.invalid:50051"])
def test_an_address_that_is_not_this_machines_is_refused(
    tmp_path: Path, sqlite_url: str, listen: str
) -> None:
    server = ServerProcess(tmp_path, sqlite_url, workers=2, listen=listen, allow_anonymous=True)

    assert server.expect_refusal() == 1
    assert f"opservice: cannot listen on {listen}" in server.stderr
    assert "Traceback" not in server.stderr


def test_what_is_wrong_with_the_settings_is_said_once(tmp_path: Path, sqlite_url: str) -> None:
    missing = tmp_path / "missing.pb"
    server = ServerProcess(tmp_path, sqlite_url, workers=2, descriptor_set=missing)

    assert server.expect_refusal() == 1
    assert server.stderr.count("opservice: ") == 1
    assert str(missing) in server.stderr
    assert "started a worker" not in server.stderr


@pytest.mark.slow
def test_a_worker_that_cannot_start_is_a_refusal_to_start(tmp_path: Path, sqlite_url: str) -> None:
    types = tmp_path / "types.pb"
    types.touch()
    settings = {
        "listen": f"127.0.0.1:{stable_port()}", "workers": 2, "descriptor_set": types
    }  # fmt: skip
    with held_up_writes(sqlite_url):
        server = subprocess.Popen(
            command_line(["serve"], settings),
            env=clean_environment(OPSERVICE_DATABASE=sqlite_url, OPSERVICE_HTTP_LISTEN="off"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # It has read its files when it opens the database. The workers read them when it has.
        eventually(lambda: has_open(server.pid, tmp_path / "operations.db"))
        types.unlink()
    stdout, stderr = server.communicate()

    assert server.returncode == 1
    assert stdout == ""
    assert stderr.splitlines()[-1].startswith("opservice: ")
    assert f"{types}: No such file or directory" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


def has_open(pid: int, file: Path) -> bool:
    with suppress(FileNotFoundError):
        descriptors = Path(f"/proc/{pid}/fd").iterdir()
        return file in [each.readlink() for each in descriptors]
    return False


@pytest.mark.slow
def test_a_worker_that_dies_before_all_serve_ends_the_start(
    tmp_path: Path, sqlite_url: str
) -> None:
    types = tmp_path / "types.pb"
    os.mkfifo(types)  # whoever reads it is held up until somebody writes
    server = ServerProcess(tmp_path, sqlite_url, workers=2, descriptor_set=types)
    server._process = server._launch()
    try:
        types.write_bytes(b"")
        eventually(lambda: len(server.log(event="started a worker")) == 2)
        one, other = (pid_of(server, worker) for worker in (1, 2))
        os.kill(other, signal.SIGKILL)
        types.write_bytes(b"")

        assert server.wait() == 1
        death = "worker 2 was ended by signal 9 (Killed) before all were ready"
        assert server.stderr.endswith(f"opservice: {death}\n")
        assert server.stdout == ""
        assert not is_running(one)
    finally:
        server.close()


@pytest.mark.slow
def test_what_a_terminal_sends_to_workers_that_are_starting_does_not_end_them(
    tmp_path: Path, sqlite_url: str
) -> None:
    server = ServerProcess(tmp_path, sqlite_url, workers=2, listen="127.0.0.1:0")
    server._process = server._launch()
    try:
        for worker in (1, 2):
            eventually(lambda number=worker: server.log(event="started a worker", worker=number))  # type: ignore[misc] # mypy does not see the default's type
            for number in (signal.SIGINT, signal.SIGHUP):
                os.kill(pid_of(server, worker), number)

        eventually(lambda: "serving on " in server.stdout)
        assert server.terminate() == 0
        assert "Traceback" not in server.stderr
    finally:
        server.close()


@pytest.mark.slow
def test_the_demo_runs_once(tmp_path: Path, sqlite_url: str) -> None:
    with serving(tmp_path, sqlite_url, workers=2, demo=True) as server:
        eventually(lambda: "/Cancel\n" in server.stdout)

        assert server.stdout.startswith("opservice ")
        assert server.stdout.count("Demo operations, running now:") == 1


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_hangup_without_files_to_read_again_ends_nobody(
    tmp_path: Path, sqlite_url: str, workers: int
) -> None:
    with serving(tmp_path, sqlite_url, workers=workers) as server:
        pids = [server.pid, *(line["pid"] for line in server.log(event="started a worker"))]
        for pid in pids:  # as when a terminal goes away
            os.kill(pid, signal.SIGHUP)
        eventually(lambda: server.log(event="SIGHUP: there are no files to reload"))

        assert server.client.started()
        assert all(map(is_running, pids))
        assert server.terminate() == 0


def test_too_many_workers_are_refused(tmp_path: Path, sqlite_url: str) -> None:
    server = ServerProcess(tmp_path, sqlite_url, workers=257)

    assert server.expect_refusal() == 1
    assert server.stderr == "opservice: --workers is 257, but must be at most 256\n"
