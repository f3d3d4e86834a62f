"""`opservice run`, `renew` and `report`: work that a command does."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any, Unpack

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo

from cli.conftest import Run
from cli.processes import on_a_terminal, running
from opservice._proto.opservice.v1 import operation_record_service_pb2 as pb
from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice.cli.child import run_child, signals_kept
from opservice.cli.running import run_work
from opservice_client import Producer, Work
from opservice_client.aio import StartOptions
from support.certificates import Authority
from support.client import TOKEN, Client, unpacked
from support.server import ServerProcess, eventually, serving

WAIT = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit({}))
print(flush=True)
while True:
    time.sleep(0.01)
"""
COUNT = """
import signal, sys, time
times = []
signal.signal(signal.SIGINT, lambda *_: times.append(1))
print("ready", flush=True)
while not times:
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(10 + len(times))
"""
REPORT = """
import subprocess, sys
sys.exit(subprocess.run([sys.executable, "-m", "opservice", *{}]).returncode)
"""


def python(program: str) -> list[str]:
    return ["--", sys.executable, "-c", program]


def id_of(stderr: str) -> str:
    return stderr.split("opservice: operation ")[1].split()[0]


def record(client: Client, id_: str) -> OperationRecord:
    return client.records.Get(pb.GetOperationRecordRequest(operation_id=id_))


def test_a_command_that_exits_with_0_completes_the_operation(run: Run, client: Client) -> None:
    result = run("run", "--description", "d", "--created-by", "cron", *python("pass"))
    operation = client.get(id_of(result.stderr))

    assert result.exit_code == 0
    assert (operation.description, operation.created_by) == ("d", "cron")
    assert operation.response.Is(Empty.DESCRIPTOR)


def test_a_command_that_fails_fails_the_operation_and_gives_its_exit_code(
    run: Run, client: Client
) -> None:
    result = run("run", *python("raise SystemExit(3)"))
    error = client.get(id_of(result.stderr)).error

    assert result.exit_code == 3
    assert (error.code, error.message) == (Code.UNKNOWN, "The command exited with 3")
    assert unpacked(error.details[0], ErrorInfo).metadata["exit_code"] == "3"


def test_a_command_that_a_signal_ends_has_the_exit_code_of_a_shell(
    run: Run, client: Client
) -> None:
    result = run("run", *python("import os; os.kill(os.getpid(), 9)"))

    assert result.exit_code == 128 + signal.SIGKILL
    assert client.get(id_of(result.stderr)).error.message == "The command was ended by SIGKILL"


@pytest.mark.parametrize(("command", "code"), [("./nowhere", 127), ("/", 126)])
def test_a_command_that_cannot_be_run_fails_the_operation(
    run: Run, client: Client, command: str, code: int
) -> None:
    result = run("run", "--", command)

    assert result.exit_code == code
    assert f"cannot run {command}: " in result.stderr
    error = client.get(id_of(result.stderr)).error
    assert error.code == Code.UNKNOWN
    assert error.message.startswith("The command could not be run: ")


def test_the_command_gets_sigterm_when_the_operation_is_cancelled(server: ServerProcess) -> None:
    with running(server, "run", *python(WAIT.format(7))) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        id_ = id_of(process.stderr.readline())
        server.client.cancel(id_)

        assert process.wait(60) == 7
    assert server.client.get(id_).error.code == Code.CANCELLED


def test_a_command_that_ignores_sigterm_is_killed_after_a_while(server: ServerProcess) -> None:
    ignores = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()"
    with running(server, "run", "--kill-after", "200ms", *python(ignores)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        server.client.cancel(id_of(process.stderr.readline()))

        assert process.wait(60) == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_is_passed_on_to_the_command(server: ServerProcess, number: int) -> None:
    program = WAIT.format(5).replace("signal.SIGTERM", str(int(number)))
    with running(server, "run", *python(program)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        id_ = id_of(process.stderr.readline())
        process.send_signal(number)

        assert process.wait(60) == 5
    assert server.client.get(id_).error.message == "The command exited with 5"


def test_the_command_gets_ctrl_c_of_its_terminal_once(server: ServerProcess) -> None:
    code, shown = on_a_terminal(server, "run", *python(COUNT), press=("ready", "\x03"))

    assert code == 11, shown
    assert server.client.get(id_of(shown)).error.message == "The command exited with 11"


def test_a_signal_that_is_ignored_stays_ignored_in_the_command_as_under_nohup(run: Run) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        result = run("run", *python("import os; os.kill(os.getppid(), 1); os.kill(os.getpid(), 1)"))
    finally:
        signal.signal(signal.SIGHUP, before)

    assert result.exit_code == 0


def test_a_signal_before_the_command_runs_ends_the_operation_without_it(
    run: Run, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Producer.start

    def interrupted(producer: Producer, **options: Unpack[StartOptions]) -> Work:
        os.kill(os.getpid(), signal.SIGTERM)
        return start(producer, **options)

    monkeypatch.setattr(Producer, "start", interrupted)
    result = run("run", *python(f"open({str(tmp_path / 'ran')!r}, 'w')"))

    assert result.exit_code == 128 + signal.SIGTERM
    assert not (tmp_path / "ran").exists()
    error = client.get(id_of(result.stderr)).error
    assert error.message == "The command was not run, because of SIGTERM"


@pytest.mark.slow
def test_the_command_outlives_its_server_and_the_result_is_sent_when_it_is_back(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path}/operations.db") as server:
        with running(server, "run", *python(WAIT.format(5))) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            id_ = id_of(process.stderr.readline())
            server.kill()
            process.terminate()
            assert "opservice: " in process.stderr.readline()  # that the server does not answer
            server.start()

            assert process.wait(60) == 5
        assert server.client.get(id_).error.message == "The command exited with 5"


def test_a_reader_of_standard_error_that_goes_away_does_not_end_the_work(
    server: ServerProcess,
) -> None:
    line = ["run", "--parent", "jobs/unread", *python(WAIT.format(5))]
    with running(server, *line) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stderr.close()
        process.stdout.readline()
        process.terminate()

        assert process.wait(60) == 5
    request = pb.ListOperationRecordsRequest(parent="jobs/unread")
    (found,) = server.client.records.List(request).operation_records
    assert found.operation.error.message == "The command exited with 5"


@pytest.mark.slow
def test_a_result_that_could_not_be_sent_is_said_even_when_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        serving(tmp_path, f"sqlite:///{tmp_path}/operations.db") as server,
        Producer(server.address, result_timeout=timedelta(milliseconds=500)) as producer,
        signals_kept() as signals,
    ):
        work = producer.start()
        server.kill()
        ended = run_work(work, python("pass")[1:], dict(os.environ), signals, kill_after=1)

    assert ended.exit_code == 0
    assert f"the result of {work.id} was not sent" in capsys.readouterr().err


def test_a_signal_that_does_not_interrupt_the_wait_is_passed_on_too(tmp_path: Path) -> None:
    runs = tmp_path / "runs"

    def send() -> None:
        eventually(runs.exists)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    command = ["sh", "-c", f"touch {runs}; exec sleep 10"]
    with signals_kept() as signals:
        ended = run_child(
            command, dict(os.environ), signals, on_cancelled=lambda _: None, kill_after=1
        )
    sender.join()

    assert ended.exit_code == 128 + signal.SIGTERM


def test_the_second_signal_after_the_command_gives_up_sending_the_result() -> None:
    with signals_kept() as signals:
        signals.command_ended()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)

    assert ended.value.code == 128 + signal.SIGTERM


def test_the_lease_is_renewed_while_the_command_runs(server: ServerProcess) -> None:
    with running(server, "run", "--lease", "1s", *python(WAIT.format(0))) as process:
        assert process.stderr is not None
        id_ = id_of(process.stderr.readline())
        renew = "/opservice.v1.ProducerService/Renew"
        eventually(lambda: len(server.log(method=renew, operation_id=id_, code="OK")) > 3)
        process.terminate()

        assert process.wait(60) == 0
    assert server.client.get(id_).HasField("response")


def test_a_command_is_run_only_once_under_an_idempotency_key(run: Run, tmp_path: Path) -> None:
    line = ["run", "--idempotency-key", "nightly", "--created-by", "once"]
    touch = python(f"open({str(tmp_path / 'runs')!r}, 'a').write('x')")
    first, second = run(*line, *touch), run(*line, *touch)

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert id_of(first.stderr) == id_of(second.stderr)
    assert "not run here" in second.stderr
    assert (tmp_path / "runs").read_text() == "x"


def test_a_server_that_is_away_is_said_and_nothing_is_run(run: Run, tmp_path: Path) -> None:
    result = run(
        "run", "--server", f"unix:{tmp_path}/nowhere", "--timeout", "500ms",
        *python("raise SystemExit(9)"),
    )  # fmt: skip

    assert result.exit_code == 7
    assert "UNAVAILABLE" in result.stderr


def test_the_command_can_report_with_what_is_in_its_environment(
    run: Run, client: Client, server: ServerProcess
) -> None:
    arguments = ["report", "--done", "3", "--total", "10", "--unit", "files"]
    program = python(REPORT.format(arguments))
    result = run("run", "--server", server.address, *program, OPSERVICE_SERVER="unix:/nowhere")

    progress = record(client, id_of(result.stderr)).progress
    assert result.exit_code == 0, result.stderr
    assert (progress.done, progress.total, progress.unit) == (3, 10, "files")


def test_renew_extends_the_lease_and_says_so(run: Run, client: Client) -> None:
    id_ = client.started(lease_token=TOKEN)
    result = run("renew", id_, "--format", "json", OPSERVICE_LEASE_TOKEN=TOKEN)

    answer = json.loads(result.stdout)
    assert result.exit_code == 0
    assert answer["operation"]["id"] == id_
    assert answer["cancelRequested"] is False


def test_renew_takes_progress_along(run: Run, client: Client) -> None:
    id_ = client.started(lease_token=TOKEN)
    run("renew", id_, "--done", "0", "--message", "Dumping", OPSERVICE_LEASE_TOKEN=TOKEN)

    assert record(client, id_).progress.message == "Dumping"


def test_report_without_anything_to_report_is_a_usage_error(run: Run) -> None:
    result = run("report", "ops1")

    assert result.exit_code == 2
    assert "nothing to report" in result.stderr


def test_the_metadata_of_the_operation_is_given_as_json(run: Run, client: Client) -> None:
    metadata = '{"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "x"}'
    result = run("run", "--metadata", metadata, *python("pass"))

    assert unpacked(client.get(id_of(result.stderr)).metadata, StringValue).value == "x"


def test_quiet_prints_nothing(run: Run) -> None:
    assert run("run", "-q", *python("pass")).stderr == ""


@pytest.mark.parametrize("command", [["renew"], ["report", "--done", "1"]])
def test_renew_and_report_exit_with_4_when_a_cancel_was_requested(
    run: Run, command: list[str]
) -> None:
    line = ["start", "-q", "--cancel-policy", "cooperative"]
    id_ = run(*line, OPSERVICE_LEASE_TOKEN=TOKEN).stdout.strip()
    run("cancel", id_)
    result = run(command[0], id_, *command[1:], OPSERVICE_LEASE_TOKEN=TOKEN)

    assert result.exit_code == 4
    assert result.stdout.split() == [id_, "cancelling"]


def test_renew_with_another_lease_token_is_refused(run: Run) -> None:
    id_ = run("start", "-q", OPSERVICE_LEASE_TOKEN=TOKEN).stdout.strip()

    assert run("renew", id_, OPSERVICE_LEASE_TOKEN="x" * 16).exit_code == 8


def test_list_shows_only_running_operations_when_told_to(run: Run, client: Client) -> None:
    parent = f"jobs/{os.getpid()}"
    ids = [run("start", "-q", "--parent", parent, "--created-by", by).stdout.strip() for by in "ab"]
    done = run("start", "-q", "--parent", parent).stdout.strip()
    run("complete", done)
    line = ["list", "-q", "--parent", parent, "--running"]

    assert sorted(run(*line).stdout.split()) == sorted(ids)
    filtered = run(*line, "--filter", 'created_by = "a" OR created_by = "zzz"')
    assert filtered.stdout.split() == [ids[0]]


def test_a_command_is_run_against_a_server_whose_certificate_has_another_name(
    run: Run, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue(host="ops.example")
    tls: dict[str, Any] = {"tls_cert": pair.certificate, "tls_key": pair.key}
    with serving(tmp_path, f"sqlite:///{tmp_path}/operations.db", **tls) as server:
        line = ["run", "--server", server.address, "--tls-ca", str(authority.certificate)]
        right = run(*line, "--tls-server-name", "ops.example", *python("pass"))
        wrong = run(*line, "--tls-server-name", "other", "--timeout", "500ms", *python("pass"))

    assert right.exit_code == 0, right.stderr
    assert wrong.exit_code == 7, wrong.stderr
