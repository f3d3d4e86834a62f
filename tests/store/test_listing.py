"""List, at the store: the same as a filter, a sort and a slice in Python."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
from threading import Event, current_thread

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import BigInteger, bindparam, delete, event, insert

from opservice.domain import matching
from opservice.domain.filters import (
    Anchor,
    Comparison,
    Condition,
    Field,
    ListQuery,
    Match,
    Not,
    Operator,
    Position,
    Present,
)
from opservice.domain.labels import labels_to_text
from opservice.domain.operation import SECOND, CancelPolicy, Complete, Record
from opservice.methods.filtering import parse_filter
from opservice.store.engine import Database, open_database
from opservice.store.listing import PAGE_BYTES, WINDOW, WINDOWS, Listed, read_page
from opservice.store.migrations import migrate
from opservice.store.repository import Repository
from opservice.store.schema import operations
from opservice.store.service import OperationStore
from store.conftest import Clock, Ops, repository_on
from support.filters import EPOCH, conditions, filters, satisfies, texts, times, words
from support.postgres import PostgresServer
from support.server import PATIENCE, eventually

TEMPLATE = Record(
    id="",
    parent="",
    method="",
    description="",
    created_by="",
    created_at=EPOCH,
    modified_at=EPOCH,
    revision=1,
    done=False,
    metadata=None,
    response=None,
    error=None,
    error_code=None,
    cancel_policy=CancelPolicy.IMMEDIATE,
    cancel_requested_at=None,
    progress_done=None,
    progress_total=None,
    progress_unit=None,
    progress_message=None,
    lease_token_hash=None,
    lease=None,
    lease_expires_at=None,
    timeout_at=None,
    retention=SECOND,
    expires_at=None,
    request_hash=None,
    cancelled_by="",
    producer="",
    labels="",
    traceparent="",
)
labels = st.dictionaries(st.sampled_from(["a", "b.c", "a-b_1", "c"]), texts | words, max_size=3)
PARENTS = ["", "a", "a/b", "A"]
NOW = EPOCH


@st.composite
def records(draw: st.DrawFn) -> Record:
    done = draw(st.booleans())
    code = draw(st.none() | st.integers(1, 3))
    return replace(
        TEMPLATE,
        id=draw(texts.filter(bool) | words.filter(bool)),
        parent=draw(st.sampled_from(PARENTS)),
        method=draw(words),
        description=draw(texts),
        created_by=draw(texts | words),
        created_at=draw(times),
        modified_at=draw(times),
        done=done,
        metadata=draw(st.none() | st.binary(max_size=300)),
        error=None if code is None else b"error",
        error_code=code,
        expires_at=draw(st.integers(NOW - 1, NOW + 2)) if done else None,
        cancelled_by=draw(words),
        producer=draw(texts | words),
        labels=labels_to_text(draw(labels)),
    )


tables = st.lists(records(), max_size=12, unique_by=lambda record: record.id)


def fill(database: Database, records: Sequence[Record]) -> None:
    columns = operations.columns.keys()
    rows = [dict(zip(columns, astuple(record), strict=True)) for record in records]
    with database.writer.begin() as connection:
        connection.execute(delete(operations))
        if rows:
            connection.execute(insert(operations), rows)


def listings(
    ops: Ops,
    query: ListQuery,
    page_bytes: int = PAGE_BYTES,
    window: int = WINDOW,
    windows: int = WINDOWS,
) -> Iterator[Listed]:
    """All pages, one after the other."""
    while True:
        listed = ops.database.read(
            lambda connection: read_page(
                connection,
                query,  # noqa: B023 - read at once
                ops.repository.visible,
                page_bytes=page_bytes,
                window=window,
                windows=windows,
            )
        )
        yield listed
        if listed.end is None:
            return
        assert query.after is None or listed.end < query.after, "the walk does not get on"
        query = replace(query, after=listed.end)


def walk(
    ops: Ops,
    parent: str | None,
    condition: Condition | None = None,
    limit: int = 2,
    page_bytes: int = PAGE_BYTES,
    window: int = WINDOW,
    windows: int = WINDOWS,
) -> list[tuple[Record, ...]]:
    query = ListQuery(parent, limit, condition)
    return [page.records for page in listings(ops, query, page_bytes, window, windows)]


def expected(
    records: Sequence[Record], parent: str | None, condition: Condition | None
) -> list[Record]:
    found = [
        record
        for record in records
        if parent in (None, record.parent)
        and (record.expires_at is None or record.expires_at > NOW)
        and (condition is None or satisfies(record, condition))
    ]
    return sorted(found, key=lambda record: (record.created_at, record.id), reverse=True)


def on(database: Database) -> Ops:
    return Ops(database, repository_on(Clock()))


any_parent = st.sampled_from([None, *PARENTS])
# The database is shared by the examples, each of which fills it anew.
examples = settings(
    max_examples=settings().max_examples // 4,
    deadline=None,
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture],
)


@examples
@given(
    tables,
    any_parent,
    filters(),
    st.integers(1, 4),
    st.sampled_from([1, 2, 5, WINDOW]),
    st.integers(1, 3),
)
def test_a_filtered_list_is_what_python_makes_of_it(
    shared_database: Database,
    records: list[Record],
    parent: str | None,
    written: tuple[Condition, str],
    limit: int,
    window: int,
    windows: int,
) -> None:
    condition, text = written
    fill(shared_database, records)

    pages = walk(
        on(shared_database), parent, parse_filter(text), limit, window=window, windows=windows
    )

    assert all(len(page) <= limit for page in pages)
    assert [record for page in pages for record in page] == expected(records, parent, condition)


@examples
@given(tables, conditions)
def test_a_condition_and_its_negation_split_the_operations_in_two(
    shared_database: Database, records: list[Record], condition: Condition
) -> None:
    ops = on(shared_database)
    fill(shared_database, records)

    (yes,) = walk(ops, None, condition, limit=100)
    (no,) = walk(ops, None, Not(condition), limit=100)

    both = sorted(yes + no, key=lambda record: (record.created_at, record.id), reverse=True)
    assert both == expected(records, None, None)


@given(records(), conditions)
def test_a_condition_is_satisfied_in_memory_by_what_satisfies_it(
    record: Record, condition: Condition
) -> None:
    assert matching.satisfies(record, condition) == satisfies(record, condition)


def test_each_kind_of_condition_and_its_negation_find_what_python_finds(ops: Ops) -> None:
    """At the places where one that is nearly right would differ."""
    descriptions = ["", "ab", "abx", "xab", "xabx", "aB", "b", "ac"]
    records = [
        replace(TEMPLATE, id=f"{n}{code}", description=text, error_code=code, created_at=n)
        for n, text in enumerate(descriptions)
        for code in (None, 1, 2, 3)
    ]
    fill(ops.database, records)
    matches: list[Condition] = [Match(Field.DESCRIPTION, "ab", anchor) for anchor in Anchor]
    comparisons: list[Condition] = [
        Comparison(field, operator, value)
        for field, value in ((Field.ERROR_CODE, 2), (Field.DESCRIPTION, "ab"))
        for operator in Operator
    ]
    alone = [*matches, *comparisons, Present(Field.ERROR_CODE)]
    for condition in [*alone, *map(Not, alone)]:
        (found,) = walk(ops, None, condition, limit=100)
        assert [*found] == expected(records, None, condition), condition


@examples
@given(tables, any_parent, st.integers(1, 4), st.sampled_from([1, 400, 900, PAGE_BYTES]))
def test_pages_hold_no_more_than_their_bytes_and_miss_nothing(
    shared_database: Database,
    records: list[Record],
    parent: str | None,
    limit: int,
    page_bytes: int,
) -> None:
    fill(shared_database, records)

    pages = walk(on(shared_database), parent, limit=limit, page_bytes=page_bytes)

    assert [record for page in pages for record in page] == expected(records, parent, None)
    for page in pages:
        assert len(page) <= 1 or sum(len(record.metadata or b"") for record in page) <= page_bytes


def test_a_full_page_of_the_last_operations_has_no_next(ops: Ops) -> None:
    fill(ops.database, [replace(TEMPLATE, id=str(n), created_at=n) for n in range(4)])

    assert [len(page) for page in walk(ops, "", limit=2)] == [2, 2]


def test_a_filter_that_little_satisfies_gets_on_by_empty_pages(ops: Ops) -> None:
    fill(ops.database, [replace(TEMPLATE, id=str(n), created_at=n) for n in range(9)])
    first = Comparison(Field.METHOD, Operator.EQUAL, "")
    none = Not(first)

    assert walk(ops, "", none, limit=2, window=2, windows=2) == [(), (), ()]


def test_a_filter_by_creation_time_looks_only_there(ops: Ops) -> None:
    fill(ops.database, [replace(TEMPLATE, id=str(n), created_at=EPOCH + n) for n in range(9)])
    text = "created_at > 2023-11-14T22:13:20.000002Z created_at <= 2023-11-14T22:13:20.000004Z"

    (first, *_) = walk(ops, "", parse_filter(f"{text} method = ''"), window=2, windows=1)

    assert [record.id for record in first] == ["4", "3"]


def test_a_filter_by_id_finds_it_however_deep_it_lies(ops: Ops) -> None:
    fill(ops.database, [replace(TEMPLATE, id=str(n), created_at=n) for n in range(9)])

    ((found,),) = walk(ops, "", parse_filter('id = "0" AND done = false'), window=2, windows=1)

    assert found.id == "0"


def test_an_operation_that_ends_meanwhile_is_not_shown_by_a_filter_for_running_ones(
    ops: Ops,
) -> None:
    """The page is read in steps."""
    ids = [ops.start().id for _ in range(3)]
    query = ListQuery("", 10, parse_filter("done = false"))
    steps = 0

    def end_one_before_the_last_step(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            ops.apply(Complete(ids[1], b"response"))

    with ops.database.reader.connect() as connection:
        event.listen(connection, "before_cursor_execute", end_one_before_the_last_step)
        listed = read_page(connection, query, ops.repository.visible)

    assert steps == 3
    assert {record.id for record in listed.records} == {ids[0], ids[2]}


def test_pages_neither_skip_nor_repeat_while_operations_are_added(ops: Ops, clock: Clock) -> None:
    before = {
        ops.start().id for _ in range(9)
    }  # most in one tick of the clock, and so are the next
    seen: list[str] = []
    after: Position | None = None
    while True:
        query = ListQuery("", 2, None, after)
        listed = ops.database.read(
            lambda connection, query=query: read_page(connection, query, ops.repository.visible)  # type: ignore[misc] # cannot infer its type
        )
        seen += [record.id for record in listed.records]
        if listed.end is None:
            break
        after = listed.end
        if len(seen) < 8:
            ops.start()
            clock.advance(1)
            ops.start()

    assert len(seen) == len(set(seen))
    assert before <= set(seen)


async def test_a_slow_list_holds_no_get_back(shared_database: Database) -> None:
    fill(shared_database, [replace(TEMPLATE, id="ops")])
    listing, go_on = Event(), Event()

    def clock() -> int:
        if current_thread().name.startswith("store-list"):
            listing.set()
            assert go_on.wait(PATIENCE)
        return NOW

    repository = Repository(bindparam("clock", callable_=clock, type_=BigInteger()))
    store = OperationStore(shared_database, repository)
    slow = asyncio.create_task(store.page(ListQuery("", 10)))
    try:
        assert await asyncio.to_thread(listing.wait, PATIENCE)

        assert (await store.get("ops")).id == "ops"
    finally:
        go_on.set()
    assert [record.id for record in (await slow).records] == ["ops"]
    await store.close()


async def test_a_list_whose_caller_has_gone_is_not_begun(shared_database: Database) -> None:
    fill(shared_database, [replace(TEMPLATE, id="ops")])
    go_on, begun = Event(), 0

    def clock() -> int:
        nonlocal begun
        begun += 1
        assert go_on.wait(PATIENCE)
        return NOW

    repository = Repository(bindparam("clock", callable_=clock, type_=BigInteger()))
    store = OperationStore(shared_database, repository)
    first, second = (asyncio.create_task(store.page(ListQuery("nobody", 10))) for _ in range(2))
    await asyncio.to_thread(eventually, lambda: begun)
    second.cancel()
    await asyncio.sleep(0)
    go_on.set()

    assert (await first).records == ()
    await store.close()
    assert begun == 1


def test_a_page_ends_before_its_bytes_exceed_the_bound(ops: Ops) -> None:
    payload = bytes(1000)
    fill(
        ops.database,
        [
            replace(TEMPLATE, id="1", metadata=payload),
            replace(TEMPLATE, id="2", response=payload),
            replace(TEMPLATE, id="3", error=payload),
            replace(TEMPLATE, id="4", description="d" * 250),  # of up to 4 bytes each
        ],
    )

    assert [len(page) for page in walk(ops, "", limit=4, page_bytes=2500)] == [2, 2]


def test_strings_are_ordered_byte_by_byte_in_a_database_of_another_language(
    postgres: PostgresServer,
) -> None:
    postgres.execute(
        "CREATE DATABASE english TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'"
    )
    english = open_database(postgres.url("english"))
    try:
        migrate(english)
        fill(english, [replace(TEMPLATE, id=name, method=name) for name in ("a", "B", "é", "z")])

        (found,) = walk(on(english), "", parse_filter("method > B AND method <= z"), limit=9)
    finally:
        english.close()

    assert [record.id for record in found] == ["z", "a"]
