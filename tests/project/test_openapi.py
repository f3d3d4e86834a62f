"""The OpenAPI document is valid and current, and names what is served, all of it."""

from __future__ import annotations

import json
from typing import Any

from openapi_spec_validator import OpenAPIV31SpecValidator

import openapi_doc
from openapi_limits import LIMITS, REQUIRED
from openapi_operations import served_routes
from opservice import __version__
from opservice.methods.services import FILES

DOCUMENT: dict[str, Any] = json.loads(openapi_doc.DOCUMENT.read_text())
OPERATIONS = [
    (method.upper(), path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


def test_the_document_is_current() -> None:
    assert openapi_doc.DOCUMENT.read_text() == openapi_doc.document(), "run scripts/openapi_doc.py"
    assert DOCUMENT["info"]["version"] == __version__


def test_the_document_is_valid() -> None:
    assert list(OpenAPIV31SpecValidator(DOCUMENT).iter_errors()) == []


def test_each_operation_has_an_id_of_its_own_and_is_described() -> None:
    ids = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(ids)) == len(ids)
    assert [each["operationId"] for _, _, each in OPERATIONS if not each["summary"]] == []


def test_every_route_is_in_the_document_once() -> None:
    routes = list(served_routes())
    named = {(each.route.http_method, each.path) for each in routes}
    beside = {("GET", path) for path in ("/livez", "/readyz", "/metrics", "/openapi.json")}
    assert len(named) == len(routes)
    assert {(method, path) for method, path, _ in OPERATIONS} == named | beside


def test_limits_are_of_fields_that_there_are() -> None:
    pool = FILES[0].pool
    for name in LIMITS:
        assert pool.FindFieldByName(name).full_name == name
    for message, fields in REQUIRED.items():
        assert {*fields} <= {*pool.FindMessageTypeByName(message).fields_by_name}
