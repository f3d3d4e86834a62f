"""What requests ask for in headers, and whose pages may call."""

from __future__ import annotations

import pytest

from opservice.fronts.http import conditions
from opservice.fronts.http.exchange import accepts_gzip
from opservice.fronts.http.origins import Origins


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, 0),
        ("wait=30", 30),
        ("respond-async, WAIT=5", 5),
        ('wait="7"; foo', 7),
        ("wait=-1", 0),
        ("wait=1, wait=2", 1),
        ("wait=x, wait=2", 0),
        ("wait, wait=2", 0),
        ('foo="a, wait=1"', 0),
        (r'foo="\", wait=1", wait=2', 2),
        ("foo; wait=1", 0),
        ('wait="7', 0),
        (r'"\"' * 10_000 + ", wait=1", 0),
        ("wait=\u0667", 0),
        ("wait=1.5", 0),
        ("await=3", 0),
        ("wait=1e3", 0),
        ("wait=99999999999", 0),
    ],
)
def test_a_preferred_wait(prefer: str | None, seconds: int) -> None:
    assert conditions.preferred_wait(prefer) == seconds


@pytest.mark.parametrize(
    ("header", "held"),
    [
        (None, None),
        ('"3"', '"3"'),
        ('W/"3"', 'W/"3"'),
        ('"1", W/"3"', 'W/"3"'),
        ("*", '"3"'),
        ('"33"', None),
        ("3", None),
    ],
)
def test_a_version_that_the_client_has(header: str | None, held: str | None) -> None:
    assert conditions.matching(header, '"3"') == held


@pytest.mark.parametrize(
    ("header", "takes"),
    [
        (None, False),
        ("gzip", True),
        ("br, gzip;q=0.5", True),
        ("gzip;q=0", False),
        ("*", True),
        ("*;q=0", False),
        ("gzip;q=x", False),
        ("identity", False),
        ("", False),
    ],
)
def test_gzip_for_those_who_take_it(header: str | None, takes: bool) -> None:
    assert accepts_gzip(header) is takes


@pytest.mark.parametrize(
    ("accept", "events"),
    [
        (None, False),
        ("*/*", False),
        ("text/*", False),
        ("text/event-stream", True),
        ("TEXT/Event-Stream; charset=utf-8", True),
        ("application/json, text/event-stream", True),
        ("application/json, text/event-stream;q=0.5", False),
        ("application/json;q=0.5, text/event-stream;q=0.9", True),
        ("text/event-stream;q=0", False),
        ("text/event-streams", False),
        ("application/x-text/event-stream", False),
    ],
)
def test_events_for_those_who_ask_for_them(accept: str | None, events: bool) -> None:
    assert conditions.wants_events(accept) is events


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("1.5", 1.5),
        ("59.97899293899536", 59.97899293899536),  # what is left of a minute, as Python writes it
        (" 2 ", 2.0),
        (None, None),
        ("9" * 9, 86_400),
    ],
)
def test_a_deadline(given: str | None, seconds: float | None) -> None:
    assert conditions.server_timeout(given) == seconds


@pytest.mark.parametrize("given", ["x", "", "-1", "1s", "nan", "inf", "1e3", "5, 6"])
def test_a_deadline_that_is_no_number_of_seconds_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="X-Server-Timeout"):
        conditions.server_timeout(given)


@pytest.mark.parametrize(
    ("header", "etag", "met"),
    [
        (None, '"5"', True),
        ('"5"', '"5"', True),
        ('"4", "5"', '"5"', True),
        ("*", '"5"', True),
        ("*", None, True),
        ('"4"', '"5"', False),
        ('W/"5"', '"5"', False),
        ("5", '"5"', False),
        ("", '"5"', False),
        ('"5"', None, False),
    ],
)
def test_a_version_that_the_client_asks_for(
    header: str | None, etag: str | None, met: bool
) -> None:
    assert conditions.is_met(header, etag) is met


@pytest.mark.parametrize(
    ("kind", "json"),
    [
        ("application/json", True),
        ("Application/JSON; charset=UTF-8", True),
        ("application/json; charset=utf8", True),
        ("application/json; charset=latin-1", False),
        ("text/plain", False),
        (None, False),
    ],
)
def test_a_body_is_said_to_be_json(kind: str | None, json: bool) -> None:
    assert conditions.is_json(kind) is json


HOST = {"host": "127.0.0.1:50080"}


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({}, False),
        ({"sec-fetch-site": "same-origin"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"sec-fetch-site": "cross-site"}, True),
        ({"sec-fetch-site": "same-site"}, True),
        ({"origin": "http://127.0.0.1:50080"}, False),
        ({"origin": "http://127.0.0.1:8080"}, True),
        ({"origin": "https://evil.example"}, True),
        ({"origin": "null"}, True),
        ({"origin": "null", "host": ""}, True),
        ({"origin": "http://["}, True),
        ({"origin": "http://\u2100"}, True),
        ({"origin": "https://ops.example", "sec-fetch-site": "cross-site"}, False),
        ({"origin": "https://ops.example.evil", "sec-fetch-site": "cross-site"}, True),
    ],
    ids=str,
)
def test_a_page_of_another_site_is_refused(headers: dict[str, str], refused: bool) -> None:
    origins = Origins(["https://ops.example"], only_local_names=False)
    assert origins.refuses_page((HOST | headers).get) is refused


@pytest.mark.parametrize(
    ("host", "refused"),
    [
        ("127.0.0.1:50080", False),
        ("localhost:1", False),
        ("[::1]:1", False),
        ("ops.example", False),
        ("evil.example", True),
        ("127.0.0.1.evil.example", True),
        ("[", True),
        ("[::1", True),
        ("localhost, evil.example", True),
        ("", True),
        (None, True),
    ],
)
def test_a_made_up_name_is_refused_where_nobody_is_authenticated(
    host: str | None, refused: bool
) -> None:
    headers = {} if host is None else {"host": host}
    guarded = Origins(["https://ops.example"], only_local_names=True)
    assert guarded.refuses_host(headers.get) is refused
    assert not Origins([], only_local_names=False).refuses_host(headers.get)
