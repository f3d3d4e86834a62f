"""The tests of what a client sees by gRPC, once more by REST: the two tell the same, in every word.

On SQLite alone: what is tested here is the way to the methods and back, which knows no database.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from types import ModuleType
from typing import Any

import pytest

from support.client import Client
from support.fixtures import SHARED_SETTINGS
from support.rest_channel import NotByRest, RestChannel
from support.server import ServerProcess, serving
from wire import (
    test_batch_get,
    test_batch_watch,
    test_endpoints,
    test_headers,
    test_idempotency,
    test_labels,
    test_listing,
    test_longrunning,
    test_longrunning_list,
    test_operations,
    test_producer,
    test_producer_input,
    test_records,
    test_request_ids,
    test_unexpected,
    test_waits,
)
from wire.test_idempotency import key
from wire.test_labels import labelled
from wire.test_listing import parent, token
from wire.test_longrunning import operations
from wire.test_unexpected import broken

__all__ = ["broken", "key", "labelled", "operations", "parent", "token"]

_THE_SERVER = {"server", "client", "operations", "broken"}
_ANOTHER_SERVER = {"database_url", "two_servers", "tmp_path", "roomy"}
"""A test that asks for one of these starts a server of its own, which it calls by gRPC."""

_NO_PATH = (
    "the name stands in the path, which has none for an empty one, or one of another collection"
)
_NO_JSON = "there is no JSON for a Duration that breaks the rules of its type"
_OF_GRPC = "it is about what only gRPC has: bytes of a message, or a method without a route"
NOT_BY_REST: dict[Callable[..., Any], str] = {
    test_endpoints.test_get_of_a_bad_endpoint_id_is_an_invalid_argument: _NO_PATH,
    test_longrunning.test_a_malformed_name_is_an_invalid_argument: _NO_PATH,
    test_longrunning.test_the_service_is_serving: _OF_GRPC,
    test_longrunning_list.test_list_names_the_field_that_is_wrong: _NO_PATH,
    test_longrunning_list.test_list_without_a_parent_shows_the_operations_that_have_none: _NO_PATH,
    test_operations.test_a_bad_id_is_an_invalid_argument: _NO_PATH,
    test_producer_input.test_a_write_refuses_a_bad_id: _NO_PATH,
    test_producer_input.test_start_refuses: _NO_JSON,
    test_unexpected.test_a_method_that_does_not_exist_is_unimplemented: _OF_GRPC,
    test_unexpected.test_a_string_that_is_not_utf_8_is_an_invalid_argument: _OF_GRPC,
    test_unexpected.test_bytes_that_are_no_message_are_an_invalid_argument: _OF_GRPC,
    test_waits.test_a_bad_timeout_is_an_invalid_argument: _NO_JSON,
}
"""Tests of which REST cannot say something, and why. All that it can say must hold."""
_OTHERWISE = {
    # Its code is of gRPC's core, which reads no such message: RESOURCE_EXHAUSTED, that clients may repeat.
    test_producer_input.test_a_request_over_the_message_limit_is_refused,
    # Which sends its requests as HTTP/2 frames.
    test_request_ids.test_a_bad_request_id_is_replaced,
    test_request_ids.test_a_header_that_is_not_text_is_not_logged,
}
"""Tests that are of gRPC alone."""


class _ByRest:
    """A server, whose client speaks REST."""

    def __init__(self, server: ServerProcess, channel: RestChannel) -> None:
        self._server = server
        self.channel = channel
        self.client = Client(channel)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_ByRest]:
    directory = tmp_path_factory.mktemp("server")
    database = f"sqlite:///{directory}/operations.db"
    with (
        serving(directory, database, **SHARED_SETTINGS) as server,
        RestChannel(server.http_url) as channel,
    ):
        yield _ByRest(server, channel)


@pytest.fixture
def client(server: _ByRest) -> Client:
    return server.client


@pytest.fixture
def with_events(server: _ByRest) -> Iterator[None]:
    """Streams are server-sent events."""
    server.channel.events = True
    yield
    server.channel.events = False


def _by_rest(test: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(test)
    def by_rest(**asked: Any) -> None:
        try:
            test(**asked)
        except NotByRest:
            assert test in NOT_BY_REST

    return by_rest


def _tests(module: ModuleType, prefix: str = "test") -> dict[str, Callable[..., Any]]:
    kind = module.__name__.removeprefix("wire.test_")
    return {
        name.replace("test_", f"{prefix}_{kind}_", 1): _by_rest(test)
        for name, test in vars(module).items()
        if name.startswith("test_")
        and test not in _OTHERWISE
        and (asked := inspect.signature(test).parameters.keys())
        and _THE_SERVER & asked
        and not _ANOTHER_SERVER & asked
    }


for _module in (
    test_batch_get,
    test_batch_watch,
    test_endpoints,
    test_headers,
    test_labels,
    test_longrunning,
    test_operations,
    test_producer,
    test_records,
    test_request_ids,
    test_unexpected,
):
    globals().update(_tests(_module))

# These take longer, and so they are slow tests, which CI runs.
for _module in (
    test_idempotency,
    test_listing,
    test_longrunning_list,
    test_producer_input,
    test_waits,
):
    globals().update({name: pytest.mark.slow(test) for name, test in _tests(_module).items()})

for _module in (test_batch_watch, test_records):
    for _name, _test in _tests(_module, "test_events").items():
        globals()[_name] = pytest.mark.slow(pytest.mark.usefixtures("with_events")(_test))
