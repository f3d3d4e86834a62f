"""Grants and what they allow: which right, on which parents, and what of it a list shows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opservice.domain.identity import (
    ANYBODY,
    EVERYWHERE,
    RIGHTS,
    Grant,
    Identity,
    Right,
    Role,
    Scope,
    Subtree,
    parse_grant,
)

SEGMENTS = st.text(
    st.characters(exclude_characters="/*", codec="utf-8").filter(str.isprintable),
    min_size=1,
    max_size=4,
)
PARENTS = st.lists(SEGMENTS, max_size=4).map("/".join)
# Of few names, so that one often lies below another or is the beginning of its text.
NEAR = st.lists(st.sampled_from(["a", "b", "a-b", "ab"]), max_size=3).map("/".join)
SUBTREES = st.builds(Subtree, NEAR, st.booleans())


def of(*grants: str, subject: str = "alice") -> Identity:
    return Identity(subject, tuple(map(parse_grant, grants)))


@pytest.mark.parametrize(
    ("text", "role", "subtree"),
    [
        ("viewer:folders/b1g", Role.VIEWER, Subtree("folders/b1g")),
        ("editor:folders/b1g/*", Role.EDITOR, Subtree("folders/b1g", below=True)),
        ("producer:*", Role.PRODUCER, EVERYWHERE),
        ("admin:", Role.ADMIN, Subtree("")),
        ("viewer:projects/example.com:api", Role.VIEWER, Subtree("projects/example.com:api")),
    ],
)
def test_a_grant_is_read(text: str, role: Role, subtree: Subtree) -> None:
    assert parse_grant(text) == Grant(role, subtree)


@settings(deadline=None)
@given(st.builds(Grant, st.sampled_from(Role), st.builds(Subtree, PARENTS, st.booleans())))
def test_a_grant_is_written_as_it_is_read(grant: Grant) -> None:
    assert parse_grant(str(grant)) == grant


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "'' is no grant: expected ROLE:PARENT"),
        ("viewer", "'viewer' is no grant: expected ROLE:PARENT"),
        ("folders/b1g/*", "'folders/b1g/*' is no grant"),
        ("owner:a", "'owner:a': unknown role; the roles are viewer, editor, producer, admin"),
        ("Viewer:a", "'Viewer:a': unknown role"),
        (" viewer:a", "' viewer:a': unknown role"),
        (":a", "':a': unknown role"),
        ("viewer:a*", "'viewer:a*': a parent is segments joined by '/'"),
        ("viewer:*/a", "with '/*' only at its end"),
        ("viewer:a/*/b", "with '/*' only at its end"),
        ("viewer:**", "with '/*' only at its end"),
        ("viewer:a/**", "with '/*' only at its end"),
        ("viewer:a/*/*", "with '/*' only at its end"),
        ("viewer:/", "a parent is segments"),
        ("viewer:/a", "a parent is segments"),
        ("viewer:a/", "a parent is segments"),
        ("viewer:a//b", "a parent is segments"),
        ("viewer:a//*", "a parent is segments"),
        ("viewer:/*", "a parent is segments"),
        ("viewer:a\nb", r"'viewer:a\nb': a parent is segments"),
        ("viewer:a\u202eb", r"'viewer:a\u202eb': a parent is segments"),
    ],
)
def test_what_is_no_grant_is_refused_with_what_is_wrong(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"^'") as caught:
        parse_grant(text)

    assert complaint in str(caught.value)


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_grant_or_is_refused(text: str) -> None:
    try:
        grant = parse_grant(text)
    except ValueError:
        return
    assert str(grant) == text


@pytest.mark.parametrize("text", ["x" * 1000, "x:" + "y" * 1000, "viewer:*" + "y" * 1000])
def test_a_refusal_shows_little_of_what_is_long(text: str) -> None:
    with pytest.raises(ValueError, match=r"^'") as caught:
        parse_grant(text)

    assert len(str(caught.value)) < 200


@settings(deadline=None)
@given(SUBTREES, NEAR)
def test_a_subtree_covers_its_parent_and_what_is_below_by_whole_segments(
    subtree: Subtree, parent: str
) -> None:
    segments, outer = (each.split("/") if each else [] for each in (parent, subtree.parent))
    begins = segments[: len(outer)] == outer

    assert subtree.covers(parent) == (begins if subtree.below else segments == outer)


@pytest.mark.parametrize(
    ("role", "rights"),
    [
        (Role.VIEWER, {Right.SEE}),
        (Role.EDITOR, {Right.SEE, Right.CANCEL, Right.DELETE}),
        (Role.PRODUCER, {Right.SEE, Right.PRODUCE}),
        (Role.ADMIN, {Right.SEE, Right.CANCEL, Right.DELETE, Right.PRODUCE}),
    ],
)
def test_a_role_has_these_rights_and_no_others(role: Role, rights: set[Right]) -> None:
    identity = of(f"{role.value}:a")

    assert {right for right in Right if identity.may(right, "a", "bob")} == rights


def test_a_grant_is_of_use_for_its_own_parents_only() -> None:
    identity = of("admin:a", "viewer:b/*")

    assert not any(identity.may(right, "a/c", "bob") for right in Right)
    assert not identity.may(Right.CANCEL, "b", "bob")


def test_rights_of_several_grants_add_up() -> None:
    identity = of("editor:a/*", "producer:a/b")

    assert {right for right in Right if identity.may(right, "a/b", "bob")} == set(Right)


def test_everybody_may_see_and_cancel_what_is_his_own() -> None:
    may = of().may

    assert {right for right in Right if may(right, "anywhere", "alice")} == {
        Right.SEE,
        Right.CANCEL,
    }


def test_what_nobody_is_said_to_have_created_is_not_everybodys_own() -> None:
    assert not of(subject="").may(Right.SEE, "anywhere", "")


def test_what_somebody_else_created_is_not_ones_own() -> None:
    assert not any(of().may(right, "anywhere", "alice2") for right in Right)


def test_anybody_of_a_server_that_asks_nobody_may_do_everything() -> None:
    assert all(ANYBODY.may(right, parent, "bob") for right in Right for parent in ("", "a/b"))
    assert ANYBODY.scope() is None


@pytest.mark.parametrize("role", Role)
def test_a_role_everywhere_shows_everything(role: Role) -> None:
    assert of("viewer:a", f"{role.value}:*").scope() is None


def test_without_grants_only_what_is_ones_own_is_shown() -> None:
    assert of().scope() == Scope((), "alice")


@pytest.mark.parametrize(
    ("grants", "shown"),
    [
        (["viewer:a/*", "editor:a/b/*", "producer:a/b", "admin:a"], ["a/*"]),
        (["viewer:a", "viewer:a/b"], ["a", "a/b"]),
        (["viewer:a/*", "viewer:a-b/*", "viewer:a/c", "viewer:ab"], ["a/*", "a-b/*", "ab"]),
        (["viewer:", "viewer:a"], ["", "a"]),
        (["viewer:a", "editor:a"], ["a"]),
    ],
    ids=str,
)
def test_a_scope_has_no_subtree_within_another(grants: list[str], shown: list[str]) -> None:
    scope = of(*grants).scope()

    assert scope is not None
    assert sorted(map(str, scope.subtrees)) == sorted(shown)


@settings(deadline=None)
@given(st.lists(SUBTREES, max_size=6))
def test_a_scope_names_no_subtree_in_vain(subtrees: list[Subtree]) -> None:
    scope = Identity("alice", tuple(Grant(Role.VIEWER, each) for each in subtrees)).scope()

    for each in () if scope is None else scope.subtrees:
        others = [other for other in scope.subtrees if other != each] if scope else []
        assert not any(
            other.covers(each.parent) for other in others if other.below or not each.below
        )


@settings(deadline=None)
@given(st.lists(st.builds(Grant, st.sampled_from(Role), SUBTREES), max_size=6), NEAR)
def test_a_scope_shows_what_may_be_seen_and_nothing_else(grants: list[Grant], parent: str) -> None:
    identity = Identity("alice", tuple(grants))

    scope = identity.scope()

    shown = scope is None or any(each.covers(parent) for each in scope.subtrees)
    assert shown == identity.may(Right.SEE, parent, "bob")


def test_every_role_may_see() -> None:
    """Scope counts on it."""
    assert all(Right.SEE in rights for rights in RIGHTS.values())
    assert RIGHTS.keys() == set(Role)
