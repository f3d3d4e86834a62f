"""REST: what HTTP adds to the methods. That both tell the same is for test_rest.py."""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

import opservice
from support.client import TOKEN, Client
from support.rest import Rest

DOCUMENT = Path(opservice.__file__).parent / "fronts/http/openapi.json"
UNKNOWN_ANY = {"@type": "example.com/a.B", "value": "AAH/"}


def test_an_operation_lives_by_rest_alone(rest: Rest) -> None:
    id_ = rest.start(description="a b", metadata=UNKNOWN_ANY, lease="60s", leaseToken=TOKEN)
    shown = rest.get(f"/operations/{id_}").json()
    assert (shown["description"], shown["done"]) == ("a b", False)
    assert shown["metadata"] == UNKNOWN_ANY
    report = {"lease_token": TOKEN, "progress": {"done": 1, "total": "3"}}
    renewed = rest("POST", f"/v1/producer/operations/{id_}:renew", json=report).json()
    assert renewed["cancelRequested"] is False
    assert rest.get(f"/v1/operationRecords/{id_}").json()["progress"]["total"] == "3"
    result = {"leaseToken": TOKEN, "response": UNKNOWN_ANY}
    done = rest("POST", f"/v1/producer/operations/{id_}:complete", json=result).json()
    assert (done["done"], done["response"]) == (True, UNKNOWN_ANY)
    assert rest("DELETE", f"/v1/operationRecords/{id_}").json() == {}
    assert rest.get(f"/operations/{id_}").status_code == 404


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_cancel_is_a_post_and_as_published_a_get(rest: Rest, method: str) -> None:
    id_ = rest.start()
    assert rest(method, f"/operations/{id_}:cancel").json()["error"]["code"] == 1


def test_a_list_bears_an_any_of_an_unknown_type(rest: Rest) -> None:
    parent = "folders/unknown-any"
    ids = [rest.start(parent=parent, metadata=UNKNOWN_ANY), rest.start(parent=parent)]
    listed = rest.get(f"/v1/operationRecords?parent={parent}&pageSize=5").json()
    assert [each["operation"]["id"] for each in listed["operationRecords"]] == ids[::-1]
    assert listed["operationRecords"][1]["operation"]["metadata"] == UNKNOWN_ANY
    by_name = rest.get(f"/v1/{parent}/operations").json()
    assert [each["name"] for each in by_name["operations"]] == [
        f"{parent}/operations/{id_}" for id_ in ids[::-1]
    ]


def test_errors_have_the_form_of_their_family(rest: Rest) -> None:
    google = rest.get("/v1/operations/nothing")
    assert google.status_code == 404
    assert google.json()["error"]["code"] == 404
    assert google.json()["error"]["status"] == "NOT_FOUND"
    yandex = rest.get("/operations/nothing")
    assert yandex.status_code == 404
    assert yandex.json()["code"] == 5
    assert yandex.json()["message"] == "Operation nothing not found"
    info = yandex.json()["details"][0]
    assert info["reason"] == "OPERATION_NOT_FOUND"


def test_a_wrong_field_is_named(rest: Rest) -> None:
    answer = rest("POST", "/v1/producer/operations:start", json={"descriptio": "x"})
    assert answer.status_code == 400
    details = answer.json()["error"]["details"]
    violations = [each["fieldViolations"] for each in details if "fieldViolations" in each]
    assert violations[0][0]["field"] == "descriptio"


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"data": b"{}", "headers": {"content-type": "text/plain"}}, 415),
        ({"data": b"{}"}, 415),
        ({"data": gzip.compress(b"{}"), "headers": {"content-encoding": "gzip"}}, 415),
        ({"data": b"{", "headers": {"content-type": "application/json"}}, 400),
        ({"json": {"description": "x" * 9_000_000}}, 400),
        ({"json": {}, "params": {"description": "x"}}, 400),
    ],
    ids=["text", "no type", "gzip", "no JSON", "too large", "in the query"],
)
def test_a_body_that_cannot_be_read_is_refused(
    rest: Rest, options: dict[str, Any], status: int
) -> None:
    answer = rest("POST", "/v1/producer/operations:start", **options)
    assert answer.status_code == status
    assert answer.json()["error"]["status"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("method", "path", "headers", "reason", "told"),
    [
        ("GET", "/nothing", {}, "PATH_UNKNOWN", {}),
        ("GET", "/operations/%zz", {}, "MALFORMED_REQUEST", {}),
        ("PUT", "/operations/%ff", {}, "METHOD_NOT_ALLOWED", {"allow": "GET, HEAD, OPTIONS"}),
        ("PUT", "/operations/x", {}, "METHOD_NOT_ALLOWED", {"allow": "GET, HEAD, OPTIONS"}),
        (
            "POST",
            "/operations/x:cancel",
            {"content-type": "text/plain"},
            "MEDIA_TYPE_UNSUPPORTED",
            {"accept": "application/json"},
        ),
        (
            "POST",
            "/operations/x:cancel",
            {"content-type": "application/json", "content-encoding": "br"},
            "MEDIA_TYPE_UNSUPPORTED",
            {"accept-encoding": "identity"},
        ),
    ],
    ids=["path", "percent sign", "method of no UTF-8", "method", "media type", "coding"],
)
def test_what_reaches_no_method_is_refused_with_a_reason(
    rest: Rest, method: str, path: str, headers: dict[str, str], reason: str, told: dict[str, str]
) -> None:
    body = b"{}" if headers else None
    with closing(HTTPConnection(rest.url.removeprefix("http://"))) as connection:
        connection.request(method, path, body, {**headers, "x-request-id": "mine"})
        answer = connection.getresponse()
        error = json.loads(answer.read())
    assert error.get("error", error)["details"][0]["reason"] == reason
    assert told.items() <= {name.lower(): value for name, value in answer.getheaders()}.items()
    assert answer.headers["x-request-id"] == "mine"


def test_a_coding_that_changes_nothing_is_taken_in_any_case(rest: Rest) -> None:
    headers = {"content-type": "application/json", "content-encoding": "Identity"}
    answer = rest("POST", "/v1/producer/operations:start", data=b"{}", headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/operations/", "/operations/a%0Ab/c", "/livez/", "/v1/%0A"])
def test_a_path_that_is_not_served_is_told_as_json(rest: Rest, path: str) -> None:
    answer = rest.get(path)
    assert answer.status_code == 404
    told = answer.json()
    assert told.get("error", {}).get("status") == "NOT_FOUND" or told["code"] == 5


@pytest.mark.parametrize("length", [9, 900_000_000], ids=["unwanted", "too large"])
def test_a_body_that_is_not_wanted_is_not_asked_for(rest: Rest, length: int) -> None:
    """RFC 9110, section 10.1.1: who sends `Expect: 100-continue` waits for an answer."""
    path = "nothing" if length == 9 else "v1/producer/operations:start"
    head = (
        f"POST /{path} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
    host, _, port = rest.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), 30) as client:
        client.sendall(head.encode())
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 40")
    assert b"\r\nconnection: close\r\n" in answer


def test_a_large_body_is_not_taken_for_headers(rest: Rest) -> None:
    large = {"@type": "example.com/a.B", "value": "A" * 1_000_000}
    ids = [rest.start(metadata=large) for _ in range(2)]
    assert rest.get(f"/operations/{ids[1]}").json()["metadata"] == large


def test_a_read_has_a_version_and_says_when_to_ask_again(rest: Rest) -> None:
    id_ = rest.start()
    for path in (f"/operations/{id_}", f"/v1/operationRecords/{id_}", f"/v1/operations/{id_}"):
        first = rest.get(path)
        assert first.headers["etag"] == '"1"'
        assert first.headers["retry-after"] == "1"
        same = rest.get(path, if_none_match='"1"')
        assert (same.status_code, same.content) == (304, b"")
        assert same.headers["etag"] == '"1"'
    rest("POST", f"/operations/{id_}:cancel")
    changed = rest.get(f"/operations/{id_}", if_none_match='"1"')
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
    assert "retry-after" not in changed.headers


@pytest.mark.parametrize(
    "condition", [{"if-match": '"77"'}, {"if-none-match": "*"}], ids=["match", "none match"]
)
def test_a_condition_on_a_write_is_not_passed_over(rest: Rest, condition: dict[str, str]) -> None:
    id_ = rest.start()
    refused = rest("POST", f"/operations/{id_}:cancel", headers=condition)
    assert (refused.status_code, refused.json()["code"]) == (412, 9)
    assert rest.get(f"/operations/{id_}").json()["done"] is False
    waiting = rest("POST", f"/v1/operations/{id_}:wait", headers=condition)
    assert waiting.status_code == 412
    assert rest("POST", f"/operations/{id_}:cancel", headers={"if-match": "*"}).ok


@pytest.mark.parametrize("query", ["", "?parent=x"], ids=["one", "many"])
def test_a_condition_on_a_read_is_not_passed_over(rest: Rest, query: str) -> None:
    id_ = rest.start()
    path = "/v1/operationRecords" + (query or f"/{id_}")
    assert rest.get(path, if_match="*").ok
    assert rest.get(path, if_match='"1"').ok is not bool(query)
    refused = rest.get(path, if_match='"77"')
    (info,) = refused.json()["error"]["details"]
    assert (refused.status_code, info["reason"]) == (412, "CONDITION_NOT_MET")
    watching = rest.get(f"/v1/operationRecords/{id_}:watch", if_match='"1"')
    assert watching.status_code == 412


@pytest.mark.parametrize(
    "header",
    [{"x-server-timeout": "soon"}, {"last-event-id": "x"}],
    ids=lambda each: next(iter(each)),
)
def test_a_header_that_cannot_be_read_is_named(rest: Rest, header: dict[str, str]) -> None:
    path = f"/v1/operationRecords/{rest.start()}:watch"
    refused = rest("GET", path, headers={"accept": "text/event-stream", **header})
    assert refused.status_code == 400
    (name,) = header
    assert name in refused.json()["error"]["message"].lower()


def test_a_read_waits_for_the_end_when_the_client_prefers(rest: Rest, client: Client) -> None:
    id_ = rest.start()
    threading.Timer(0.3, lambda: client.cancel(id_)).start()
    answer = rest.get(f"/operations/{id_}", prefer="wait=50")
    assert answer.json()["done"] is True
    assert answer.headers["preference-applied"] == "wait=50"
    longer = rest.get(f"/operations/{id_}", prefer="wait=3600")
    assert longer.headers["preference-applied"] == "wait=50"  # --max-wait
    still = rest.start()
    assert rest.get(f"/v1/operations/{still}", prefer="wait=1").json()["done"] is False


def test_a_request_id_is_given_back(rest: Rest) -> None:
    assert rest.get("/operations/x", x_request_id="mine").headers["x-request-id"] == "mine"
    assert rest.get("/endpoints").headers["x-request-id"]


def test_a_client_that_takes_gzip_gets_it(rest: Rest) -> None:
    id_ = rest.start(metadata={"@type": "example.com/a.B", "value": "A" * 4_000})
    plain = rest.get(f"/operations/{id_}", accept_encoding="identity")
    assert "content-encoding" not in plain.headers
    zipped = rest.get(f"/operations/{id_}", accept_encoding="gzip")
    assert zipped.headers["content-encoding"] == "gzip"
    assert zipped.headers["vary"] == "accept-encoding"
    assert zipped.headers["etag"] == 'W/"1"'
    assert zipped.json() == plain.json()
    known = rest.get(f"/operations/{id_}", accept_encoding="gzip", if_none_match='W/"1"')
    assert (known.status_code, known.headers["etag"]) == (304, 'W/"1"')
    short = rest.get(f"/operations/{rest.start()}")
    assert {each.headers["vary"] for each in (plain, known, short)} == {"accept-encoding"}


def test_head_has_the_headers_of_get_and_changes_nothing(rest: Rest) -> None:
    id_ = rest.start()
    head = rest("HEAD", f"/operations/{id_}", headers={"accept-encoding": "identity"})
    got = rest.get(f"/operations/{id_}", accept_encoding="identity")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"]
    assert rest("HEAD", f"/operations/{id_}:cancel").status_code == 405
    assert rest.get(f"/operations/{id_}").json()["done"] is False


def test_options_tell_what_a_path_takes(rest: Rest) -> None:
    answer = rest("OPTIONS", "/operations/x")
    assert (answer.status_code, answer.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    refused = rest("PUT", "/v1/operations/x")
    assert (refused.status_code, refused.headers["allow"]) == (405, "DELETE, GET, HEAD, OPTIONS")
    assert rest("OPTIONS", "/nothing").status_code == 404


def test_options_of_the_server_tell_every_method(rest: Rest) -> None:
    with closing(HTTPConnection(rest.url.removeprefix("http://"))) as connection:
        connection.request("OPTIONS", "*")
        answer = connection.getresponse()
        assert (answer.status, answer.headers["allow"]) == (204, "DELETE, GET, HEAD, OPTIONS, POST")


def test_metrics_are_not_told_under_a_name_that_others_made_up(rest: Rest) -> None:
    assert rest.get("/metrics").status_code == 200
    assert rest.get("/metrics", host="evil.example").status_code == 403


def test_a_deadline_is_kept(rest: Rest) -> None:
    id_ = rest.start()
    answer = rest.get(f"/v1/operationRecords/{id_}:wait", x_server_timeout="0.5")
    assert (answer.status_code, answer.json()["operation"]["done"]) == (200, False)


def test_a_page_of_another_site_changes_nothing(rest: Rest) -> None:
    id_ = rest.start()
    answer = rest.get(f"/operations/{id_}:cancel", sec_fetch_site="cross-site")
    assert (answer.status_code, answer.json()["code"]) == (403, 7)
    rebound = rest.get(f"/operations/{id_}:cancel", host="evil.example")
    assert rebound.status_code == 403
    assert rest.get(f"/operations/{id_}").json()["done"] is False


def test_probes_need_no_credentials(rest: Rest) -> None:
    assert rest.get("/livez").json() == {"alive": True}
    assert rest.get("/readyz").json() == {"ready": True, "reasons": []}


def test_the_openapi_document_is_served(rest: Rest) -> None:
    plain = rest.get("/openapi.json", accept_encoding="identity")
    assert plain.headers["content-type"] == "application/json"
    assert plain.json() == json.loads(DOCUMENT.read_text())
    zipped = rest.get("/openapi.json", accept_encoding="gzip")
    assert zipped.headers["content-encoding"] == "gzip"
    assert zipped.json() == plain.json()
    for answer in (plain, zipped):
        same = rest.get("/openapi.json", if_none_match=answer.headers["etag"])
        assert (same.status_code, same.content) == (304, b"")
    assert rest.get("/openapi.json", if_none_match='"0"').status_code == 200


@pytest.mark.parametrize("path", json.loads(DOCUMENT.read_text())["paths"])
def test_what_the_openapi_document_names_is_served(rest: Rest, path: str) -> None:
    answer = rest("OPTIONS", re.sub(r"\{\w+\}", "x", path))
    served = {*answer.headers["allow"].lower().split(", ")} - {"head", "options"}
    assert served == json.loads(DOCUMENT.read_text())["paths"][path].keys()


def test_a_verb_is_no_part_of_an_id(rest: Rest) -> None:
    refused = rest("DELETE", "/v1/operationRecords/x:wait")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


def test_a_parent_may_have_encoded_slashes(rest: Rest) -> None:
    id_ = rest.start(parent="folders/encoded")
    for path in ("folders/encoded", "folders%2Fencoded"):
        name = f"folders/encoded/operations/{id_}"
        assert rest.get(f"/v1/{path}/operations/{id_}").json()["name"] == name
        assert rest.get(f"/v1/{path}/operations").json()["operations"][0]["name"] == name
