"""A list shows of all operations those that its caller may see, and nothing tells of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from opservice.domain.filters import Condition, ListQuery
from opservice.domain.identity import EVERYWHERE, Grant, Identity, Right, Role, Scope, Subtree
from opservice.domain.operation import Record
from opservice.methods.filtering import parse_filter
from opservice.store.engine import Database, open_database
from opservice.store.listing import MAX_RANGES, PAGE_BYTES, WINDOW, Listed
from opservice.store.migrations import migrate
from store.conftest import Ops
from store.test_listing import TEMPLATE, examples, expected, fill, listings, on
from store.test_listing import records as any_records
from support.filters import EPOCH, filters

PARENTS = ["", "/", "a", "a/", "a/b", "a/b/c", "a0", "a-", "ab", "A", "b", "é", "é/ü", "a/é", "😀"]
CREATORS = ["", "me", "you", "é"]

parents = st.sampled_from(PARENTS)
subtrees = st.builds(Subtree, parents, st.booleans())
scopes = st.builds(Scope, st.lists(subtrees, max_size=4).map(tuple), st.sampled_from(CREATORS))
identities = st.builds(
    Identity,
    st.sampled_from(CREATORS),
    st.lists(st.builds(Grant, st.sampled_from(Role), subtrees), max_size=4).map(tuple),
)
tables = st.lists(
    st.builds(
        lambda record, parent, created_by: replace(record, parent=parent, created_by=created_by),
        any_records(),
        parents,
        st.sampled_from(CREATORS),
    ),
    max_size=12,
    unique_by=lambda record: record.id,
)
pages = st.fixed_dictionaries(
    {
        "window": st.sampled_from([1, 2, 5, WINDOW]),
        "windows": st.integers(1, 3),
        "page_bytes": st.sampled_from([1, 900, PAGE_BYTES]),
    }
)
limits = st.integers(1, 4)
no_filter: st.SearchStrategy[Condition | None] = st.none()
some_filter = filters().map(lambda written: written[0])


def within(scope: Scope, record: Record) -> bool:
    own = record.created_by == scope.created_by != ""
    return own or any(subtree.covers(record.parent) for subtree in scope.subtrees)


def shown(listed: Iterable[Listed]) -> list[Record]:
    return [record for page in listed for record in page.records]


def told_apart(records: list[Record], scope: Scope) -> list[Record]:
    """Those within the scope were created at even times, the others at odd ones."""
    return [
        replace(record, created_at=2 * record.created_at + (not within(scope, record)))
        for record in records
    ]


@examples
@given(tables, scopes, st.none() | parents, no_filter | some_filter, limits, pages)
def test_a_scope_shows_exactly_the_operations_within_it_newest_first(
    shared_database: Database,
    records: list[Record],
    scope: Scope,
    parent: str | None,
    condition: Condition | None,
    limit: int,
    sizes: dict[str, int],
) -> None:
    fill(shared_database, records)
    query = ListQuery(parent, limit, condition, scope=scope)

    listed = shown(listings(on(shared_database), query, **sizes))

    visible = [record for record in records if within(scope, record)]
    assert listed == expected(visible, parent, condition)


@examples
@given(tables, identities, st.none() | parents, limits)
def test_a_caller_lists_exactly_what_he_may_see_one_by_one(
    shared_database: Database,
    records: list[Record],
    identity: Identity,
    parent: str | None,
    limit: int,
) -> None:
    fill(shared_database, records)
    query = ListQuery(parent, limit, scope=identity.scope())

    listed = shown(listings(on(shared_database), query))

    seen = [each for each in records if identity.may(Right.SEE, each.parent, each.created_by)]
    assert listed == expected(seen, parent, None)


@examples
@given(tables, scopes, st.none() | parents, no_filter | some_filter, limits, pages)
def test_pages_begin_and_end_alike_whatever_there_is_outside_of_the_scope(
    shared_database: Database,
    records: list[Record],
    scope: Scope,
    parent: str | None,
    condition: Condition | None,
    limit: int,
    sizes: dict[str, int],
) -> None:
    query = ListQuery(parent, limit, condition, scope=scope)
    fill(shared_database, [record for record in records if within(scope, record)])
    alone = list(listings(on(shared_database), query, **sizes))
    fill(shared_database, records)

    assert list(listings(on(shared_database), query, **sizes)) == alone


@examples
@given(tables, scopes, st.none() | parents, limits, pages)
def test_a_page_ends_at_an_operation_within_the_scope(
    shared_database: Database,
    records: list[Record],
    scope: Scope,
    parent: str | None,
    limit: int,
    sizes: dict[str, int],
) -> None:
    records = told_apart(records, scope)
    fill(shared_database, records)
    query = ListQuery(parent, limit, parse_filter("done = true"), scope=scope)

    ends = [page.end for page in listings(on(shared_database), query, **sizes) if page.end]

    visible = {(each.created_at, each.id) for each in records if within(scope, each)}
    assert set(ends) <= visible | {(created_at, "") for created_at, _ in visible}


ROWS = [
    replace(TEMPLATE, id=f"{n:03}", parent=f"p/{n % 4}", created_by=f"user{n % 3}", created_at=n)
    for n in range(60)
]


def ids_of(ops: Ops, scope: Scope, parent: str | None = None, limit: int = 7) -> list[str]:
    return [each.id for each in shown(listings(ops, ListQuery(parent, limit, scope=scope)))]


def newest_first(within_it: Callable[[Record], bool]) -> list[str]:
    return [each.id for each in reversed(ROWS) if within_it(each)]


def test_a_scope_of_everything_hides_nothing(ops: Ops) -> None:
    fill(ops.database, ROWS)

    assert ids_of(ops, Scope((EVERYWHERE,), "")) == newest_first(lambda _: True)


def test_an_empty_scope_shows_nothing(ops: Ops) -> None:
    fill(ops.database, ROWS)

    assert list(listings(ops, ListQuery(None, 7, scope=Scope((), "")))) == [Listed((), None)]


def test_what_nobody_is_said_to_have_created_is_not_the_own_of_who_has_no_name(ops: Ops) -> None:
    fill(ops.database, [replace(row, created_by="") for row in ROWS])

    assert ids_of(ops, Scope((), "")) == []


def test_an_operation_that_is_visible_for_several_reasons_is_shown_once(ops: Ops) -> None:
    fill(ops.database, ROWS)
    reasons = (Subtree("p/1"), Subtree("p", below=True), Subtree("p/1", below=True))

    assert ids_of(ops, Scope(reasons, "user1")) == newest_first(lambda _: True)


def test_of_a_parent_outside_of_the_scope_the_own_operations_are_shown(ops: Ops) -> None:
    fill(ops.database, ROWS)

    assert ids_of(ops, Scope((Subtree("p/2"),), "user1"), parent="p/1") == newest_first(
        lambda each: (each.parent, each.created_by) == ("p/1", "user1")
    )


def test_operations_of_one_moment_in_several_parents_are_in_the_order_of_their_ids(
    ops: Ops,
) -> None:
    fill(ops.database, [replace(row, created_at=EPOCH) for row in ROWS])

    assert ids_of(ops, Scope((Subtree("p/1"), Subtree("p/2")), "user0"), limit=4) == newest_first(
        lambda each: each.parent in ("p/1", "p/2") or each.created_by == "user0"
    )


@pytest.mark.parametrize("below", [False, True], ids=["exact", "below"])
@pytest.mark.parametrize("count", [MAX_RANGES, MAX_RANGES + 1, 200])
def test_a_scope_may_have_any_number_of_parents(ops: Ops, count: int, below: bool) -> None:
    rows = [replace(TEMPLATE, id=f"{n:03}", parent=f"p/{n}", created_at=n) for n in range(220)]
    fill(ops.database, rows)
    scope = Scope(tuple(Subtree(f"p/{n}", below) for n in range(count)), "me")

    listed = list(listings(ops, ListQuery(None, 30, scope=scope)))

    assert [each.id for each in shown(listed)] == [f"{n:03}" for n in reversed(range(count))]


def test_an_expired_operation_within_the_scope_is_not_shown(ops: Ops) -> None:
    past = replace(ROWS[1], id="past", done=True, expires_at=EPOCH)
    fill(ops.database, [*ROWS, past])

    assert "past" not in ids_of(ops, Scope((Subtree("p", below=True),), "user1"))


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path}/operations.db")
    migrate(opened)
    yield opened
    opened.close()


def steps_of(ops: Ops, query: ListQuery) -> int:
    """How many instructions SQLite runs for all pages."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    def watch(connection: object, *_: object) -> None:
        connection.set_progress_handler(count, 1)  # type: ignore[attr-defined] # sqlite3.Connection

    ops.database.reader.dispose()
    event.listen(ops.database.reader, "connect", watch)
    try:
        list(listings(ops, query, window=5, windows=2))
    finally:
        event.remove(ops.database.reader, "connect", watch)
        ops.database.reader.dispose()
    return steps


STRANGERS = [
    replace(TEMPLATE, id=f"x{n:04}", parent=f"q/{n % 3}", created_by="you", created_at=n % 70)
    for n in range(1000)
]


@pytest.mark.parametrize("filter_", ["", "done = true", "created_by = you", 'id = "x0001"'])
@pytest.mark.parametrize("parent", [None, "p/1", "q/1"])
@pytest.mark.parametrize(
    "subtree", [Subtree("p/1"), Subtree("p", below=True)], ids=["exact", "below"]
)
def test_sqlite_does_no_more_for_a_thousand_operations_outside_of_the_scope_than_for_three(
    sqlite: Database, subtree: Subtree, parent: str | None, filter_: str
) -> None:
    ops = on(sqlite)
    query = ListQuery(parent, 4, parse_filter(filter_), scope=Scope((subtree,), "user1"))
    # It looks at the operation behind the end of a range, if there is one.
    fill(sqlite, [*ROWS, *STRANGERS[:3]])
    with_few = steps_of(ops, query)
    fill(sqlite, [*ROWS, *STRANGERS])

    assert steps_of(ops, query) == with_few
