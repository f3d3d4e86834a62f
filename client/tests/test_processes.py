"""Process models: forks, pre-forking servers, interrupts and ends."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
from google.rpc.code_pb2 import Code

from opservice_client import Producer
from support.server import ServerProcess, eventually
from support.tools import stable_port

from .conftest import Install, ended

SECONDS = 120


def printed(program: str, server: ServerProcess, python: str | Path = sys.executable) -> list[str]:
    """The words that a program prints, which ends by itself, with 0 and without a traceback."""
    done = subprocess.run(
        [python, "-c", textwrap.dedent(program), server.address],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.split()


def all_done(server: ServerProcess, ids: list[str]) -> None:
    assert len(set(ids)) == len(ids)
    for id_ in ids:
        assert ended(server, id_).HasField("response")


@pytest.mark.slow
def test_a_producer_made_before_a_fork_works_in_the_child_and_in_the_parent(
    server: ServerProcess,
) -> None:
    program = """
        import os, sys
        from opservice_client import Producer

        producer = Producer(sys.argv[1])

        def produce():
            with producer.start() as work:
                work.complete(os.getpid())
            print(work.id, flush=True)

        child = os.fork()
        produce()
        if not child:
            producer.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        produce()
    """
    ids = printed(program, server)

    assert len(ids) == 3
    all_done(server, ids)


@pytest.mark.slow
def test_forked_processes_do_not_pause_in_step(server: ServerProcess) -> None:
    program = """
        import os
        from opservice_client.retries import jitter

        for _ in range(2):
            child = os.fork()
            if not child:
                print(jitter.random(), flush=True)
                os._exit(0)
            os.waitpid(child, 0)
    """
    first, second = printed(program, server)

    assert first != second


@pytest.mark.slow
def test_a_producer_used_before_a_fork_raises_in_the_child_and_goes_on_in_the_parent(
    server: ServerProcess,
) -> None:
    program = """
        import os, sys
        os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # else gRPC itself may crash the child as it forks
        from opservice_client import Producer

        producer = Producer(sys.argv[1])
        work = producer.start()
        with work:
            child = os.fork()
            if not child:
                for attempt in (producer.start, Producer(sys.argv[1]).start, work.__enter__):
                    try:
                        attempt()
                    except RuntimeError as error:
                        if "spawn" not in str(error) and attempt != work.__enter__:
                            os._exit(1)
                    else:
                        os._exit(2)
                work.report()
                producer.close()
                sys.exit(0)  # leaves the block, and ends as an interpreter does
            assert os.waitpid(child, 0)[1] == 0
            work.complete("the parent's")
        producer.start()
        print(work.id)
    """
    all_done(server, printed(program, server))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_works_in_processes_of_multiprocessing(
    server: ServerProcess, tmp_path: Path, method: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import multiprocessing, sys
        from opservice_client import Producer

        producer = Producer(sys.argv[1])

        def produce(number):
            work = producer.start()
            with work:
                work.complete(number)
            return work.id

        if __name__ == "__main__":
            with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
                print(*pool.map(produce, range(4)))
    """)
    )
    command: list[str | Path] = [sys.executable, program, server.address, method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)

    assert done.returncode == 0, done.stderr
    all_done(server, done.stdout.split())


APPLICATION = """
import atexit, os
from datetime import timedelta
from opservice_client import Producer

producer = Producer(os.environ["OPSERVICE"])

def app(environ, start_response):
    work = producer.start()
    work.run(lambda work: os.getpid())
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [work.id.encode()]
"""


def serves(server: ServerProcess, directory: Path, address: str, *command: str | Path) -> None:
    """Asserts that the application works under this web server, which then ends without a traceback."""
    (directory / "application.py").write_text(APPLICATION)

    def answer() -> str | None:
        with suppress(OSError), urlopen(f"http://{address}", timeout=SECONDS) as got:
            return str(got.read().decode())
        return None

    with subprocess.Popen(
        command,
        cwd=directory,
        env={**os.environ, "OPSERVICE": server.address},
        stderr=subprocess.PIPE,
        text=True,
    ) as web:
        try:
            all_done(server, [eventually(answer) for _ in range(4)])
        finally:
            web.terminate()
            _, errors = web.communicate(timeout=SECONDS)
    assert "Traceback" not in errors, errors


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["", "preload"])
def test_it_works_under_gunicorn(
    install: Install, server: ServerProcess, tmp_path: Path, options: list[str]
) -> None:
    command: list[str | Path] = [install("gunicorn"), "-m", "gunicorn", "--workers", "2", *options]
    address = f"127.0.0.1:{stable_port()}"

    serves(server, tmp_path, address, *command, "--bind", address, "application:app")


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--lazy-apps"]], ids=["", "lazy-apps"])
def test_it_works_under_uwsgi(
    install: Install, server: ServerProcess, tmp_path: Path, options: list[str]
) -> None:
    # uWSGI as a wheel. Its workers may end in a thread that they then wait for, until they are killed.
    program = install("pyuwsgi").parent / "uwsgi"
    workers = ["--master", "--processes", "2", "--enable-threads", "--worker-reload-mercy", "5"]
    address = f"127.0.0.1:{stable_port()}"
    socket = ["--http-socket", address, "--die-on-term"]

    serves(server, tmp_path, address, program, *workers, *options, *socket, "-w", "application:app")


@pytest.mark.slow
def test_it_works_under_celery_with_processes(
    install: Install, server: ServerProcess, tmp_path: Path
) -> None:
    (tmp_path / "tasks.py").write_text(
        textwrap.dedent("""
        import os, sys
        from celery import Celery, signals
        from opservice_client import Producer

        app = Celery("tasks", broker="memory://", backend="cache+memory://")
        app.conf.worker_hijack_root_logger = False
        producer = Producer(os.environ["OPSERVICE"])

        @app.task
        def produce(number):
            with producer.start() as work:
                work.complete(number)
            with open(os.environ["IDS"], "a") as ids:
                ids.write(work.id + "\\n")

        @signals.worker_ready.connect
        def send(**_):
            for number in range(4):
                produce.delay(number)
    """)
    )
    python, ids = install("celery"), tmp_path / "ids"
    ids.touch()
    command: list[str | Path] = [
        python,
        "-m",
        "celery",
        "-A",
        "tasks",
        "worker",
        "--pool",
        "prefork",
    ]
    with subprocess.Popen(
        [*command, "--concurrency", "2", "--loglevel", "WARNING"],
        cwd=tmp_path,
        env={**os.environ, "OPSERVICE": server.address, "IDS": str(ids), "C_FORCE_ROOT": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as celery:
        try:
            eventually(lambda: len(ids.read_text().split()) == 4)
        finally:
            celery.terminate()
            said, _ = celery.communicate(timeout=SECONDS)
    assert "Traceback" not in said, said
    all_done(server, ids.read_text().split())


@pytest.mark.slow
def test_the_results_of_threads_are_sent_when_the_interpreter_ends(server: ServerProcess) -> None:
    program = """
        import sys, time
        from opservice_client import Producer

        def slow(work):
            time.sleep(0.5)
            return "done"

        def token():
            time.sleep(0.2)
            return "x"

        def begin():
            producer = Producer(sys.argv[1], token=token, max_workers=1)
            for _ in range(2):
                work = producer.start()
                work.run(slow)
                print(work.id)

        begin()  # after which nothing here refers to the producer
    """
    all_done(server, printed(program, server))


@pytest.fixture
def producer(server: ServerProcess) -> Iterator[Producer]:
    with Producer(server.address) as producer:
        yield producer


def test_an_interrupt_while_a_block_is_entered_leaves_no_operation_held(
    producer: Producer, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = producer.start()
    wait = work._threads.wait

    def interrupted(coroutine: object) -> None:
        wait(coroutine)  # type: ignore[arg-type] # whatever it is
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(work._threads, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt), work:
        raise AssertionError("entered")

    assert ended(server, work.id).error.code == Code.ABORTED


def test_a_generator_that_is_thrown_away_ends_its_operation(
    producer: Producer, server: ServerProcess
) -> None:
    def handler() -> Iterator[None]:
        with work:
            yield

    work = producer.start()
    generator = handler()
    next(generator)
    del generator
    gc.collect()

    assert ended(server, work.id).error.code == Code.ABORTED


def test_a_generator_that_is_thrown_away_on_the_clients_own_thread_ends_its_operation(
    producer: Producer, server: ServerProcess
) -> None:
    def handler() -> Iterator[None]:
        with work:
            yield

    work = producer.start()
    generator = handler()
    next(generator)
    work._threads.call_soon(generator.close)  # type: ignore[attr-defined] # of a generator

    assert ended(server, work.id).error.code == Code.ABORTED


def test_work_is_run_only_once(producer: Producer) -> None:
    work = producer.start()
    work.run(lambda _: None)

    with pytest.raises(RuntimeError, match="only once"):
        work.run(lambda _: None)
    with pytest.raises(RuntimeError, match="only once"), work:
        raise AssertionError("entered")


def test_a_callback_is_called_in_a_thread_when_the_operation_is_cancelled(
    producer: Producer, server: ServerProcess
) -> None:
    called: list[bool] = []
    work = producer.start()
    work.run(lambda work: work.cancelled.wait(60))
    work.on_cancelled(lambda: called.append(True))
    server.client.cancel(work.id)

    eventually(lambda: called)
    work.on_cancelled(lambda: called.append(True))
    eventually(lambda: len(called) == 2)
