"""The server's own tests of what its clients see, on both servers of opservice_client.testing.

So the two answer as `opservice serve` does, in every word of their refusals, and as each other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from types import ModuleType
from typing import Any

import pytest

from opservice_client.testing import OperationServer
from support.client import Client, open_channel
from wire import (
    test_batch_get,
    test_batch_watch,
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
    test_batch_watch.test_a_dash_follows_the_operations_of_all_parents,
    test_batch_watch.test_what_does_not_match_the_filter_any_more_is_removed_and_comes_back,
    test_batch_watch.test_of_what_never_matched_nothing_is_told,
    test_batch_watch.test_what_stopped_to_match_during_a_break_is_removed,
    test_batch_watch.test_a_token_of_another_filter_is_an_invalid_argument,
    test_batch_watch.test_a_wrong_parent_and_filter_are_an_invalid_argument,
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
_SLOW = {
    test_batch_watch.test_an_operation_that_the_server_ends_is_told,
    test_batch_watch.test_a_thousand_operations_are_followed_in_one_stream,
    test_batch_watch.test_what_expires_is_removed,
    test_batch_watch.test_many_operations_of_a_parent_are_told_in_pages,
}
"""Tests that take longer, which CI runs."""


@pytest.fixture(scope="module", params=["server", "memory"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with OperationServer(backend=request.param) as server, open_channel(server.target) as channel:
        yield Client(channel)


def _slow(test: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(test)  # which is marked in its own module otherwise, too
    def slow(**asked: Any) -> None:
        test(**asked)

    marked: Callable[..., Any] = pytest.mark.slow(slow)
    return marked


def _tests(module: ModuleType) -> dict[str, Callable[..., Any]]:
    kind = module.__name__.removeprefix("wire.test_")
    return {
        name.replace("test_", f"test_{kind}_", 1): _slow(test) if test in _SLOW else test
        for name, test in vars(module).items()
        if name.startswith("test_")
        and test not in _WITH_FILTERS
        and not _ANOTHER_SERVER & inspect.signature(test).parameters.keys()
    }


for _module in (
    test_batch_get,
    test_batch_watch,
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
