"""Pages in Chromium: those of an origin that --cors-origin names follow operations, all others do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy, OperationRecord
from opservice._proto.opservice.v1.operation_record_service_pb2 import GetOperationRecordRequest
from opservice.common.loggers import AUDIT_LOGGER
from support.browser import Page, ScriptFailed, chromium
from support.client import Client, packed
from support.server import ServerProcess, eventually, serving
from support.tools import stable_port

pytestmark = pytest.mark.slow  # it starts a browser

RESPONSE = packed(StringValue(value="42 rows"))
TAKEN = Status(code=Code.ALREADY_EXISTS, message="it is taken")


@dataclass(frozen=True)
class World:
    """Two servers, and pages, each of which a browser shows."""

    open: ServerProcess
    """It is called by pages of `friend`."""
    closed: ServerProcess
    """No --cors-origin is given to it."""
    friend: Page
    neighbour: Page
    """On the same host, but another port."""
    stranger: Page
    """On another host."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("browser")
    (directory / "closed").mkdir()

    def settings() -> dict[str, Any]:
        return {"http_listen": f"127.0.0.1:{stable_port()}", "cancel_grace": "1h"}

    with (
        Page() as friend,
        Page() as neighbour,
        Page("localhost") as stranger,
        serving(
            directory,
            f"sqlite:///{directory}/open.db",
            cors_origin=friend.origin,
            **settings(),
        ) as open_,
        serving(directory / "closed", f"sqlite:///{directory}/closed.db", **settings()) as closed,
        chromium(directory / "friend", friend),
        chromium(directory / "neighbour", neighbour),
        chromium(directory / "stranger", stranger),
    ):
        yield World(open_, closed, friend, neighbour, stranger)


FETCH = """
const follow = async id => {
  for (;;) {
    const answer = await fetch(`${given.url}/operations/${id}`, {headers: {Prefer: 'wait=30'}});
    const operation = await answer.json();
    if (operation.done) return {operation, etag: answer.headers.get('etag')};
    window.waiting = answer.headers.get('retry-after');
  }
};
"""

ENDS: dict[str, Callable[[Client, str], object]] = {
    "response": lambda client, id_: client.complete(id_, response=RESPONSE),
    "error": lambda client, id_: client.fail(id_, TAKEN),
}


@pytest.mark.parametrize("result", ENDS)
def test_a_page_follows_an_operation_by_fetch(world: World, result: str) -> None:
    client, page = world.open.client, world.friend
    start = """
        const made = await fetch(`${given.url}/v1/producer/operations:start`, {
          method: 'POST',
          headers: {'Content-Type': 'application/json'},
          body: JSON.stringify({description: 'from a page'}),
        });
        const {operation} = await made.json();
        window.following = follow(operation.id);
        return operation.id;
    """
    id_ = page.run(FETCH + start, url=world.open.http_url)
    assert client.get(id_).description == "from a page"

    ENDS[result](client, id_)

    told = page.run("return await window.following")
    assert told["operation"]["done"]
    assert told["operation"][result] in (
        {"@type": RESPONSE.type_url, "value": "42 rows"},
        {"code": 6, "message": "it is taken", "details": []},
    )
    assert told["etag"] == '"2"'


def test_a_page_cancels_and_deletes_by_fetch(world: World) -> None:
    id_ = world.open.client.started()
    script = """
        const cancelled = await fetch(`${given.url}/operations/${given.id}:cancel`, {method: 'POST'});
        const path = `${given.url}/v1/operationRecords/${given.id}`;
        const deleted = await fetch(path, {method: 'DELETE'});
        const gone = await fetch(path);
        return [(await cancelled.json()).error.code, deleted.status, gone.status];
    """

    told = world.friend.run(script, url=world.open.http_url, id=id_)

    assert told == [Code.CANCELLED, 200, 404]


WATCH = """
    window.seen = [];
    window.source = new EventSource(`${given.url}/v1/operationRecords/${given.id}:watch`);
    window.source.onmessage = event => {
      window.seen.push([event.lastEventId, JSON.parse(event.data).operation]);
    };
"""


class Source:
    """An EventSource of a page."""

    def __init__(self, page: Page, server: ServerProcess, id_: str) -> None:
        self._page = page
        page.run(WATCH, url=server.http_url, id=id_)

    def seen(self, count: int) -> list[Any]:
        """The ids of the events, and the operations, once there are so many."""

        def look() -> list[Any] | None:
            seen: list[Any] = self._page.run("return window.seen")
            return seen if len(seen) >= count else None

        found = eventually(look)
        assert found is not None
        return found

    def is_over(self) -> bool:
        """Whether the browser connects no more."""
        over: bool = self._page.run("return window.source.readyState === EventSource.CLOSED")
        return over


@pytest.mark.parametrize("result", ENDS)
def test_a_page_follows_an_operation_by_its_events(world: World, result: str) -> None:
    client = world.open.client
    id_ = client.started()
    source = Source(world.friend, world.open, id_)
    assert [each["done"] for _, each in source.seen(1)] == [False]

    ENDS[result](client, id_)

    seen = source.seen(2)
    assert [id_ for id_, _ in seen] == ["1", "2"]
    assert result in seen[1][1]
    # It has connected once more, to be told that there is no more to come, and no event has come twice.
    eventually(source.is_over)
    assert source.seen(2) == seen


def test_a_page_follows_a_cooperative_cancel_by_its_events(world: World) -> None:
    client = world.open.client
    id_ = client.started(cancel_policy=CancelPolicy.COOPERATIVE)
    source = Source(world.friend, world.open, id_)
    source.seen(1)
    cancel = "await fetch(`${given.url}/operations/${given.id}:cancel`, {method: 'POST'})"
    world.friend.run(cancel, url=world.open.http_url, id=id_)
    _, cancelling = source.seen(2)[1]
    assert (cancelling["done"], cancelling["error"]["code"]) == (False, Code.CANCELLED)

    client.fail(id_, Status(code=Code.CANCELLED, message="cleaned up"))

    assert source.seen(3)[2][1]["error"]["message"] == "cleaned up"
    eventually(source.is_over)


def test_a_page_connects_again_by_itself_and_gets_no_event_twice(world: World) -> None:
    server = world.open
    id_ = server.client.started()
    source = Source(world.friend, server, id_)
    source.seen(1)

    server.kill()
    server.start()
    server.client.complete(id_, response=RESPONSE)

    assert [(id_, each["done"]) for id_, each in source.seen(2)] == [("1", False), ("2", True)]
    eventually(source.is_over)


def test_a_page_whose_watch_finds_nothing_stays_away(world: World) -> None:
    source = Source(world.friend, world.open, "nowhere")

    eventually(source.is_over)
    assert world.friend.run("return window.seen") == []


TRIES = {
    "fetch": "await fetch(cancel)",
    "fetch POST": "await fetch(cancel, {method: 'POST'})",
    "fetch POST of JSON": """
        await fetch(cancel, {
          method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{}',
        })""",
    "fetch DELETE": "await fetch(`${given.url}/v1/operationRecords/${given.id}`, {method: 'DELETE'})",
    "fetch POST of text": """
        await fetch(cancel, {method: 'POST', mode: 'no-cors', body: '{}'})""",
    "fetch of Start as text": """
        await fetch(`${given.url}/v1/producer/operations:start`, {
          method: 'POST', mode: 'no-cors', body: JSON.stringify({parent: given.id}),
        })""",
    "beacon": "navigator.sendBeacon(cancel, '{}')",
    "img": """
        const image = new Image();
        await new Promise(done => { image.onload = image.onerror = done; image.src = cancel; })""",
    "script": """
        const script = document.createElement('script');
        await new Promise(done => {
          script.onload = script.onerror = done;
          script.src = cancel;
          document.body.append(script);
        })""",
    "iframe": """
        const frame = document.createElement('iframe');
        await new Promise(done => {
          frame.onload = done;
          frame.src = cancel;
          document.body.append(frame);
        })""",
    "form POST": """
        const frame = document.createElement('iframe');
        frame.name = `frame${Math.random()}`;
        document.body.append(frame);
        const form = document.createElement('form');
        Object.assign(form, {method: 'POST', action: cancel, target: frame.name, enctype: 'text/plain'});
        document.body.append(form);
        await new Promise(done => { frame.onload = done; form.submit(); })""",
    "EventSource": """
        const source = new EventSource(`${given.url}/v1/operationRecords/${given.id}:watch`);
        await new Promise((done, failed) => {
          source.onmessage = () => done('read');
          source.onerror = () => failed('no events');
        })""",
}
"""What a page may try. `cancel` is a URL that cancels an operation, by GET as by POST."""
READS = {"fetch", "fetch POST", "fetch POST of JSON", "fetch DELETE", "EventSource"}
"""Of which a page would see the answer."""


def record(client: Client, id_: str) -> OperationRecord:
    return client.records.Get(GetOperationRecordRequest(operation_id=id_))


@pytest.mark.parametrize(
    ("server", "page"),
    [
        ("open", "neighbour"),
        ("open", "stranger"),
        ("closed", "friend"),
        ("closed", "stranger"),
    ],
)
def test_another_page_reads_and_changes_nothing(world: World, server: str, page: str) -> None:
    called: ServerProcess = getattr(world, server)
    visited: Page = getattr(world, page)
    id_ = called.client.started()
    before = record(called.client, id_)

    def refusals() -> int:
        refused = called.log(logger=AUDIT_LOGGER, error="PermissionDenied")
        return len(refused)

    refused_before = refusals()
    for name, code in TRIES.items():
        script = f"const cancel = `${{given.url}}/operations/${{given.id}}:cancel`; {code}"
        try:
            visited.run(script, url=called.http_url, id=id_)
            assert name not in READS, name
        except ScriptFailed:
            assert name in READS, name

    assert record(called.client, id_) == before
    # They have come to the server, which has refused them; preflights alone are none of its calls.
    eventually(lambda: refusals() - refused_before >= len(TRIES) - len(READS))


def is_done(client: Client, id_: str) -> bool:
    return client.get(id_).done


def test_what_other_pages_try_would_else_succeed(world: World) -> None:
    """The page that may call cancels by the same scripts: what refuses the others is who they are."""
    for name in ("fetch", "fetch POST", "fetch POST of JSON"):
        client = world.open.client
        id_ = client.started()
        code = f"const cancel = `${{given.url}}/operations/${{given.id}}:cancel`; {TRIES[name]}"

        world.friend.run(code, url=world.open.http_url, id=id_)

        assert eventually(partial(is_done, client, id_)), name
