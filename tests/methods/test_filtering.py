"""The filter's grammar, against AIP-160's, and what is said of filters that are wrong."""

from __future__ import annotations

import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opservice.domain.filters import (
    Anchor,
    And,
    Comparison,
    Condition,
    Field,
    Match,
    Not,
    Operator,
    Or,
    Present,
)
from opservice.methods.filtering import (
    MAX_COMPARISONS,
    MAX_DEPTH,
    MAX_FILTER,
    MAX_PARENTHESES,
    FilterError,
    parse_filter,
)
from support.filters import filters


def id_is(value: str) -> Condition:
    return Comparison(Field.ID, Operator.EQUAL, value)


A, B, C, D = map(id_is, "abcd")


def refusal(text: str) -> str:
    with pytest.raises(FilterError) as caught:
        parse_filter(text)
    return str(caught.value)


@given(filters())
def test_what_was_written_is_read_again(written: tuple[Condition, str]) -> None:
    condition, text = written

    assert parse_filter(text) == condition


@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_an_empty_filter_is_none(text: str) -> None:
    assert parse_filter(text) is None


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("id=a AND id=b OR id=c", And((A, Or((B, C))))),
        ("id=a OR id=b AND id=c", And((Or((A, B)), C))),
        ("id=a id=b OR id=c", And((A, Or((B, C))))),
        ("id=a id=b AND id=c id=d", And((A, B, C, D))),
        ("NOT id=a OR id=b", Or((Not(A), B))),
        ("-id=a id=b", And((Not(A), B))),
        ("NOT (id=a OR id=b)", Not(Or((A, B)))),
        ("-(id=a id=b)", Not(And((A, B)))),
        ("(id=a AND id=b) OR id=c", Or((And((A, B)), C))),
        ("((id=a))", A),
        ("id=a-b", id_is("a-b")),
        ("id=-5", id_is("-5")),
    ],
)
def test_operators_bind_as_in_aip_160(text: str, meaning: Condition) -> None:
    assert parse_filter(text) == meaning


@pytest.mark.parametrize("text", ["id=a", " id = a ", "id='a'", 'id\n=\t"a"'])
def test_a_restriction_takes_no_notice_of_space_or_quotes(text: str) -> None:
    assert parse_filter(text) == A


def test_a_value_may_have_dots_without_quotes() -> None:
    meaning = Comparison(Field.METHOD, Operator.EQUAL, "yandex.cloud.compute.v1.Create")

    assert parse_filter("method = yandex.cloud.compute.v1.Create") == meaning


def test_unequal_means_not_equal() -> None:
    assert parse_filter("error.code != 5") == parse_filter("NOT error.code = 5")


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ('id = "ab*"', Match(Field.ID, "ab", Anchor.START)),
        ('id = "*ab"', Match(Field.ID, "ab", Anchor.END)),
        ('id = "*ab*"', Match(Field.ID, "ab", Anchor.ANYWHERE)),
        ("id = ab*", Match(Field.ID, "ab", Anchor.START)),
        ('id = "*"', Match(Field.ID, "", Anchor.ANYWHERE)),
        (r'id = "ab\*"', id_is("ab*")),
        (r'id = "a\*b"', id_is("a*b")),
        (r'id = "\**"', Match(Field.ID, "*", Anchor.START)),
        (r'id = "\"\\\'"', id_is("\"\\'")),
        ("id : ab", Match(Field.ID, "ab", Anchor.ANYWHERE)),
        (r'id : "\*"', Match(Field.ID, "*", Anchor.ANYWHERE)),
        ("id : *", Present(Field.ID)),
        ('error.code : "*"', Present(Field.ERROR_CODE)),
        ("error.code : 5", Comparison(Field.ERROR_CODE, Operator.EQUAL, 5)),
    ],
)
def test_an_asterisk_is_a_wildcard_at_the_ends_unless_escaped(
    text: str, meaning: Condition
) -> None:
    assert parse_filter(text) == meaning


@pytest.mark.parametrize("code", ["NOT_FOUND", "5", '"NOT_FOUND"'])
def test_a_code_is_a_number_or_a_name(code: str) -> None:
    assert parse_filter(f"error.code = {code}") == Comparison(Field.ERROR_CODE, Operator.EQUAL, 5)


@pytest.mark.parametrize(
    "written",
    [
        "2026-01-02T03:04:05.25Z",
        '"2026-01-02T03:04:05.250Z"',
        "2026-01-02t03:04:05.250000000z",
        "2026-01-02T06:34:05.25+03:30",
        "'2026-01-01T22:04:05.25-05:00'",
    ],
)
def test_a_time_is_as_in_rfc_3339(written: str) -> None:
    moment = 1_767_323_045_250_000

    assert parse_filter(f"created_at>={written}") == Comparison(
        Field.CREATED_AT, Operator.GREATER_OR_EQUAL, moment
    )


FIELDS = (
    "cancelled_by, created_at, created_by, description, done, error.code, id, method, modified_at,"
    " producer, labels.KEY"
)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("done=true foo=5", 11, f'unknown field "foo"; the fields are {FIELDS}'),
        ("Done = true", 1, f'unknown field "Done"; the fields are {FIELDS}'),
        ("done", 5, "expected one of = != < <= > >= :, found the end"),
        ("done = ", 8, "expected a value, found the end"),
        ("done = true OR", 15, "expected a field, NOT, -, or (, found the end"),
        ("AND id=a", 1, "expected a field, NOT, -, or (, found AND"),
        ("NOT NOT id=a", 5, "expected a field or (, found NOT"),
        ("id=a or id=b", 9, "expected one of = != < <= > >= :, found id=b"),
        ("(id=a", 6, "expected a ), found the end"),
        ("id=a)", 5, "expected AND, OR, or a field, found )"),
        ('"id"=a', 1, 'expected a field, NOT, -, or (, found "id"=a'),
        ("id=AND", 4, "expected a value, found AND"),
        ("id=(a OR b)", 4, "expected a value, found ("),
        ("now(id)", 4, "expected one of = != < <= > >= :, found ("),
        ("id=a,b", 5, "expected AND, OR, or a field, found ,b"),
        ("id ! a", 4, "expected one of = != < <= > >= :, found !"),
        ('id = a id = "b', 13, "the string that begins here does not end"),
        (r'id = "a\nb"', 6, r'"a\nb" has an unknown escape \n; there are \\ \" \' \*'),
        ('id = "a*b"', 6, '"a*b" has a * in its middle: at the ends it stands for any text'),
        ('id : "a*"', 6, '"a*" has a wildcard, which goes with = and !='),
        ("id > a*", 6, "a* has a wildcard, which goes with = and !="),
        ("done = yes", 8, "yes is neither true nor false"),
        ("done > true", 6, "done goes only with = != :"),
        ("error.code = NOWHERE", 14, "NOWHERE is neither a 32-bit number nor a google.rpc.Code"),
        ("error.code = 2147483648", 14, "2147483648 is neither a 32-bit number"),
        ("error.code = 5*", 14, "5* has a wildcard"),
        ("created_at > 2026-01-02", 14, "2026-01-02 is not an RFC 3339 time such as"),
        ("created_at > 2026-02-30T00:00:00Z", 14, "2026-02-30T00:00:00Z is not a time"),
        ("created_at > 2026-01-01T00:00:00+24:00", 14, "2026-01-01T00:00:00+24:00 is not a time"),
        ("created_at > 2026-01-01T00:00:00.0000001Z", 14, "0.0000001Z is finer than a microsecond"),
    ],
)
def test_a_wrong_filter_is_refused_with_the_place_and_the_reason(
    text: str, where: int, what: str
) -> None:
    said = refusal(text)

    place, _, rest = said.partition(": ")
    assert place == f"at character {where}"
    assert what in said
    assert rest.splitlines()[-1].index("^") == 2 + where - 1


def test_the_caret_stands_under_the_place_in_a_long_filter() -> None:
    _, excerpt, caret = refusal("id=a OR " * 50 + "foo = 1 " + "OR id=b " * 9).splitlines()

    assert excerpt[caret.index("^") :].startswith("foo = 1")
    assert len(excerpt) < 80


def test_depth_is_bounded() -> None:
    def nested(depth: int) -> str:
        return (
            "id=a" if depth == 1 else f"(id=a {'OR' if depth % 2 else 'AND'} {nested(depth - 1)})"
        )

    assert parse_filter(nested(MAX_DEPTH))
    assert f"is nested {MAX_DEPTH + 1} deep" in refusal(nested(MAX_DEPTH + 1))


def test_comparisons_are_bounded() -> None:
    assert parse_filter("id=a " * MAX_COMPARISONS)
    assert refusal("id=a " * 101).startswith("at character 503: more than 100 comparisons")


def test_parentheses_are_bounded() -> None:
    def within(pairs: int) -> str:
        return "(" * pairs + "id=a" + ")" * pairs

    assert parse_filter(within(MAX_PARENTHESES)) == parse_filter("id=a")
    assert refusal(within(101)).startswith("at character 101: more than 100 pairs of parentheses")


def test_what_is_quoted_counts_towards_no_bound() -> None:
    quoted = "(=" * (MAX_COMPARISONS + 1)

    assert parse_filter(f"id='{quoted}'") == id_is(quoted)


def test_what_is_beyond_a_bound_is_not_read() -> None:
    assert "more than 100 comparisons" in refusal("id=a " * 101 + "foo=1 '")


@pytest.mark.parametrize(
    "text",
    [
        "(" * MAX_PARENTHESES + "id=a" + ")" * MAX_PARENTHESES,
        "-(" * MAX_PARENTHESES + "id=a" + ")" * MAX_PARENTHESES,
        "(" * MAX_PARENTHESES,
        "NOT (" * MAX_PARENTHESES,
        "-(id=a OR " * 99 + "id=a" + ")" * 99,
    ],
    ids=["parentheses", "negations", "open", "open negations", "alternating"],
)
def test_no_nesting_exhausts_the_stack(text: str) -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(_stack_depth() + 60)
    try:
        parse_filter(text)
    except FilterError:
        pass
    finally:
        sys.setrecursionlimit(limit)


def _stack_depth() -> int:
    depth, frame = 0, sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    return depth


PIECES = [
    "id",
    "done",
    "created_at",
    "error.code",
    "=",
    "!=",
    ":",
    "<",
    "a",
    "*",
    "true",
    "5",
    '"',
    "'",
]
PIECES += [
    "\\",
    "(",
    ")",
    "-",
    " ",
    " AND ",
    " OR ",
    "NOT ",
    "2026-01-02T03:04:05Z",
    ",",
    ".",
    "\n",
    "é",
]


@settings(max_examples=500)
@given(st.text(max_size=40) | st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
@example("=" * MAX_FILTER)
def test_anything_else_is_refused_in_words_of_the_filter_alone(text: str) -> None:
    try:
        parse_filter(text)
    except FilterError as error:
        said = str(error)
        assert said.startswith("at character ")
        assert not any(name in said for name in ("__ANON", "LPAR", "$END", "Token", "QUOTED"))
