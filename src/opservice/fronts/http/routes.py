"""The REST routes: those of the methods' `google.api.http` annotations, and the few that these lack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

from google.api import annotations_pb2
from google.api.http_pb2 import HttpRule
from google.protobuf.descriptor import MethodDescriptor

from opservice.fronts.http.templates import Template

_YANDEX = "yandex.cloud."
_ADDED: Mapping[str, Sequence[HttpRule]] = {
    # The published annotation says GET, and Yandex's own guide POST.
    "yandex.cloud.operation.OperationService.Cancel": (
        HttpRule(post="/operations/{operation_id}:cancel", body="*"),
    ),
    # Google's clients know operations by names under parents too. Its annotations have only the others.
    "google.longrunning.Operations.ListOperations": (HttpRule(get="/v1/{name=**}/operations"),),
    "google.longrunning.Operations.GetOperation": (HttpRule(get="/v1/{name=**/operations/*}"),),
    "google.longrunning.Operations.DeleteOperation": (
        HttpRule(delete="/v1/{name=**/operations/*}"),
    ),
    "google.longrunning.Operations.CancelOperation": (
        HttpRule(post="/v1/{name=**/operations/*}:cancel", body="*"),
    ),
    "google.longrunning.Operations.WaitOperation": (
        HttpRule(post="/v1/{name=operations/**}:wait", body="*"),
        HttpRule(post="/v1/{name=**/operations/*}:wait", body="*"),
    ),
}
_HTTP_METHODS = ("get", "post", "delete", "put", "patch")


@dataclass(frozen=True, slots=True)
class Route:
    """One way to call a method by HTTP."""

    http_method: str
    template: Template
    takes_body: bool
    """Whether the request message is the body, but for what the path tells. Else it is in the query."""
    method: str
    """The method's path, as gRPC names it."""

    @property
    def is_yandex(self) -> bool:
        """Whether its callers expect Yandex's form of errors, not Google's."""
        return is_yandex_path(self.template.text)


def is_yandex_path(path: str) -> bool:
    """Whether what is there is told in Yandex's form. All else is under `/v1`, or not there."""
    return path.startswith(("/operations", "/endpoints"))


def routes_of(descriptor: MethodDescriptor, path: str) -> list[Route]:
    """The routes of a method, whose path gRPC names so. Raises ValueError for a rule that is not served."""
    rules: list[HttpRule] = []
    options = descriptor.GetOptions()
    extension = cast("Any", annotations_pb2.http)
    if options.HasExtension(extension):
        annotated: HttpRule = options.Extensions[extension]
        rules += [annotated, *annotated.additional_bindings]
    rules += _ADDED.get(descriptor.full_name, ())
    return [_route(rule, path) for rule in rules]


def _route(rule: HttpRule, path: str) -> Route:
    verb = rule.WhichOneof("pattern")
    if verb not in _HTTP_METHODS or rule.body not in {"", "*"} or rule.response_body:
        raise ValueError(f"{path}: the rule {rule} is not supported")
    template = Template.of(getattr(rule, verb))
    return Route(verb.upper(), template, rule.body == "*", path)


class Routes:
    """Finds the route of a request.

    What a path names does not depend on the HTTP method: `DELETE {id}:wait` deletes nothing, because with GET
    that is a verb, and not an id.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        # `{id}:cancel` before `{id}`, which would match it too; a collection before a name that ends like it.
        ordered = sorted(routes, key=_rank)
        self.all: Sequence[Route] = ordered
        self._ranks = [list(same) for _, same in groupby(ordered, _rank)]

    def find(self, http_method: str, raw_path: str) -> tuple[Route, dict[str, str]] | None:
        """The route, and the values of the path's variables.

        Raises ValueError when one is not UTF-8, percent-encoded.
        """
        route = self.at(http_method, raw_path)
        if route is None:
            return None
        values = route.template.match(raw_path)
        assert values is not None
        return route, values

    def at(self, http_method: str, raw_path: str) -> Route | None:
        """The route, whatever its variables hold."""
        return next(
            (route for route in self._at(raw_path) if route.http_method == http_method), None
        )

    def methods_at(self, raw_path: str) -> list[str]:
        """The HTTP methods that a path has, in alphabetical order."""
        return sorted({route.http_method for route in self._at(raw_path)})

    def _at(self, raw_path: str) -> Sequence[Route]:
        """The routes that a path has, by all HTTP methods."""
        for same in self._ranks:
            if same[0].template.verb and ":" not in raw_path:
                continue  # nearly always
            found = [route for route in same if route.template.matches(raw_path)]
            if found:
                return found
        return ()


def _rank(route: Route) -> tuple[bool, bool]:
    """Whether it has no verb, and whether a variable ends its path."""
    return not route.template.verb, route.template.text.endswith("}")
