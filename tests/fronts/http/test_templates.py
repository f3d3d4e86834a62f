"""Paths of `google.api.http` annotations, and which route a path has."""

from __future__ import annotations

import pytest

from opservice.fronts.http.routes import Routes, routes_of
from opservice.fronts.http.templates import Template
from opservice.methods.services import FILES


@pytest.mark.parametrize(
    ("template", "path", "values"),
    [
        ("/operations/{operation_id}", "/operations/abc", {"operation_id": "abc"}),
        ("/operations/{operation_id}", "/operations/a%2Fb%3Ac", {"operation_id": "a/b:c"}),
        ("/operations/{operation_id}", "/operations/a/b", None),
        ("/operations/{operation_id}", "/operations/", None),
        ("/operations/{operation_id}:cancel", "/operations/abc:cancel", {"operation_id": "abc"}),
        ("/operations/{operation_id}:cancel", "/operations/abc", None),
        ("/v1/{name=operations/**}", "/v1/operations/a", {"name": "operations/a"}),
        ("/v1/{name=operations/**}", "/v1/operations", None),
        ("/v1/{name=**/operations/*}", "/v1/a/b/operations/c", {"name": "a/b/operations/c"}),
        ("/v1/{name=**}/operations", "/v1/a/b/operations", {"name": "a/b"}),
        ("/v1/{name=**}/operations", "/v1/a%2fb/%C3%A9/operations", {"name": "a/b/é"}),
        ("/v1/{name=**}/operations", "/v1/a%252Fb/operations", {"name": "a%2Fb"}),
        ("/a.b/{x}", "/aXb/c", None),
    ],
)
def test_a_template_matches(template: str, path: str, values: dict[str, str] | None) -> None:
    assert Template.of(template).match(path) == values


def test_a_value_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        Template.of("/operations/{id}").match("/operations/%FF")


ROUTES = Routes(
    route
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
    for route in routes_of(method, method.full_name.rpartition(".")[2])
)


@pytest.mark.parametrize(
    ("http_method", "path", "method"),
    [
        ("GET", "/operations/a", "Get"),
        ("GET", "/operations/a:cancel", "Cancel"),
        ("POST", "/operations/a:cancel", "Cancel"),
        ("GET", "/v1/operations", "ListOperations"),
        ("GET", "/v1/operations/a", "GetOperation"),
        ("GET", "/v1/operations/operations", "ListOperations"),
        ("DELETE", "/v1/operations/a", "DeleteOperation"),
        ("POST", "/v1/operations/a:cancel", "CancelOperation"),
        ("POST", "/v1/operations/a:wait", "WaitOperation"),
        ("GET", "/v1/projects/p/operations", "ListOperations"),
        ("GET", "/v1/projects/p/operations/a", "GetOperation"),
        ("DELETE", "/v1/projects/p/operations/a", "DeleteOperation"),
        ("POST", "/v1/projects/p/operations/a:cancel", "CancelOperation"),
        ("POST", "/v1/projects/p/operations/a:wait", "WaitOperation"),
        ("GET", "/v1/operationRecords", "List"),
        ("GET", "/v1/operationRecords/a", "Get"),
        ("DELETE", "/v1/operationRecords/a", "Delete"),
        ("GET", "/v1/operationRecords/a:wait", "Wait"),
        ("GET", "/v1/operationRecords/a:watch", "Watch"),
        ("POST", "/v1/producer/operations:start", "Start"),
        ("POST", "/v1/producer/operations/a:renew", "Renew"),
        ("POST", "/v1/producer/operations/a:complete", "Complete"),
        ("POST", "/v1/producer/operations/a:fail", "Fail"),
        ("GET", "/endpoints", "List"),
        ("GET", "/endpoints/iam", "Get"),
        ("PUT", "/operations/a", None),
        ("DELETE", "/v1/operationRecords/a:wait", None),
        ("GET", "/v1/operations/a:cancel", None),
        ("GET", "/v1/producer/operations/a:renew", None),
        ("GET", "/v2/operations", None),
    ],
)
def test_a_path_leads_to_its_method(http_method: str, path: str, method: str | None) -> None:
    found = ROUTES.find(http_method, path)
    assert (found and found[0].method) == method


def test_a_path_tells_its_methods() -> None:
    assert ROUTES.methods_at("/v1/operations/a") == ["DELETE", "GET"]
    assert ROUTES.methods_at("/operations/%FF:cancel") == ["GET", "POST"]
    assert ROUTES.methods_at("/v1/operationRecords/a:watch") == ["GET"]
    assert ROUTES.methods_at("/nothing") == []
