"""The methods that are served, each with its name, messages and handler. Fronts make routes of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from opservice.methods.call import Call
from opservice.methods.method_policy import method_names

Handler: TypeAlias = "Callable[[Any, Call], Awaitable[Message] | AsyncIterator[Message]]"
"""Given a request and its call it returns the response, or yields each response of a stream. Or it raises.

For a stream of requests it is given an iterator of them.
"""


@dataclass(frozen=True, slots=True)
class Method:
    """A method as it is served. `descriptor` has its options, among them its HTTP routes."""

    service: str
    name: str
    request: type[Message]
    response: type[Message]
    handler: Handler
    descriptor: MethodDescriptor

    @property
    def path(self) -> str:
        """As gRPC names it: /SERVICE/NAME."""
        return f"/{self.service}/{self.name}"

    @property
    def streams_requests(self) -> bool:
        """Whether its handler is given an iterator of requests."""
        return self.descriptor.client_streaming

    @property
    def streams_responses(self) -> bool:
        """Whether its handler yields responses."""
        return self.descriptor.server_streaming


def methods_of(
    service: ServiceDescriptor, handlers: object, *, served_as: str | None = None
) -> tuple[Method, ...]:
    """The methods of a service that the policy table has, handled by the attributes of the same names.

    `served_as` is another name for the service. Raises KeyError for a service that the table lacks, or
    lacks a method that the table has.
    """
    name = served_as or service.full_name
    return tuple(
        Method(
            name,
            method.name,
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
            getattr(handlers, method.name),
            method,
        )
        for method in map(service.methods_by_name.__getitem__, method_names(name))
    )
