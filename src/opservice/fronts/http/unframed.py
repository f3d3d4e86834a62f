"""Responses without a length to HTTP/1.0, which ends them by closing the connection, and knows no chunks."""

from __future__ import annotations

import sys
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def without_chunks(cycle: RequestResponseCycle, app: Any) -> Any:
    """The ASGI application, for a request by HTTP/1.0 (RFC 9112, 6.1). uvicorn sends chunks to all."""

    async def served(scope: Any, receive: Any, send: Any) -> None:
        is_unframed = False

        async def send_unframed(message: Any) -> None:
            nonlocal is_unframed
            if message["type"] == "http.response.start":
                is_unframed = all(name != b"content-length" for name, _ in message["headers"])
                if is_unframed:
                    cycle.chunked_encoding, cycle.expected_content_length = False, sys.maxsize
            elif is_unframed and not message.get("more_body", False):
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_unframed)

    return served
