"""`/openapi.json`: the checked-in document, read once. scripts/openapi_doc.py makes it of what is served."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from opservice.fronts.http.conditions import matching
from opservice.fronts.http.exchange import accepts_gzip, gzipped

PATH = "/openapi.json"


def openapi_answer() -> Callable[[Request], Awaitable[Response]]:
    """Serves the document to everybody. It is read, and compressed, here: not in a request."""
    text = files(__package__).joinpath("openapi.json").read_bytes()
    # On one line it is a third shorter.
    plain = json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")).encode()
    zipped = gzipped(plain)
    tag = f'"{hashlib.sha256(plain).hexdigest()[:16]}"'

    async def answer(request: Request) -> Response:
        has_gzip = accepts_gzip(request.headers.get("accept-encoding"))
        headers = {
            "cache-control": "no-cache",  # whoever keeps it asks each time whether it is still so
            "etag": f"W/{tag}" if has_gzip else tag,
            "vary": "accept-encoding",
        }
        held = matching(request.headers.get("if-none-match"), tag)
        if held is not None:
            return Response(status_code=304, headers={**headers, "etag": held})
        if has_gzip:
            headers["content-encoding"] = "gzip"
        return Response(zipped if has_gzip else plain, 200, headers, "application/json")

    return answer
