"""The log: a line of JSON for each call, and nothing in it that is secret."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyPb
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from opservice._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from opservice.runtime.logs import _plain_traceback
from security.calls import HEALTH, OF_NOTHING, PendingCall
from support.client import Client, refused
from support.fixtures import execute
from support.longrunning import Operations
from support.postgres import PostgresServer
from support.server import ServerProcess, eventually, serving

PLANTED = "planted-secret"
TOKEN = f"{PLANTED}-token-of-the-lease"
PAYLOAD = AnyPb(type_url=f"type.googleapis.com/{PLANTED}", value=f"{PLANTED}-payload".encode())
ERROR = Status(code=Code.INTERNAL, message=f"{PLANTED}-message", details=[PAYLOAD])
HELD: dict[str, Any] = {"lease": Duration(seconds=60), "lease_token": TOKEN}


def call_line(server: ServerProcess, request_id: str, **wanted: Any) -> dict[str, Any]:
    (line,) = eventually(lambda: server.log(event="call", request_id=request_id, **wanted))
    return line


def error_line(server: ServerProcess, request_id: str) -> dict[str, Any]:
    """Of what nobody expected. Of a write there is one in the audit log beside it."""
    return call_line(server, request_id, level="error")


def get(client: Client, operation_id: str, request_id: str) -> None:
    client.operations.Get(
        GetOperationRequest(operation_id=operation_id), metadata=(("x-request-id", request_id),)
    )


def test_a_write_is_logged_with_what_came_of_it(server: ServerProcess) -> None:
    id_ = server.client.started()
    server.client.cancel(id_)

    method = "/yandex.cloud.operation.OperationService/Cancel"
    (line,) = eventually(lambda: server.log(method=method, operation_id=id_))

    assert line["event"] == "call"
    assert line["level"] == "info"
    assert line["code"] == "OK"
    assert line["duration_ms"] >= 0
    assert line["request_id"]
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert line["timestamp"].endswith("Z")


def test_a_refused_read_is_logged(server: ServerProcess) -> None:
    with refused() as refusal:
        server.client.get("nowhere")

    line = call_line(server, refusal.request_id)
    assert line["level"] == "info"
    assert line["code"] == "NOT_FOUND"
    assert line["error"] == "OperationNotFound"


def test_a_successful_read_is_not_logged(server: ServerProcess) -> None:
    id_ = server.client.started()
    get(server.client, id_, "a-read-1")
    with refused() as later:
        server.client.get("nowhere")

    call_line(server, later.request_id)
    assert server.log(request_id="a-read-1") == []


def test_a_successful_read_is_logged_at_debug(tmp_path: Path) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path}/a.db", log_level="debug") as server:
        get(server.client, server.client.started(), "a-read-2")

        assert call_line(server, "a-read-2")["level"] == "debug"


def test_a_line_holds_no_more_of_an_id_than_an_id_may_have(server: ServerProcess) -> None:
    with refused() as refusal:
        server.client.get("x" * 1_000)

    assert call_line(server, refusal.request_id)["operation_id"] == "x" * 128


def test_a_line_tells_the_name_that_a_google_client_asked_for(server: ServerProcess) -> None:
    with refused() as refusal:
        Operations(server.client).get("folders/b1g/operations/nowhere")

    assert call_line(server, refusal.request_id)["name"] == "folders/b1g/operations/nowhere"


def test_an_id_with_line_breaks_stays_on_one_line(server: ServerProcess) -> None:
    with refused() as refusal:
        server.client.get('x\n{"event": "forged"}')

    call_line(server, refusal.request_id)
    assert server.log(event="forged") == []


def test_no_secret_is_logged_at_any_level(database_url: str, tmp_path: Path) -> None:
    url = database_url.replace("tests@", f"tests:{PLANTED}@")
    with serving(tmp_path, url, log_level="debug") as server:
        client = server.client
        for error in (None, ERROR):
            id_ = client.started(description=PLANTED, metadata=PAYLOAD, **HELD)
            client.renew(id_, lease_token=TOKEN, metadata=PAYLOAD)
            if error is None:
                client.complete(id_, lease_token=TOKEN, response=PAYLOAD)
            else:
                client.fail(id_, error, lease_token=TOKEN)
            client.get(id_)
            with refused():
                client.complete(id_, lease_token=f"{PLANTED}-another-token")
        with refused():
            client.start(description=PLANTED * 100, lease_token=f"{PLANTED}-" * 100)

        # A table that takes no row makes the driver say what row it was.
        execute(database_url, "ALTER TABLE operations RENAME TO taken_away")
        with refused() as last:
            client.start(description=PLANTED, metadata=PAYLOAD, **HELD)

        assert "Traceback" in error_line(server, last.request_id)["exception"]
        assert PLANTED not in server.stderr + server.stdout


def test_a_row_that_the_database_refuses_is_not_logged(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    url = postgres.create_database()
    with serving(tmp_path, url) as server:
        execute(url, "ALTER TABLE operations ADD CONSTRAINT none CHECK (description = 'none')")
        with refused() as refusal:
            server.client.start(description=PLANTED, metadata=PAYLOAD, **HELD)

        line = error_line(server, refusal.request_id)
        assert "violates check constraint" in line["exception"]
        assert PLANTED not in server.stderr
        assert PLANTED.encode().hex() not in server.stderr


@pytest.mark.parametrize(
    "url",
    [f"postgresql://tests:{PLANTED}@127.0.0.1:1/nowhere", f"postgresql://tests:{PLANTED}@host:x/n"],
    ids=["unreachable", "malformed"],
)
def test_a_refusal_to_start_does_not_show_the_password(url: str, tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, url, log_level="debug")

    assert server.expect_refusal() == 1

    assert "opservice: " in server.stderr
    assert PLANTED not in server.stderr


def test_what_a_terminal_would_obey_is_made_plain_on_the_console(tmp_path: Path) -> None:
    commands = "\x1b]0;title\x07\x9b2J\u202egnp\u2066\u200f\u061c\u2028"
    settings = {"log_format": "console", "log_level": "debug"}
    with serving(tmp_path, f"sqlite:///{tmp_path}/a.db", **settings) as server:
        with refused():
            server.client.get(f"id-{commands}")
        eventually(lambda: "id-" in server.stderr)
        execute(server.database, 'ALTER TABLE operations RENAME TO "taken\u202e_away"')
        with refused():
            server.client.start()
        eventually(lambda: "Traceback" in server.stderr)

        assert not [c for c in server.stderr if not c.isprintable() and c != "\n"]
        assert r"id-\x1b]0;title\x07\x9b2J\u202egnp\u2066\u200f\u061c\u2028" in server.stderr


def test_a_traceback_is_made_plain_line_by_line() -> None:
    shown = StringIO()
    error = ValueError("a\x1b[2Jb\n  c\u202e")

    _plain_traceback(shown, (ValueError, error, None))

    assert "ValueError: a\\x1b[2Jb\n  c\\u202e" in shown.getvalue()


@pytest.mark.slow
def test_streams_that_are_left_do_not_crash_a_server_that_logs_them(tmp_path: Path) -> None:
    """gRPC may have freed their calls before Python ends them, and then cannot be asked of a call."""
    method = f"{HEALTH}/Watch"
    with serving(tmp_path, f"sqlite:///{tmp_path}/operations.db", log_level="debug") as server:
        for _ in range(30):
            calls = [
                PendingCall(server.client.channel, method, OF_NOTHING[method]) for _ in range(90)
            ]
            for call in calls:
                call.answer()  # and leaves

        assert server.client.started()
