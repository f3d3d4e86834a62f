"""SIGHUP with many tokens: every worker takes what is newest, and none is lost over it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from e2e.test_workers import is_running, pid_of
from opservice.auth.policy import hash_token, new_token
from support.client import Client, refusal_from
from support.identities import calling_with, replace_text
from support.server import ServerProcess, eventually, serving

pytestmark = pytest.mark.slow  # several processes each

MANY = 5_000
TAKEN = "SIGHUP: the files were reloaded, and the changes are in use"
UNCHANGED = "SIGHUP: the files were reloaded, and nothing has changed"
SILENT = "a worker does not answer: killed"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.yaml"


def write(file: Path, token: str, others: int = MANY) -> None:
    """The token of somebody who may do everything, and many more."""
    hashes = [hash_token(token), *(f"{number:064x}" for number in range(others))]
    replace_text(
        file,
        "".join(f"- {{subject: s, sha256: '{each}', grants: ['admin:*']}}\n" for each in hashes),
    )


def accepted(server: ServerProcess, token: str) -> Callable[[], bool]:
    """Whether the token is good at whichever worker a new connection leads to."""

    def look() -> bool:
        try:
            Client(calling_with(server.channel(), token).channel).started()
        except grpc.RpcError as error:
            if refusal_from(error).code != grpc.StatusCode.UNAUTHENTICATED:
                raise
            return False
        return True

    return look


@pytest.mark.parametrize(
    "workers", [pytest.param(1, id="alone"), pytest.param(2, id="two", marks=pytest.mark.slow)]
)
def test_thousands_of_tokens_are_taken_by_the_same_workers(
    tmp_path: Path, sqlite_url: str, file: Path, workers: int
) -> None:
    old, new = new_token(), new_token()
    write(file, old)
    with serving(tmp_path, sqlite_url, workers=workers, tokens=file) as server:
        told = workers if workers == 1 else workers + 1  # the supervisor says it, too
        assert accepted(server, old)()
        write(file, new)
        server.send_signal(signal.SIGHUP)
        eventually(lambda: len(server.log(event=TAKEN)) == told)
        server.send_signal(signal.SIGHUP)
        eventually(lambda: len(server.log(event=UNCHANGED)) == told)

        for _ in range(10):
            assert accepted(server, new)()
            assert not accepted(server, old)()
        for line in server.log(event=TAKEN):
            assert (line["tokens"], line["tokens_added"], line["tokens_removed"]) == (
                MANY + 1,
                1,
                1,
            )
        assert hash_token(new) not in server.stderr
        assert server.log(event="a worker ended") == []
        assert server.terminate() == 0


@pytest.mark.slow
def test_a_worker_that_does_not_answer_is_replaced_and_its_successor_has_the_newest_files(
    tmp_path: Path, sqlite_url: str, file: Path
) -> None:
    write(file, new_token())
    with serving(tmp_path, sqlite_url, workers=2, tokens=file, worker_timeout="5s") as server:
        stopped, other = pid_of(server, 1), pid_of(server, 2)
        os.kill(stopped, signal.SIGSTOP)
        for _ in range(60):
            newest = new_token()
            write(file, newest)
            server.send_signal(signal.SIGHUP)

        (line,) = eventually(lambda: server.log(event=SILENT))
        eventually(lambda: len(server.log(logger="opservice.server", event="serving")) == 3)
        assert (line["worker"], is_running(stopped), is_running(other)) == (1, False, True)
        for _ in range(10):
            eventually(accepted(server, newest))
        assert server.terminate() == 0


@pytest.mark.slow
def test_a_worker_that_reads_nothing_does_not_keep_the_supervisor_from_ending(
    tmp_path: Path, sqlite_url: str, file: Path
) -> None:
    write(file, new_token())
    with serving(tmp_path, sqlite_url, workers=2, tokens=file, drain="0s") as server:
        os.kill(pid_of(server, 1), signal.SIGSTOP)
        for number in range(1, 4):
            write(file, new_token())
            server.send_signal(signal.SIGHUP)
            eventually(lambda n=2 * number: len(server.log(event=TAKEN)) == n)  # type: ignore[misc] # mypy does not see the default's type

        assert server.terminate() == 1
        assert not is_running(pid_of(server, 1))


@pytest.mark.slow
def test_workers_are_not_blamed_for_a_machine_that_slept(tmp_path: Path, sqlite_url: str) -> None:
    with serving(tmp_path, sqlite_url, workers=2, worker_timeout="3s") as server:
        pids = [server.pid, *(pid_of(server, worker) for worker in (1, 2))]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        signal.sigtimedwait([], 5)
        for pid in pids:  # the supervisor looks first
            os.kill(pid, signal.SIGCONT)
        signal.sigtimedwait([], 2)

        assert server.log(event=SILENT) == []
        assert all(map(is_running, pids))
        assert server.terminate() == 0
