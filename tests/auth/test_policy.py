"""The policy and the static tokens: what is read of their files, and what is wrong with others."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from opservice.auth.policy import (
    Policy,
    StaticToken,
    hash_token,
    new_token,
    read_policy,
    read_tokens,
    valid_subject,
)
from opservice.domain.errors import StartupError
from opservice.domain.identity import parse_grant

HASH = "0123456789abcdef" * 4
SECRET = "planted-secret"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.yaml"


def test_a_policy_grants_by_subject_and_to_everyone(file: Path) -> None:
    file.write_text(
        "everyone: [viewer:public/*]\n"
        "subjects:\n"
        "  alice: [editor:folders/b1g/*, 'viewer:*']\n"
        "  spiffe://example.org/registry: [producer:*]\n"
    )

    policy = read_policy(file)

    public, editor, viewer, producer = map(
        parse_grant, ("viewer:public/*", "editor:folders/b1g/*", "viewer:*", "producer:*")
    )
    assert policy.grants_of("alice") == (editor, viewer, public)
    assert policy.grants_of("spiffe://example.org/registry") == (producer, public)
    assert policy.grants_of("nobody") == (public,)


@pytest.mark.parametrize("text", ["{}", "subjects:", "everyone:", "subjects: {}\neveryone: []"])
def test_a_policy_may_grant_nothing(file: Path, text: str) -> None:
    file.write_text(text)

    assert read_policy(file) == Policy()


def test_a_policy_may_name_a_subject_without_grants(file: Path) -> None:
    file.write_text("subjects: {alice: , bob: []}")

    assert read_policy(file).grants_of("alice") == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the policy: expected a mapping"),
        ("viewer:*", "the policy: expected a mapping"),
        ("[alice]", "the policy: expected a mapping"),
        ("subject: {alice: []}\nall: []", "the policy: unknown all, subject"),
        ("subjects: [alice]", "subjects: expected a mapping"),
        ("subjects: {1: []}", "subjects: 1 is no subject: quote it if it is text"),
        ("subjects: {no: []}", "subjects: False is no subject: quote it if it is text"),
        ("subjects: {'': []}", "subjects: '' is no subject"),
        ('subjects: {"a\\nb": []}', r"subjects: 'a\nb' is no subject"),
        ("subjects: {alice: viewer:*}", "alice: expected a list of grants"),
        ("subjects: {alice: [5]}", "alice: expected a list of grants, such as"),
        ("subjects: {alice: [viewer:a*]}", "alice: 'viewer:a*': a parent is segments"),
        ("subjects: {alice: [owner:a]}", "alice: 'owner:a': unknown role"),
        ("everyone: viewer:*", "everyone: expected a list of grants"),
        ("everyone: {viewer: a}", "everyone: expected a list of grants"),
        ("everyone: [viewer]", "everyone: 'viewer' is no grant"),
    ],
)
def test_a_policy_that_is_wrong_is_refused_with_what_and_where(
    file: Path, text: str, complaint: str
) -> None:
    file.write_text(text)

    with pytest.raises(StartupError) as caught:
        read_policy(file)

    assert caught.value.message.startswith(f"the policy {file} cannot be used: {complaint}")


def test_static_tokens_are_read_by_their_hash(file: Path) -> None:
    other = HASH[::-1]
    file.write_text(
        f"- subject: alice\n  sha256: {HASH}\n  grants: [viewer:*]\n  expires: 2027-01-01T00:00:00Z\n"
        f"- subject: alice\n  sha256: {other}\n"
    )

    tokens = read_tokens(file)

    until = datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    assert tokens == {
        HASH: StaticToken("alice", (parse_grant("viewer:*"),), until),
        other: StaticToken("alice", (), None),
    }


@pytest.mark.parametrize(
    ("expires", "moment"),
    [
        ("2027-01-01T03:00:00+03:00", datetime(2027, 1, 1, tzinfo=UTC)),
        ("2026-12-31 19:00:00 -5", datetime(2027, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_a_token_expires_at_a_moment_of_any_time_zone(
    file: Path, expires: str, moment: datetime
) -> None:
    file.write_text(f"- {{subject: alice, sha256: {HASH}, expires: {expires}}}")

    assert read_tokens(file)[HASH].expires_at == moment.timestamp()


def test_a_file_may_have_no_tokens_yet(file: Path) -> None:
    file.write_text("[]")

    assert read_tokens(file) == {}


ENTRY = f"subject: alice, sha256: {HASH}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected a list of entries that begin with '- subject:'"),
        (f"{{{ENTRY}}}", "expected a list of entries"),
        ("alice", "expected a list of entries"),
        (f"- {{{ENTRY}}}\n- alice", "entry 2: expected a mapping"),
        (f"- {{{ENTRY}, role: viewer, token: {SECRET}}}", "entry 1: unknown role, token"),
        (f"- {{sha256: {HASH}}}", "entry 1: subject must be text of 1 to 255 characters"),
        (f"- {{subject: 5, sha256: {HASH}}}", "entry 1: subject must be text"),
        (f"- {{subject: '', sha256: {HASH}}}", "entry 1: subject must be text"),
        (f"- {{subject: {'a' * 256}, sha256: {HASH}}}", "entry 1: subject must be text"),
        ("- {subject: a}", "entry 1: sha256 must be 64 hexadecimal digits in quotes"),
        (f"- {{subject: a, sha256: {SECRET}}}", "entry 1: sha256 must be"),
        (f"- {{subject: a, sha256: {HASH.upper()}}}", "entry 1: sha256 must be"),
        (f"- {{subject: a, sha256: {HASH}0}}", "entry 1: sha256 must be"),
        (f"- {{subject: a, sha256: '{HASH}\n\n'}}", "entry 1: sha256 must be"),
        (f"- {{subject: a, sha256: {'1' * 64}}}", "entry 1: sha256 must be"),
        (f"- {{{ENTRY}, grants: viewer:*}}", "entry 1: expected a list of grants"),
        (f"- {{{ENTRY}, grants: [owner:a]}}", "entry 1: 'owner:a': unknown role"),
        (f"- {{{ENTRY}, expires: 2027-01-01}}", "entry 1: expires must be a time such as"),
        (f"- {{{ENTRY}, expires: 2027-01-01T00:00:00}}", "entry 1: expires must be a time"),
        (f"- {{{ENTRY}, expires: tomorrow}}", "entry 1: expires must be a time"),
        (f"- {{{ENTRY}, expires: 0}}", "entry 1: expires must be a time"),
        (f"- {{{ENTRY}}}\n- {{{ENTRY}}}", "entry 2: the token stands there twice"),
    ],
)
def test_tokens_that_are_wrong_are_refused_with_what_and_where(
    file: Path, text: str, complaint: str
) -> None:
    file.write_text(text)

    with pytest.raises(StartupError) as caught:
        read_tokens(file)

    assert caught.value.message.startswith(f"the tokens {file} cannot be used: {complaint}")
    assert SECRET not in caught.value.message
    assert HASH not in caught.value.message


@pytest.mark.parametrize("year", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_at_the_end_of_all_times_is_read(file: Path, year: str) -> None:
    """It is no date any more in UTC."""
    file.write_text(f"- {{{ENTRY}, expires: {year}}}")

    assert read_tokens(file)[HASH].expires_at is not None


NOT_YAML = {
    "a mapping in a mapping": (f"alice: {SECRET}: c".encode(), " at line 1"),
    "a list without a beginning": (f"everyone:\n]{SECRET}".encode(), " at line 2"),
    "two documents": (f"everyone:\n---\n{SECRET}".encode(), " at line 2"),
    "a tag of Python": (f"!!python/object/apply:os.system ['{SECRET}']".encode(), " at line 1"),
    "bytes that are no text": (b"\xff" + SECRET.encode(), ""),
    "a NUL": (f"a\0{SECRET}".encode(), ""),
    "a date that is none": (b"everyone: 2027-13-01", ""),
    "a time that is none": (b"- {expires: 2027-02-30T00:00:00Z}", ""),
    "a number without an end": (b"everyone: " + b"9" * 5000, ""),
    "a subject twice": (b"subjects:\n  {alice: [],\n   alice: [admin:*]}", " at line 2"),
    "everyone twice": (b"everyone: []\nsubjects:\neveryone: [admin:*]", " at line 1"),
    "a truth that is none": (f"everyone: !!bool {SECRET}".encode(), ""),
    "a tagged time that is none": (f"everyone: !!timestamp {SECRET}".encode(), ""),
    "a number without digits": (b"everyone: !!int ''", ""),
    "two subjects of a token": (b"- subject: alice\n  subject: bob", " at line 1"),
}


@pytest.mark.parametrize(("content", "where"), NOT_YAML.values(), ids=NOT_YAML)
def test_what_is_not_yaml_is_refused_without_being_shown(
    file: Path, content: bytes, where: str
) -> None:
    """Keys that stand twice are none either, of which PyYAML would take the last."""
    file.write_bytes(content)

    for read in (read_policy, read_tokens):
        with pytest.raises(StartupError) as caught:
            read(file)
        assert caught.value.message == f"{file} is not YAML{where}"
        # Nor is it in what a traceback would show.
        assert SECRET not in repr(caught.value.__cause__)


def test_lists_without_an_end_are_refused(file: Path) -> None:
    file.write_text("[" * 5000)

    with pytest.raises(StartupError, match=f"^{file} is not YAML"):
        read_policy(file)


def test_a_subject_may_have_no_more_grants_than_a_token(file: Path) -> None:
    grants = "viewer:a, " * 101
    file.write_text(f"subjects: {{alice: [{grants}]}}")

    with pytest.raises(StartupError, match="alice: 101 grants, at most 100 are allowed"):
        read_policy(file)


@pytest.mark.parametrize(
    ("path", "complaint"), [("missing.yaml", "No such file or directory"), ("", "Is a directory")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, path: str, complaint: str) -> None:
    for read in (read_policy, read_tokens):
        with pytest.raises(StartupError) as caught:
            read(tmp_path / path)
        assert caught.value.message == f"cannot read {tmp_path / path}: {complaint}"


def test_a_token_is_new_and_can_be_told_by_its_beginning() -> None:
    tokens = {new_token() for _ in range(100)}

    assert len(tokens) == 100
    assert {token[:10] for token in tokens} == {"opservice_"}
    # 32 bytes in base64.
    assert {len(token) for token in tokens} == {10 + 43}


def test_a_token_is_hashed_as_sha256sum_does() -> None:
    assert hash_token("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("subject", ["a", "a b", "é", "x" * 255, "spiffe://example.org/a"])
def test_printable_text_may_be_a_subject(subject: str) -> None:
    assert valid_subject(subject)


@pytest.mark.parametrize("subject", ["", "x" * 256, "a\nb", "a\u202eb", "\ud800", None, 5, b"a"])
def test_anything_else_is_no_subject(subject: object) -> None:
    assert not valid_subject(subject)
