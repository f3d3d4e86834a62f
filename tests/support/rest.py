"""A client of REST, and of its server-sent events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import requests


class Rest:
    """REST on one server. Paths as in its API; answers as `requests` has them."""

    def __init__(self, session: requests.Session, url: str) -> None:
        self.url = url
        self._session = session

    def __call__(self, method: str, path: str, **options: Any) -> requests.Response:
        return self._session.request(method, self.url + path, timeout=60, **options)

    def get(self, path: str, **headers: str) -> requests.Response:
        return self("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    def start(self, **fields: Any) -> str:
        answer = self("POST", "/v1/producer/operations:start", json=fields)
        assert answer.status_code == 200, answer.text
        id_: str = answer.json()["operation"]["id"]
        return id_


def events(answer: requests.Response) -> Iterator[dict[str, str]]:
    """The server-sent events of a response, each with its fields."""
    event: dict[str, str] = {}
    for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
        name, _, value = line.partition(": ")
        if line and name:
            event[name] = value
        elif event:
            yield event
            event = {}
