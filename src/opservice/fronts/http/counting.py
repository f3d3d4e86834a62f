"""The metrics of requests by HTTP."""

from __future__ import annotations

from functools import partial

from opservice.common.metrics import HTTP_REQUESTS, HTTP_SECONDS, CallCounts, Counter

_METHODS = {"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"}


class RequestCounts:
    """Of all routes. What has no route is counted under one handler, and unknown methods under one name."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], CallCounts] = {}

    def ended(self, handler: str, method: str, status: int, seconds: float) -> None:
        """A request by an HTTP method, for the route with the path `handler`, was answered."""
        key = handler or "none", method if method in _METHODS else "other"
        counts = self._known.get(key)
        if counts is None:
            counts = CallCounts(HTTP_SECONDS.labels(*key), partial(_counter, *key))
            self._known[key] = counts
        counts.ended(status, seconds)


def _counter(handler: str, method: str, status: int) -> Counter:
    return HTTP_REQUESTS.labels(handler, method, str(status))
