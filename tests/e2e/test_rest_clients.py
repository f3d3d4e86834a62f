"""Published REST clients, unmodified, and the programs and commands of docs/http.md, as they are printed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from google.api_core import exceptions, operation, operations_v1
from google.api_core.future.polling import POLLING_PREDICATE
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy
from opservice.methods.listing import DEFAULT_PAGE_SIZE
from support.certificates import Authority
from support.client import Client, packed
from support.programs import addressed, run_program
from support.server import PATIENCE, ServerProcess, serving
from support.tools import require_tool

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
README = (Path(__file__).parents[2] / "README.md").read_text()
PROGRAMS = dict(re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))
RESPONSE = StringValue(value="42 rows")

sqlite = pytest.mark.parametrize("server", ["sqlite"], indirect=True, scope="package")

# It is untyped.
from_gapic: Callable[..., Any] = operation.from_gapic
_v1: Any = operations_v1


class Secured:
    """The server, its client by gRPC, and whom to trust."""

    def __init__(self, server: ServerProcess, trusted: Path) -> None:
        self.server = server
        self.trusted = str(trusted)
        self.client = Client(server.channel(root_certificates=trusted.read_bytes()))


@pytest.fixture(scope="module")
def https(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Secured]:
    """A server with TLS, which Google's clients always use."""
    directory, pair = tmp_path_factory.mktemp("https"), authority.issue("https")
    settings: dict[str, Any] = {
        "tls_cert": pair.certificate,
        "tls_key": pair.key,
        "http_listen": "127.0.0.1:0",
    }
    with serving(directory, f"sqlite:///{directory}/operations.db", **settings) as server:
        yield Secured(server, authority.certificate)


SERVICE = "google.longrunning.Operations"
WITHOUT_A_PARENT = {
    f"{SERVICE}.ListOperations": [{"method": "get", "uri": "/v1/{name=operations}"}],
    f"{SERVICE}.GetOperation": [{"method": "get", "uri": "/v1/{name=operations/*}"}],
    f"{SERVICE}.DeleteOperation": [{"method": "delete", "uri": "/v1/{name=operations/*}"}],
    f"{SERVICE}.CancelOperation": [
        {"method": "post", "uri": "/v1/{name=operations/*}:cancel", "body": "*"}
    ],
}


class Google:
    """google-api-core's client by REST: its own rules for names under a parent, else those of the caller."""

    def __init__(self, https: Secured, parent: str) -> None:
        self.parent = parent
        self.producer = https.client
        self._transport = _v1.OperationsRestTransport(
            host=https.server.http_url.partition("//")[2],
            credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call] # it has no types
            http_options={} if parent else WITHOUT_A_PARENT,
        )
        self.client = _v1.AbstractOperationsClient(transport=self._transport)

    def close(self) -> None:
        self._transport._session.close()

    def started(self, **fields: Any) -> str:
        id_ = self.producer.started(parent=self.parent, **fields)
        return f"{self.parent}/operations/{id_}" if self.parent else f"operations/{id_}"

    def follow(self, name: str, while_waiting: Callable[[], object] = lambda: None) -> Any:
        """A future, as a generated client makes it."""
        polling = Retry(
            predicate=POLLING_PREDICATE,
            initial=0.02,
            maximum=0.1,
            timeout=PATIENCE,
            on_error=lambda _: while_waiting(),
        )
        got = self.client.get_operation(name)
        return from_gapic(got, self.client, StringValue, polling=polling)


@pytest.fixture(params=["", "projects/p/locations/l"], ids=["no parent", "a parent"])
def google(
    https: Secured, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Google]:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", https.trusted)
    made = Google(https, request.param)
    yield made
    made.close()


def id_in(name: str) -> str:
    return name.rpartition("/")[2]


def test_google_follows_an_operation_to_its_response(google: Google) -> None:
    name = google.started()

    def complete() -> None:
        google.producer.complete(id_in(name), response=packed(RESPONSE))

    following = google.follow(name, complete)

    assert not following.done()
    assert following.result() == RESPONSE


def test_google_follows_an_operation_to_its_error(google: Google) -> None:
    name = google.started()
    info = ErrorInfo(reason="NAME_TAKEN", domain="registry")
    error = Status(code=Code.ALREADY_EXISTS, message="it is taken", details=[packed(info)])

    following = google.follow(name, lambda: google.producer.fail(id_in(name), error))

    with pytest.raises(exceptions.AlreadyExists, match="it is taken") as caught:
        following.result()
    assert caught.value.errors == [error]


def test_google_cancels_an_operation(google: Google) -> None:
    following = google.follow(google.started())

    assert following.cancel()

    assert following.cancelled()
    with pytest.raises(exceptions.Cancelled):
        following.result()


def test_google_goes_on_while_an_operation_is_being_cancelled(google: Google) -> None:
    name = google.started(cancel_policy=CancelPolicy.COOPERATIVE)
    following = google.follow(name)

    assert following.cancel()

    assert not following.done()
    google.producer.complete(id_in(name), response=packed(RESPONSE))
    assert following.result() == RESPONSE


def test_google_deletes_what_is_done_alone(google: Google) -> None:
    name = google.started()
    with pytest.raises(exceptions.BadRequest, match="still running") as running:
        google.client.delete_operation(name)
    assert running.value.reason == "OPERATION_RUNNING"
    google.producer.complete(id_in(name))

    google.client.delete_operation(name)

    with pytest.raises(exceptions.NotFound, match=f"Operation {name} not found") as caught:
        google.client.get_operation(name)
    assert (caught.value.domain, caught.value.reason) == ("opservice", "OPERATION_NOT_FOUND")


def test_google_lists_through_all_pages_what_a_filter_lets_pass(google: Google) -> None:
    creator = uuid4().hex
    names = [google.started(created_by=creator) for _ in range(DEFAULT_PAGE_SIZE + 3)]
    google.producer.complete(id_in(names.pop()))
    collection = google.parent or "operations"

    listed = google.client.list_operations(collection, f'created_by = "{creator}" AND done = false')

    assert [[each.name for each in page.operations] for page in listed.pages] == [
        names[::-1][:DEFAULT_PAGE_SIZE],
        names[::-1][DEFAULT_PAGE_SIZE:],
    ]


def test_every_program_of_the_page_is_run() -> None:
    assert PROGRAMS.keys() == {"requests", "google"}
    assert PAGE.count("```python") == len(PROGRAMS)


GOOGLE_DRIVER = """
import google.api_core.exceptions

assert follow("operations/SUCCEEDED").result().value == "42 rows"
try:
    follow("operations/FAILED").result()
except google.api_core.exceptions.AlreadyExists:
    running = follow("operations/RUNNING")
    assert running.cancel() and running.cancelled()
    operations.delete_operation("operations/FAILED")
    print(next(iter(operations.list_operations("operations", "id = RUNNING"))).done)
"""


def three(client: Client) -> dict[str, str]:
    """The ids of an operation that has succeeded, of one that has failed, and of one that runs."""
    ids = {name: client.started() for name in ("SUCCEEDED", "FAILED", "RUNNING")}
    client.complete(ids["SUCCEEDED"], response=packed(RESPONSE))
    client.fail(ids["FAILED"], Status(code=Code.ALREADY_EXISTS, message="it is taken"))
    return ids


def with_ids(text: str, ids: dict[str, str]) -> str:
    return re.sub("|".join(ids), lambda found: ids[found[0]], text)


def test_the_program_of_google_runs_as_it_stands(https: Secured) -> None:
    driver = with_ids(GOOGLE_DRIVER, three(https.client))

    told = run_program(PROGRAMS["google"] + driver, https.server, REQUESTS_CA_BUNDLE=https.trusted)

    assert told == "True\n"


REQUESTS_DRIVER = """
assert follow("SUCCEEDED")["response"]["value"] == "42 rows"
assert follow("FAILED")["error"]["code"] == 6
assert "error" in cancel("RUNNING")
print(follow("RUNNING")["error"]["message"])
"""


@sqlite
def test_the_program_of_requests_runs_as_it_stands(server: ServerProcess) -> None:
    driver = with_ids(REQUESTS_DRIVER, three(server.client))

    assert run_program(PROGRAMS["requests"] + driver, server) == "The operation was cancelled\n"


@sqlite
def test_the_program_of_requests_waits_for_the_end(server: ServerProcess) -> None:
    client = server.client
    id_ = client.started(cancel_policy=CancelPolicy.COOPERATIVE)
    driver = f"""
import threading

assert cancel("{id_}")["done"] is False
ended = []
thread = threading.Thread(target=lambda: ended.append(follow("{id_}")))
thread.start()
print("waiting", flush=True)
thread.join()
print(ended[0]["response"]["value"])
"""
    # The producer ends it while the program waits.
    completes = f"""
import grpc
from opservice._proto.opservice.v1.producer_service_pb2 import CompleteRequest
from opservice._proto.opservice.v1.producer_service_pb2_grpc import ProducerServiceStub
from google.protobuf.any_pb2 import Any
from google.protobuf.wrappers_pb2 import StringValue

response = Any()
response.Pack(StringValue(value="42 rows"))
with grpc.insecure_channel("127.0.0.1:50051") as channel:
    ProducerServiceStub(channel).Complete(CompleteRequest(operation_id="{id_}", response=response))
"""
    program = PROGRAMS["requests"] + driver.replace("thread.join()", completes + "thread.join()")

    assert run_program(program, server) == "waiting\n42 rows\n"


def curl_lines(page: str) -> list[str]:
    blocks = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)).replace("\\\n", " ")
    return [line for line in blocks.splitlines() if line.startswith("curl ")]


class Curl:
    """Runs the commands of a page."""

    def __init__(self, server: ServerProcess) -> None:
        self._program = require_tool("curl", "apt-get install curl")
        self._server = server

    def begin(self, line: str, id_: str) -> subprocess.Popen[str]:
        line = re.sub(r"\bID\b", id_, addressed(line, self._server))
        command = shlex.split(line.partition(" >")[0], comments=True)
        return subprocess.Popen([self._program, *command[1:]], stdout=subprocess.PIPE, text=True)

    def __call__(self, line: str, id_: str = "") -> str:
        with self.begin(line, id_) as process:
            said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        return said


def first_event(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    assert "id: 1\n" in iter(process.stdout.readline, "")
    assert "\n" in iter(process.stdout.readline, "")


def last_event(process: subprocess.Popen[str]) -> Any:
    """The operation of the last event, once the stream has ended."""
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    return json.loads(re.findall(r"^data: (.*)$", said, re.MULTILINE)[-1])["operation"]


@sqlite
def test_the_commands_of_the_page_follow_an_operation_to_cancelled(server: ServerProcess) -> None:
    curl = Curl(server)
    start, by_yandex, by_google, watch, cancel, *others = curl_lines(PAGE)

    started = json.loads(curl(start))["operation"]
    assert (started["description"], started["createdBy"]) == ("Build image", "alice")
    id_ = started["id"]
    assert json.loads(curl(by_yandex, id_)) == started
    assert json.loads(curl(by_google, id_))["name"] == f"operations/{id_}"
    with curl.begin(watch, id_) as watching:
        first_event(watching)
        cancelled = json.loads(curl(cancel, id_))
        assert (cancelled["done"], cancelled["error"]["code"]) == (True, Code.CANCELLED)
        assert last_event(watching) == cancelled
    for line in others:
        assert curl(line, id_)
    (of_readme,) = curl_lines(README)
    assert json.loads(curl(of_readme, id_)) == cancelled


@sqlite
def test_the_commands_of_the_page_follow_to_success_and_to_failure(server: ServerProcess) -> None:
    curl, client = Curl(server), server.client
    _, by_yandex, by_google, watch, *_ = curl_lines(PAGE)
    error = Status(code=Code.ALREADY_EXISTS, message="it is taken")
    ends: dict[str, Callable[[str], object]] = {
        "response": lambda id_: client.complete(id_, response=packed(RESPONSE)),
        "error": lambda id_: client.fail(id_, error),
    }
    for result, end in ends.items():
        id_ = client.started()
        with curl.begin(watch, id_) as watching:
            first_event(watching)
            end(id_)
            told = last_event(watching)
        assert told["done"]
        assert told[result].get("value", told[result].get("message")) in {"42 rows", "it is taken"}
        assert json.loads(curl(by_yandex, id_)) == told
        assert json.loads(curl(by_google, id_))[result] == told[result]
