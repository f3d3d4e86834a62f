"""The routes of the API as OpenAPI's operations: their parameters, bodies and answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

from openapi_answers import ANSWERS, HEADERS, errors_of
from openapi_comments import to_camel
from openapi_limits import OPERATION_OF_NAME, PARENT_OF_NAME
from openapi_schemas import Schema, Schemas
from opservice.fronts.http.routes import Route, routes_of
from opservice.methods.method_policy import METHOD_POLICIES, Access, method_names
from opservice.methods.services import FILES

READS = {
    "yandex.cloud.operation.OperationService.Get",
    "opservice.v1.OperationRecordService.Get",
    "google.longrunning.Operations.GetOperation",
}
"""They may wait for the end: `Prefer: wait=SECONDS`."""
_CONDITIONAL = {*READS, "opservice.v1.OperationRecordService.Wait"}
_TAGGED = {*_CONDITIONAL, "google.longrunning.Operations.WaitOperation"}
"""Their answers have an ETag."""

_VARIABLES: Mapping[str, str] = {
    "{name=operations}": "operations",
    "{name=operations/**}": "operations/{operation}",
    "{name=**/operations/*}": "{parent}/operations/{operation}",
    "{name=**}": "{parent}",
}
"""How the document writes what OpenAPI has no form for: a variable with slashes in it."""
_VARIABLE = re.compile(r"\{[^}]+\}")
_OPERATION = {
    "name": "operation",
    "description": "The id of the operation: the last part of its name.",
    "schema": {"type": "string", **OPERATION_OF_NAME},
}
_PARENT = {
    "name": "parent",
    "description": (
        "The parent of the operation: one or several segments, such as `folders/b1g`. OpenAPI knows no parameters"
        " with slashes. The server takes each slash as it is, and as `%2F`."
    ),
    "schema": {"type": "string", **PARENT_OF_NAME},
}
_ALL_PARENTS = " `-` lists the operations of all parents."
_BY_GET = (
    "This is the published way. GET should change nothing, and what is between client and server may repeat it."
    " Prefer POST."
)
_NOTES: Mapping[str, str] = {
    "google.longrunning.ListOperationsRequest.filter": (
        "A filter as that of `OperationRecordService_List`. Empty matches everything."
    ),
    "google.longrunning.ListOperationsRequest.page_size": (
        "The most operations to return. 0 means 100, and more than 1000 means 1000."
    ),
    "google.longrunning.ListOperationsRequest.page_token": (
        "`nextPageToken` of the previous page. Empty for the first page."
    ),
    "google.longrunning.ListOperationsRequest.return_partial_success": (
        "It changes nothing: a list is whole, or fails."
    ),
}
"""What this server does with fields of Google's that say something else, or nothing."""
_EXAMPLES: Mapping[str, Any] = {
    "opservice.v1.StartRequest": {
        "description": "Build image",
        "metadata": {"@type": "type.googleapis.com/acme.v1.BuildMetadata", "value": "CgNhYmM="},
        "parent": "folders/b1g",
        "createdBy": "alice",
        "lease": "60s",
        "leaseToken": "b6f1c0a94d7e4f0f",
    },
    "opservice.v1.RenewRequest": {
        "leaseToken": "b6f1c0a94d7e4f0f",
        "progress": {"done": "3", "total": "8", "unit": "layers"},
    },
    "opservice.v1.CompleteRequest": {
        "leaseToken": "b6f1c0a94d7e4f0f",
        "response": {"@type": "type.googleapis.com/acme.v1.Image", "value": "CgNhYmM="},
    },
    "opservice.v1.FailRequest": {
        "leaseToken": "b6f1c0a94d7e4f0f",
        "error": {"code": 9, "message": "The base image is gone"},
    },
}
_STARTED = "The operation that was started."
_FOLLOWING = (
    "OperationService_Get",
    "OperationService_CancelByPost",
    "OperationRecordService_Get",
    "OperationRecordService_Delete",
    "ProducerService_Renew",
    "ProducerService_Complete",
    "ProducerService_Fail",
)
"""What a client may do next, with the id in the answer to Start."""


@dataclass(frozen=True, slots=True)
class Served:
    """A route of a method."""

    route: Route
    method: MethodDescriptor
    is_first: bool
    """Whether it is the method's first route, the published one."""

    @property
    def path(self) -> str:
        """As OpenAPI writes it. Raises KeyError for a variable that it has no form for."""
        return _VARIABLE.sub(lambda found: _path_of(found[0]), self.route.template.text)

    @property
    def operation_id(self) -> str:
        """It says what is called, and never changes."""
        own = f"{self.method.containing_service.name}_{self.method.name}"
        if self.is_first:
            return own
        return own + (
            "InParent" if "{parent}" in self.path else f"By{self.route.http_method.title()}"
        )


def _path_of(variable: str) -> str:
    if "=" in variable:
        return _VARIABLES[variable]
    return f"{{{to_camel(variable[1:-1])}}}"


def served_routes() -> Iterator[Served]:
    """All that the server makes of its methods, by the same code."""
    for file in FILES:
        for service in file.services_by_name.values():
            for name in method_names(service.full_name):
                method = service.methods_by_name[name]
                if not method.client_streaming:
                    routes = routes_of(method, f"/{service.full_name}/{name}")
                    for at, route in enumerate(routes):
                        yield Served(route, method, is_first=at == 0)


def paths_of(served: Iterable[Served], schemas: Schemas) -> dict[str, dict[str, Any]]:
    """The operations, by path and HTTP method."""
    paths: dict[str, dict[str, Any]] = {}
    for each in served:
        paths.setdefault(each.path, {})[each.route.http_method.lower()] = _operation(each, schemas)
    return paths


def _operation(served: Served, schemas: Schemas) -> dict[str, Any]:
    method, route = served.method, served.route
    description = schemas.comment(method.full_name)
    summary = re.split(r"(?<=[.:;]) ", description.partition("\n")[0])[0].rstrip(".:;")
    policy = METHOD_POLICIES[route.method]
    if route.http_method == "GET" and policy.writes:
        description += f"\n\n{_BY_GET}"
    operation: dict[str, Any] = {
        "operationId": served.operation_id,
        "tags": [method.containing_service.name],
        "summary": summary,
        "description": description,
        "parameters": [*_in_path(served, schemas), *_in_query(served, schemas), *_headers(served)],
    }
    if route.takes_body:
        operation["requestBody"] = _body(served, schemas)
    operation["responses"] = {
        **_successes(served, schemas),
        **errors_of(
            route.is_yandex,
            takes_body=route.takes_body,
            has_variable="{" in served.path,
            is_continued="resume_token" in method.input_type.fields_by_name,
        ),
    }
    if policy.requires is Access.OPEN:
        operation["security"] = []
        del operation["responses"]["401"]
    return operation


def _in_path(served: Served, schemas: Schemas) -> Iterator[dict[str, Any]]:
    fields = served.method.input_type.fields_by_name
    for name in re.findall(r"\{(\w+)\}", served.path):
        found = {each["name"]: each for each in (_OPERATION, _PARENT)}.get(name)
        if found is None:
            field = next(each for each in fields.values() if each.json_name == name)
            found = _parameter(field, schemas)
        elif name == "parent" and served.method.name == "ListOperations":
            found = found | {"description": f"{found['description']}{_ALL_PARENTS}"}
        yield {"in": "path", "required": True, **found}


def _in_query(served: Served, schemas: Schemas) -> Iterator[dict[str, Any]]:
    if served.route.takes_body:
        return
    kind = served.method.input_type
    for field in kind.fields:
        if field.name not in served.route.template.fields:
            found = {"in": "query", **_parameter(field, schemas)}
            if schemas.requires(kind, field):
                found["required"] = True
            if field.is_repeated:
                found |= {"style": "form", "explode": True}
            yield found


def _parameter(field: FieldDescriptor, schemas: Schemas) -> dict[str, Any]:
    found: dict[str, Any] = {"name": field.json_name}
    if description := _NOTES.get(field.full_name) or schemas.comment(field.full_name):
        found["description"] = description
    if field.GetOptions().deprecated:
        found["deprecated"] = True
    schema = schemas.parameter(field)
    schema.pop("deprecated", None)
    return {**found, "schema": schema}


def _headers(served: Served) -> Iterator[Schema]:
    name = served.method.full_name
    wanted = {
        "IfNoneMatch": name in _CONDITIONAL,
        "Prefer": name in READS,
        "LastEventId": served.method.server_streaming,
        "RequestId": True,
        "ServerTimeout": True,
    }
    for each, is_wanted in wanted.items():
        if is_wanted:
            yield {"$ref": f"#/components/parameters/{each}"}


def _body(served: Served, schemas: Schemas) -> dict[str, Any]:
    kind = served.method.input_type
    content: dict[str, Any] = {"schema": schemas.request(kind, served.route.template.fields)}
    if kind.full_name in _EXAMPLES:
        content["example"] = _EXAMPLES[kind.full_name]
    required = any(schemas.requires(kind, each) for each in kind.fields)
    return {"required": required, "content": {"application/json": content}}


def _successes(served: Served, schemas: Schemas) -> dict[str, Any]:
    method = served.method
    name = method.full_name
    schema = schemas.response(method.output_type)
    if method.server_streaming:
        return {"200": _stream(schema), "204": ANSWERS["204"]}
    headers = ["RequestId"]
    if name in _TAGGED:
        headers += ["ETag", "RetryAfter"]
    if name in READS:
        headers.append("PreferenceApplied")
    described = schemas.comment(method.output_type.full_name).partition("\n")[0]
    success: dict[str, Any] = {
        "description": described or "It is done.",
        "headers": {HEADERS[each]: {"$ref": f"#/components/headers/{each}"} for each in headers},
        "content": {"application/json": {"schema": schema}},
    }
    if name == "opservice.v1.ProducerService.Start":
        success["links"] = {
            each: {
                "operationId": each,
                "parameters": {"operationId": "$response.body#/operation/id"},
                "description": _STARTED,
            }
            for each in _FOLLOWING
        }
    found = {"200": success}
    if name in _CONDITIONAL and served.route.http_method == "GET":
        found["304"] = {"$ref": "#/components/responses/NotModified"}
    return found


def _stream(schema: Schema) -> dict[str, Any]:
    """OpenAPI 3.1 has no form for the parts of a stream. So its body is text, and x-itemSchema says of what."""
    events = (
        "Server-sent events. The `data` of each is the JSON of a message, and its `id` is what a client that connects again"
        " sends as `Last-Event-ID`. An event `failure`, whose `data` is an error, ends a stream early."
    )
    lines = 'On each line the JSON of a message. A last line `{"error": …}` ends a stream early.'
    return {
        "description": "A stream: server-sent events for `Accept: text/event-stream`, else lines of JSON.",
        "headers": {HEADERS["RequestId"]: {"$ref": "#/components/headers/RequestId"}},
        "content": {
            kind: {"schema": {"type": "string", "description": text}, "x-itemSchema": schema}
            for kind, text in (("application/x-ndjson", lines), ("text/event-stream", events))
        },
    }
