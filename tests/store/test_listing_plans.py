"""The queries of List read an index in its own order, newest first, and no more of it than they must.

The indexes have no ids: what was created in the same microsecond is sorted, and nothing else is.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from opservice.domain.filters import ListQuery, Position
from opservice.domain.identity import Scope, Subtree
from opservice.methods.filtering import parse_filter
from opservice.store.engine import Database
from opservice.store.listing import read_page
from opservice.store.repository import Repository
from store.contract.test_plans import PRIMARY_KEY, Plan, full, plans, uses

__all__ = ["full"]

PARENT = "folders/3"
INDEXES = {PARENT: "operations_by_parent", None: "operations_by_creation"}
LIMIT = 20
WINDOW = 50


def plans_of(
    database: Database,
    parent: str | None,
    filter_: str = "",
    after: Position | None = None,
    scope: Scope | None = None,
) -> list[Plan]:
    """Of the statements that choose operations, not of the one that reads what was chosen."""
    query = ListQuery(parent, LIMIT, parse_filter(filter_), after, scope)
    visible = Repository().visible
    made = plans(database, lambda c: read_page(c, query, visible, window=WINDOW, windows=1))
    reading = len(made) > 1 and uses(made[-1], PRIMARY_KEY[database.url.is_sqlite])
    return made[:-1] if reading else made


def scans(plan: Plan) -> Plan:
    """The lines that read the table and not an index."""
    whole_table = ("SCAN operations", "Seq Scan on operations")
    return [
        line for line in plan if any(scan in line for scan in whole_table) and "USING" not in line
    ]


def sorts(plan: Plan) -> Plan:
    """The lines that sort all operations, not only those of the same moment.

    Those are "FOR LAST TERM OF ORDER BY", and "Incremental Sort".
    """
    return [
        line
        for line in plan
        if "TEMP B-TREE FOR ORDER BY" in line or re.match(r"\s*(->\s*)?Sort  \(", line)
    ]


def bounds(plan: Plan) -> set[str]:
    """How creation times bound what is read of the index."""
    read = [line for line in plan if "SEARCH operations" in line or "Index Cond" in line]
    return set(re.findall(r"created_at ?[<>]", " ".join(read).replace(" ", "")))


def deep(database: Database, parent: str | None) -> Position:
    """The position halfway through the list."""
    query = ListQuery(parent, 3000)
    visible = Repository().visible
    records = database.read(lambda connection: read_page(connection, query, visible)).records
    middle = records[len(records) // 2]
    return middle.created_at, middle.id


@pytest.mark.parametrize("parent", INDEXES, ids=["of a parent", "of all"])
@pytest.mark.parametrize("page", ["first", "deep"])
def test_a_page_is_read_in_the_order_of_its_index(
    full: Database, parent: str | None, page: str
) -> None:
    after = deep(full, parent) if page == "deep" else None

    (plan,) = plans_of(full, parent, after=after)

    assert uses(plan, INDEXES[parent]), plan
    assert not scans(plan), plan
    assert not sorts(plan), plan


@pytest.mark.parametrize("parent", INDEXES, ids=["of a parent", "of all"])
def test_a_deep_page_begins_where_the_one_before_ended(full: Database, parent: str | None) -> None:
    """Rather than at the newest operation, passing over those of all pages before."""
    (plan,) = plans_of(full, parent, after=deep(full, parent))

    assert uses(plan, INDEXES[parent]), plan
    assert bounds(plan) == {"created_at<"}, plan


@pytest.mark.parametrize("parent", INDEXES, ids=["of a parent", "of all"])
def test_a_range_of_creation_times_is_a_range_of_the_index(
    full: Database, parent: str | None
) -> None:
    newer = deep(full, parent)[0]
    span = f"created_at >= {_written(newer - 50)} created_at < {_written(newer)}"

    (plan,) = plans_of(full, parent, span)

    assert uses(plan, INDEXES[parent]), plan
    assert not scans(plan), plan
    assert not (full.url.is_sqlite and sorts(plan)), plan  # PostgreSQL may prefer to sort so few
    assert bounds(plan) == {"created_at<", "created_at>"}, plan


def _written(microseconds: int) -> str:
    return (datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds)).isoformat()


@pytest.mark.parametrize("parent", INDEXES, ids=["of a parent", "of all"])
@pytest.mark.parametrize(
    "filter_", ['id = "ops00000000000000003"', "id = ops00000000000000003 AND done = true"]
)
def test_an_id_is_found_by_the_primary_key(
    full: Database, parent: str | None, filter_: str
) -> None:
    (plan,) = plans_of(full, parent, filter_)

    assert uses(plan, PRIMARY_KEY[full.url.is_sqlite]), plan
    assert not scans(plan), plan


@pytest.mark.parametrize("parent", INDEXES, ids=["of a parent", "of all"])
@pytest.mark.parametrize(
    "filter_",
    [
        "done = true",
        "error.code = NOT_FOUND OR error.code:*",
        "NOT created_at < 2020-01-01T00:00:00Z",
        "created_at < 2020-01-01T00:00:00Z OR created_at > 2021-01-01T00:00:00Z",
        'id >= "ops"',
        'description:"x" method = "*y"',
    ],
)
def test_another_filter_looks_at_one_window_of_the_index_after_the_other(
    full: Database, parent: str | None, filter_: str
) -> None:
    end_of_window, within_window = plans_of(full, parent, filter_)

    for plan in (end_of_window, within_window):
        assert uses(plan, INDEXES[parent]), plan
        assert not scans(plan), plan
    assert not sorts(end_of_window), end_of_window
    # PostgreSQL may prefer to sort the little that it expects to find in a window.
    assert not (full.url.is_sqlite and sorts(within_window)), within_window
    assert bounds(within_window) == {"created_at>"}, within_window


@pytest.mark.parametrize("parent", INDEXES, ids=["of a parent", "of all"])
@pytest.mark.parametrize("page", ["first", "deep"])
def test_where_a_window_ends_is_read_from_the_index_alone(
    full: Database, parent: str | None, page: str
) -> None:
    after = deep(full, parent) if page == "deep" else None

    end_of_window, _ = plans_of(full, parent, "done = true", after)

    alone = "USING COVERING INDEX" if full.url.is_sqlite else "Index Only Scan"
    assert any(alone in line and INDEXES[parent] in line for line in end_of_window), end_of_window


@pytest.mark.parametrize("parent", INDEXES, ids=["of a parent", "of all"])
@pytest.mark.parametrize("filter_", ["done = false", "created_by = user1"])
def test_the_operations_of_a_filtered_page_are_read_by_their_ids_alone(
    full: Database, parent: str | None, filter_: str
) -> None:
    """Not by an index of all that run, or of all that somebody created."""
    query = ListQuery(parent, LIMIT, parse_filter(filter_))

    *_, reading = plans(full, lambda c: read_page(c, query, Repository().visible, window=WINDOW))

    assert uses(reading, PRIMARY_KEY[full.url.is_sqlite]), reading
    assert not uses(reading, "operations_by_"), reading
    assert not uses(reading, "operations_running"), reading


SCOPES = {
    "exact": Scope((Subtree(PARENT), Subtree("folders/4")), "user1"),
    "below": Scope((Subtree("projects", below=True),), "user1"),
    "both": Scope((Subtree("projects", below=True), Subtree(PARENT)), "user1"),
    "own": Scope((), "user1"),
    "nobody's own": Scope((Subtree(PARENT),), ""),
}
OF_WHAT_IS_VISIBLE = ("operations_by_parent", "operations_by_creator")


def strangers(plan: Plan) -> Plan:
    """The lines that read operations by anything but a parent or a creator."""
    reads = [
        line for line in plan if re.search(r"SCAN operations|SEARCH|Scan .*(on|using) op", line)
    ]
    # A bitmap's table is read where its index says.
    by_index = [line for line in reads if "Bitmap Heap Scan" not in line]
    return [line for line in by_index if not any(index in line for index in OF_WHAT_IS_VISIBLE)]


@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
@pytest.mark.parametrize("parent", [None, PARENT, "projects/1"])
def test_a_scope_is_read_by_the_indexes_of_its_parents_and_of_its_creator_alone(
    full: Database, scope: Scope, parent: str | None
) -> None:
    """So that how long it takes does not depend on what the caller may not see."""
    for after in (None, deep(full, None)):
        for filter_ in ("", 'method = "x"', "done = false", "created_at > 2020-01-01T00:00:00Z"):
            for plan in plans_of(full, parent, filter_, after, scope):
                assert not strangers(plan), (filter_, plan)


@pytest.mark.parametrize("after", [None, "deep"])
def test_a_parent_that_is_not_in_the_scope_is_not_read(full: Database, after: str | None) -> None:
    position = deep(full, None) if after else None

    for filter_ in ("", "done = true"):
        for plan in plans_of(full, "folders/4", filter_, position, SCOPES["nobody's own"]):
            assert not uses(plan, "operations_by_parent"), plan
        for plan in plans_of(full, "folders/4", filter_, position, SCOPES["own"]):
            assert uses(plan, "operations_by_creator"), plan
            assert not uses(plan, "operations_by_parent"), plan


@pytest.mark.parametrize("parent", [None, PARENT])
def test_a_filter_by_another_creator_reads_none_of_his_operations_beyond_the_scope(
    full: Database, parent: str | None
) -> None:
    made = plans_of(full, parent, "created_by = user2", scope=SCOPES["nobody's own"])

    for plan in made:
        assert not uses(plan, "operations_by_creator"), plan


def test_the_operations_of_each_exact_parent_are_read_in_the_order_of_its_index(
    full: Database,
) -> None:
    (plan,) = plans_of(full, None, after=deep(full, None), scope=SCOPES["exact"])

    in_order = "FOR LAST TERM OF ORDER BY" if full.url.is_sqlite else "Incremental Sort"
    assert len([line for line in plan if in_order in line]) == 3, plan
    assert bounds(plan) == {"created_at<"}, plan
