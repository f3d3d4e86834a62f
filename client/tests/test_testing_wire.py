"""The server's own tests of what its clients see, on both servers of opservice_client.testing.

So the two answer as `opservice serve` does, in every word of their refusals, and as each other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from opservice_client.testing import OperationServer
from support.client import Client, open_channel
from wire import (
    test_batch_get,
    test_idempotency,
    test_labels,
    test_listing,
    test_operations,
    test_producer,
    test_producer_input,
    test_records,
    test_waits,
)
from wire.test_idempotency import key
from wire.test_listing import parent, token

__all__ = ["key", "parent", "token"]

_ANOTHER_SERVER = {"server", "database_url", "two_servers", "tmp_path", "roomy"}
"""A test that asks for one of these sets the server otherwise, or looks into it."""
_WITH_FILTERS = {
    test_listing.test_no_parent_lists_the_operations_that_have_none,
    test_listing.test_a_dash_lists_the_operations_of_all_parents,
    test_listing.test_a_filter_narrows_the_list,
    test_listing.test_a_filter_holds_for_every_page,
    test_listing.test_a_wrong_filter_is_an_invalid_argument_that_points_at_the_place,
    test_listing.test_a_filter_has_limits,
    test_listing.test_a_token_of_another_list_is_an_invalid_argument,
    test_listing.test_every_wrong_field_is_named_at_once,
    test_listing.test_a_refusal_fits_into_the_headers_that_clients_accept,
    test_labels.test_labels_in_filters,
    test_labels.test_a_key_that_cannot_be_a_label_is_refused_in_a_filter,
}
"""Filters, which the server in memory does not have."""


@pytest.fixture(scope="module", params=["server", "memory"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with OperationServer(backend=request.param) as server, open_channel(server.target) as channel:
        yield Client(channel)


def _tests(module: ModuleType) -> dict[str, Callable[..., Any]]:
    kind = module.__name__.removeprefix("wire.test_")
    return {
        name.replace("test_", f"test_{kind}_", 1): test
        for name, test in vars(module).items()
        if name.startswith("test_")
        and test not in _WITH_FILTERS
        and not _ANOTHER_SERVER & inspect.signature(test).parameters.keys()
    }


for _module in (
    test_batch_get,
    test_idempotency,
    test_labels,
    test_listing,
    test_operations,
    test_producer,
    test_producer_input,
    test_records,
    test_waits,
):
    globals().update(_tests(_module))
