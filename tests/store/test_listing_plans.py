"""The queries of List read an index in its own order, newest first, and no more of it than they must."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from opservice.api.filtering import parse_filter
from opservice.filters import ListQuery, Position
from opservice.store.engine import Database
from opservice.store.listing import read_page
from opservice.store.repository import Repository
from store.test_conformance_plans import PRIMARY_KEY, Plan, full, plans, uses

__all__ = ["full"]

PARENT = "folders/3"
INDEXES = {PARENT: "operations_by_parent", None: "operations_by_creation"}
LIMIT = 20
WINDOW = 50


def plans_of(
    database: Database, parent: str | None, filter_: str = "", after: Position | None = None
) -> list[Plan]:
    """Of the statements that choose operations, not of the one that reads what was chosen."""
    query = ListQuery(parent, LIMIT, parse_filter(filter_), after)
    visible = Repository().visible
    made = plans(database, lambda c: read_page(c, query, visible, window=WINDOW, windows=1))
    return made[:-1] if uses(made[-1], PRIMARY_KEY[database.is_sqlite]) and len(made) > 1 else made


def scans(plan: Plan) -> Plan:
    """The lines that read the table and not an index."""
    whole_table = ("SCAN operations", "Seq Scan on operations")
    return [
        line for line in plan if any(scan in line for scan in whole_table) and "USING" not in line
    ]


def sorts(plan: Plan) -> Plan:
    return [line for line in plan if "Sort" in line or "TEMP B-TREE" in line]


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

    if full.is_sqlite:
        assert any("(created_at,id)<(?,?)" in line for line in plan), plan
    else:
        (condition,) = [line for line in plan if "Index Cond" in line]
        assert "ROW(created_at, id) < ROW(" in condition, plan


@pytest.mark.parametrize("parent", INDEXES, ids=["of a parent", "of all"])
def test_a_range_of_creation_times_is_a_range_of_the_index(
    full: Database, parent: str | None
) -> None:
    newer = deep(full, parent)[0]
    span = f"created_at >= {_written(newer - 50)} created_at < {_written(newer)}"

    (plan,) = plans_of(full, parent, span)

    assert uses(plan, INDEXES[parent]), plan
    assert not scans(plan), plan
    assert not (full.is_sqlite and sorts(plan)), plan  # PostgreSQL may prefer to sort so few
    beginning = "(created_at,id)>(?,?)" if full.is_sqlite else "ROW(created_at, id) >= ROW("
    assert any(beginning in line for line in plan), plan


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

    assert uses(plan, PRIMARY_KEY[full.is_sqlite]), plan
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
    assert not (full.is_sqlite and sorts(within_window)), within_window
    beginning = "(created_at,id)>(?,?)" if full.is_sqlite else "ROW(created_at, id) >= ROW("
    assert any(beginning in line for line in within_window), within_window
