"""Streams by HTTP: server-sent events, else lines of JSON."""

from __future__ import annotations

import json
from typing import Any

import requests

from support.client import Client
from support.rest import Rest, events
from support.server import ServerProcess, eventually


def test_a_watch_is_server_sent_events(rest: Rest, client: Client) -> None:
    id_ = rest.start()
    path = f"/v1/operationRecords/{id_}:watch"
    with rest("GET", path, headers={"accept": "text/event-stream"}, stream=True) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["x-accel-buffering"] == "no"
        told = events(answer)
        assert next(told)["id"] == "1"
        client.cancel(id_)
        last = next(told)
        assert (last["id"], json.loads(last["data"])["operation"]["done"]) == ("2", True)
        assert next(told, None) is None
    since = {"accept": "text/event-stream", "last-event-id": "1"}
    with rest("GET", path, headers=since, stream=True) as answer:
        assert [each["id"] for each in events(answer)] == ["2"]
    known = rest("GET", path, headers={**since, "last-event-id": "2"})
    assert (known.status_code, known.content) == (204, b"")


def test_a_watch_that_is_continued_begins_before_there_is_news(rest: Rest, client: Client) -> None:
    id_ = rest.start()
    path = f"/v1/operationRecords/{id_}:watch"
    since = {"accept": "text/event-stream", "last-event-id": "1"}
    with rest("GET", path, headers=since, stream=True) as answer:
        assert answer.status_code == 200
        client.cancel(id_)
        assert [each["id"] for each in events(answer)] == ["2"]


def test_a_watch_that_is_continued_tells_of_another_operation_by_the_same_id(rest: Rest) -> None:
    id_ = rest.start()
    path = f"/v1/operationRecords/{id_}:watch"
    since = {"accept": "text/event-stream", "last-event-id": "7"}
    with rest("GET", path, headers=since, stream=True) as answer:
        assert next(events(answer))["id"] == "1"


def test_who_follows_many_by_ids_is_sent_away_after_the_end(rest: Rest) -> None:
    """Else browsers would come back every few seconds, for ever."""
    ids = [rest.start(), rest.start()]
    asked = "&".join(f"operationIds={id_}" for id_ in (*ids, "nowhere"))
    path = f"/v1/operationRecords:batchWatch?{asked}"
    with rest("GET", path, headers={"accept": "text/event-stream"}, stream=True) as answer:
        told = events(answer)
        tokens = [next(told)["id"] for _ in range(4)]
        for id_ in ids:
            rest("POST", f"/operations/{id_}:cancel")
        tokens += [each["id"] for each in told]
    since = {"accept": "text/event-stream", "last-event-id": tokens[3]}
    with rest("GET", path, headers=since, stream=True) as answer:
        assert len(list(events(answer))) > 1  # what has changed since, and that this is all
    known = rest("GET", path, headers={**since, "last-event-id": tokens[-1]})
    assert (known.status_code, known.content) == (204, b"")


def test_who_continues_to_follow_many_is_answered_before_there_is_news(rest: Rest) -> None:
    id_ = rest.start()
    path = f"/v1/operationRecords:batchWatch?operationIds={id_}"
    with rest("GET", path, headers={"accept": "text/event-stream"}, stream=True) as answer:
        told = events(answer)
        token = [next(told)["id"] for _ in range(2)][-1]
    # As a browser that began with a token in its URL comes back: with the same, and the last id.
    since = {"accept": "text/event-stream", "last-event-id": token}
    with rest("GET", f"{path}&resumeToken=old", headers=since, stream=True) as answer:
        told = events(answer)
        assert json.loads(next(told)["data"])["caughtUp"] == {}
        rest("POST", f"/operations/{id_}:cancel")
        assert json.loads(next(told)["data"])["record"]["operation"]["done"] is True


def test_a_watch_is_else_a_line_of_json_for_each_change(rest: Rest, client: Client) -> None:
    id_ = rest.start()
    with rest("GET", f"/v1/operationRecords/{id_}:watch", stream=True) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = answer.iter_lines(chunk_size=1)
        assert json.loads(next(lines))["revision"] == "1"
        client.cancel(id_)
        assert json.loads(next(lines))["revision"] == "2"
        assert next(lines, None) is None


def test_a_watch_of_nothing_is_not_found(rest: Rest) -> None:
    answer = rest.get("/v1/operationRecords/nothing:watch", accept="text/event-stream")
    assert (answer.status_code, answer.json()["error"]["status"]) == (404, "NOT_FOUND")


def test_a_watch_of_what_is_deleted_ends_with_a_failure(rest: Rest) -> None:
    id_ = rest.start()
    path = f"/v1/operationRecords/{id_}:watch"
    with rest("GET", path, headers={"accept": "text/event-stream"}, stream=True) as answer:
        told = events(answer)
        next(told)
        rest("POST", f"/operations/{id_}:cancel")
        assert json.loads(next(told)["data"])["operation"]["done"] is True


def test_a_server_that_is_stopped_ends_its_streams(tmp_path: Any, sqlite_url: str) -> None:
    server = ServerProcess(tmp_path, sqlite_url, http_listen="127.0.0.1:0", drain="20s").start()
    try:
        with requests.Session() as session:
            rest = Rest(session, server.http_url)
            id_ = rest.start()
            path = f"/v1/operationRecords/{id_}:watch"
            with rest("GET", path, headers={"accept": "text/event-stream"}, stream=True) as answer:
                told = events(answer)
                next(told)
                server.send_signal(15)
                failure = next(told)
                assert failure["event"] == "failure"
                assert json.loads(failure["data"])["error"]["status"] == "UNAVAILABLE"
                assert next(told, None) is None
        assert server.wait() == 0
        assert eventually(lambda: server.log(event="stopped"))
    finally:
        server.close()
