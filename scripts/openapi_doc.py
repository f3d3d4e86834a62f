"""Writes the OpenAPI document that the server has at /openapi.json. With --check it only says whether it is current.

It is made of the descriptors, the comments in proto/, the routes of the server, and the limits of requests.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from openapi_answers import ERROR_SCHEMAS, HEADER_COMPONENTS, PARAMETERS, error_components
from openapi_comments import ROOT, comments_of
from openapi_operations import paths_of, served_routes
from openapi_schemas import Schemas
from opservice import __version__
from opservice.methods.services import FILES

DOCUMENT = ROOT / "src/opservice/fronts/http/openapi.json"

_DESCRIPTION = """\
Long-running operations: start, follow, end and list them. The same methods are served by gRPC.

JSON is [protobuf's](https://protobuf.dev/programming-guides/json/). Schemas show its canonical form: names in camelCase, 64-bit
numbers as strings, enums by name. Requests may use its other forms too: the fields' own names, numbers as strings, enums by number,
`null` for what is not set. A response may have fields that this document does not know yet.

`HEAD` does what `GET` does, where that changes nothing. An answer of 1 KiB and more is compressed for clients that accept gzip.
"""
_KINDS = {
    "object": ["application/json"],
    "string": ["text/plain", "application/openmetrics-text"],
}


def document() -> str:
    """The document, as it is checked in."""
    return json.dumps(_document(), indent=1, ensure_ascii=False) + "\n"


def _document() -> dict[str, Any]:
    schemas = Schemas(comments_of(file.name for file in FILES))
    for name, schema in ERROR_SCHEMAS.items():
        schemas.refer(name, schema)
    paths = paths_of(served_routes(), schemas) | _beside_the_api()
    services = [service for file in FILES for service in file.services_by_name.values()]
    tags = [
        {"name": each.name, "description": f"`{each.full_name}`. {schemas.comment(each.full_name)}"}
        for each in services
    ]
    server = {"name": "Server", "description": "The server itself. No credentials are needed."}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "opservice REST API",  # generators name packages by it, and opservice_client is ours
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "This server."}],
        "security": [{"bearerToken": []}, {"clientCertificate": []}],
        "tags": [*tags, server],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.made.items())),
            "responses": error_components(),
            "parameters": PARAMETERS,
            "headers": HEADER_COMPONENTS,
            "securitySchemes": {
                "bearerToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of the server's, or a JWT. A server without authentication ignores it.",
                },
                "clientCertificate": {
                    "type": "mutualTLS",
                    "description": "A certificate of an authority that the server was given.",
                },
            },
        },
    }


def _beside_the_api() -> dict[str, Any]:
    alive = _object(alive={"type": "boolean", "const": True})
    reasons = {"type": "array", "items": {"type": "string"}}
    error, text = _object(error={"type": "object"}), {"type": "string"}
    ready = _object(ready={"type": "boolean"}, reasons=reasons)
    return {
        "/livez": _get(
            "livez", "Tells that the server's event loop turns", {"200": ("It does.", alive)}
        ),
        "/readyz": _get(
            "readyz",
            "Tells whether the server can serve",
            {"200": ("It can.", ready), "503": ("It cannot, for these reasons.", ready)},
        ),
        "/metrics": _get(
            "metrics",
            "The metrics of the server, for Prometheus",
            {
                "200": ("Served here unless `--metrics-listen` says otherwise.", text),
                "403": (
                    "Other machines can reach this address, and are to have no metrics.",
                    error,
                ),
                "404": ("They are served at an address of their own, or not at all.", error),
            },
        ),
        "/openapi.json": _get(
            "openapi", "This document", {"200": ("OpenAPI 3.1.", {"type": "object"})}
        ),
    }


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _get(name: str, summary: str, answers: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    responses = {
        code: {
            "description": description,
            "content": {kind: {"schema": schema} for kind in _KINDS[schema["type"]]},
        }
        for code, (description, schema) in answers.items()
    }
    return {
        "get": {
            "operationId": f"Server_{name}",
            "tags": ["Server"],
            "summary": summary,
            "security": [],
            "responses": responses,
        }
    }


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        DOCUMENT.write_text(document())
    elif not DOCUMENT.exists() or DOCUMENT.read_text() != document():
        sys.exit(f"{DOCUMENT.relative_to(ROOT)} is not current: run scripts/openapi_doc.py")
