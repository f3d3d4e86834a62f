"""Who callers are, by their tokens and certificates; what is known of them, and for how long."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from opservice.auth.authenticator import (
    LEEWAY_SECONDS,
    Authenticator,
    Caller,
    Credentials,
    JwtRules,
)
from opservice.auth.keys import KeySource
from opservice.auth.policy import Policy, StaticToken, StaticTokens, hash_token
from opservice.domain.errors import (
    CredentialsExpired,
    CredentialsMissing,
    OperationNotFound,
    PermissionDenied,
    Unauthenticated,
)
from opservice.domain.identity import Grant, Identity, Right, parse_grant
from opservice.domain.operation import SECOND, Record
from support.certificates import Authority
from support.identities import (
    AUDIENCE,
    ISSUER,
    Issuer,
    client_certificate,
    make_key,
)

FIRST, RSA = make_key("first"), make_key("rsa", "RS256")
RULES = JwtRules(ISSUER, (AUDIENCE,), ("ES256", "RS256"), "opservice")
NOT_VALID = "The token is not valid"
VIEWER = parse_grant("viewer:a")


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path, FIRST, RSA)


async def authenticator_of(
    issuer: Issuer,
    rules: JwtRules = RULES,
    tokens: StaticTokens | None = None,
) -> Authenticator:
    made = Authenticator(Policy(), tokens or {}, rules)
    made.keys = KeySource(str(issuer.file), 3600 * SECOND, made.forget)
    await made.keys.start()
    return made


def identify(authenticator: Authenticator, token: str) -> Identity:
    identity = authenticator.identify_now(Credentials(token))
    assert identity is not None
    return identity


def refusal(authenticator: Authenticator, token: str) -> str:
    """What the caller is told who shows this token."""
    with pytest.raises(Unauthenticated) as caught:
        authenticator.identify_now(Credentials(token))
    return caught.value.message


# Static tokens


def static(subject: str = "alice", *grants: Grant, expires_at: float | None = None) -> Any:
    return {hash_token(subject): StaticToken(subject, grants, expires_at)}


def test_a_static_token_says_who_calls_and_what_he_may_do() -> None:
    authenticator = Authenticator(Policy(), static("alice", VIEWER, expires_at=5.0), clock=float)

    assert identify(authenticator, "alice") == Identity("alice", (VIEWER,), "token", 5.0)


@pytest.mark.parametrize("token", ["", "Alice", "alice ", hash_token("alice")])
def test_a_static_token_that_is_not_in_the_file_is_refused(token: str) -> None:
    assert refusal(Authenticator(Policy(), static()), token) == NOT_VALID


async def test_a_jwt_is_nothing_where_none_are_accepted(issuer: Issuer) -> None:
    assert refusal(Authenticator(Policy(), static()), issuer.token("alice")) == NOT_VALID


async def test_static_tokens_are_accepted_beside_jwts(issuer: Issuer) -> None:
    authenticator = await authenticator_of(issuer, tokens=static("bob"))

    assert identify(authenticator, "bob").source == "token"
    assert identify(authenticator, issuer.token("alice")).source == "jwt"


def test_a_static_token_expires() -> None:
    now = [4.9]
    authenticator = Authenticator(Policy(), static(expires_at=5.0), clock=lambda: now[0])
    assert identify(authenticator, "alice")

    now[0] = 5.0

    with pytest.raises(CredentialsExpired):
        identify(authenticator, "alice")


def test_a_policy_adds_to_what_a_caller_may_do() -> None:
    editor, producer, public = map(parse_grant, ("editor:b", "producer:c", "viewer:public"))
    policy = Policy({"alice": (editor,), "bob": (producer,)}, everyone=(public,))

    identity = identify(Authenticator(policy, static("alice", VIEWER)), "alice")

    assert identity.grants == (VIEWER, editor, public)


@settings(deadline=None)
@given(st.text(), st.text())
def test_whatever_stands_in_a_header_is_accepted_or_refused(header: str, token: str) -> None:
    authenticator = Authenticator(Policy(), {})

    for value in (header, f"Bearer {token}"):
        with pytest.raises(Unauthenticated):
            authenticator.identify_now(Credentials.of([("authorization", value)], None))


# Certificates


class Certificates:
    """Of one authority, as gRPC shows those of clients."""

    def __init__(self, directory: Path) -> None:
        self._authority = Authority(directory)
        self._file = directory / "client"

    def pem(self, uris: Sequence[str] = (), names: Sequence[str] = ()) -> bytes:
        pair = client_certificate(self._authority, self._file, uris, names)
        return pair.certificate.read_bytes()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def pem(certificates: Certificates) -> bytes:
    return certificates.pem(names=["proxy.example"])


@pytest.mark.parametrize(
    ("uris", "names", "subject"),
    [
        (["spiffe://a/b", "spiffe://a/c"], ["a.example"], "spiffe://a/b"),
        ([], ["a.example", "b.example"], "a.example"),
    ],
    ids=["URI", "DNS"],
)
def test_a_certificate_says_who_calls_by_its_first_uri_or_else_dns_name(
    certificates: Certificates, uris: list[str], names: list[str], subject: str
) -> None:
    pem = certificates.pem(uris, names)
    policy = Policy({subject: (VIEWER,)})

    identity = Authenticator(policy, {}).identify_now(Credentials.of([], pem))

    until = x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
    assert identity == Identity(subject, (VIEWER,), "certificate", until)


NAMELESS: dict[str, tuple[list[str], list[str]]] = {
    "no alternative names": ([], []),
    "no text": ([], [""]),
    "a line break": ([], ["a\nb"]),
    "a NUL, where others see the end": (["spiffe://a/alice\0/b"], ["alice"]),
    "more than a subject may have": ([], ["x" * 256]),
}


@pytest.mark.parametrize(("uris", "names"), NAMELESS.values(), ids=NAMELESS)
def test_a_certificate_without_a_name_that_can_be_a_subject_is_refused(
    certificates: Certificates, uris: list[str], names: list[str]
) -> None:
    credentials = Credentials.of([], certificates.pem(uris, names))

    with pytest.raises(Unauthenticated, match="certificate has no URI or DNS name"):
        Authenticator(Policy(), {}).identify_now(credentials)


def test_a_certificate_that_does_not_parse_is_refused() -> None:
    with pytest.raises(Unauthenticated, match="certificate has no URI or DNS name"):
        Authenticator(Policy(), {}).identify_now(Credentials.of([], b"none"))


def test_a_certificate_expires_also_on_a_connection_that_was_made_before(pem: bytes) -> None:
    until = x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
    now = [until - 1]
    authenticator = Authenticator(Policy(), {}, clock=lambda: now[0])
    credentials = Credentials.of([], pem)
    assert authenticator.identify_now(credentials)

    now[0] = until

    with pytest.raises(CredentialsExpired):
        authenticator.identify_now(credentials)


def test_a_token_counts_for_more_than_a_certificate(pem: bytes) -> None:
    authenticator = Authenticator(Policy(), static("alice"))

    identity = authenticator.identify_now(Credentials.of([("authorization", "Bearer alice")], pem))

    assert identity is not None
    assert identity.subject == "alice"


def test_a_wrong_token_is_refused_also_with_a_certificate(pem: bytes) -> None:
    credentials = Credentials.of([("authorization", "Bearer wrong")], pem)

    with pytest.raises(Unauthenticated, match=NOT_VALID):
        Authenticator(Policy(), static("alice")).identify_now(credentials)


# How they are sent


def test_without_credentials_a_caller_is_told_to_send_some() -> None:
    with pytest.raises(CredentialsMissing, match="authorization: Bearer TOKEN"):
        Authenticator(Policy(), {}).identify_now(Credentials.of([("x-request-id", "a")], None))


@pytest.mark.parametrize(
    "value", ["Bearer alice", "bearer alice", "BEARER alice", "Bearer   alice "]
)
def test_the_scheme_is_written_in_any_case(value: str) -> None:
    """RFC 9110, section 11.1."""
    assert Credentials.of([("a", "b"), ("authorization", value)], None).token == "alice"


@pytest.mark.parametrize("value", ["alice", "Basic YTpi", "Bearer", "Beareralice", "", b"\xff"])
def test_another_scheme_is_refused(value: Any) -> None:
    with pytest.raises(Unauthenticated, match="must be `Bearer TOKEN`"):
        Credentials.of([("authorization", value)], None)


def test_more_than_one_authorization_header_is_refused() -> None:
    twice = [("authorization", "Bearer alice")] * 2

    with pytest.raises(Unauthenticated, match="more than one authorization header"):
        Credentials.of(twice, None)


def test_credentials_do_not_show_in_what_is_printed_of_them(pem: bytes) -> None:
    credentials = Credentials.of([("authorization", "Bearer planted-secret")], pem)

    assert "planted-secret" not in repr(credentials)
    assert "BEGIN" not in repr(credentials)
    assert b"planted-secret" not in credentials.key


def test_credentials_are_told_apart() -> None:
    certificate = b"-----BEGIN CERTIFICATE-----"
    keys = {
        Credentials("one").key,
        Credentials("other").key,
        Credentials(None, b"one").key,
        Credentials(None, b"token one").key,
        Credentials(None, certificate).key,
        Credentials(certificate.decode()).key,
    }
    # No certificate begins as a token is told apart.
    assert len(keys) == 5
    assert Credentials("one").key == Credentials("one", certificate).key


# What is known already


async def test_what_is_known_is_not_checked_again(issuer: Issuer) -> None:
    authenticator = await authenticator_of(issuer)
    token = issuer.token("alice")

    assert identify(authenticator, token) is identify(authenticator, token)


async def test_what_is_known_expires(issuer: Issuer) -> None:
    until = int(time.time()) + 60
    token = issuer.token("alice", exp=until)
    authenticator = await authenticator_of(issuer)
    assert identify(authenticator, token)

    authenticator.clock = lambda: until + LEEWAY_SECONDS

    with pytest.raises(CredentialsExpired):
        identify(authenticator, token)


async def test_what_is_forgotten_is_checked_again(issuer: Issuer) -> None:
    authenticator = await authenticator_of(issuer)
    token = issuer.token("alice")
    before = identify(authenticator, token)

    authenticator.forget()

    assert identify(authenticator, token) is not before


def test_of_very_many_who_are_known_the_first_is_forgotten() -> None:
    tokens = {hash_token(str(n)): StaticToken(str(n), (), None) for n in range(10_001)}
    authenticator = Authenticator(Policy(), tokens)
    first, second = identify(authenticator, "0"), identify(authenticator, "1")

    for number in range(2, 10_001):
        identify(authenticator, str(number))

    assert identify(authenticator, "1") is second
    assert identify(authenticator, "0") is not first


def test_what_is_refused_is_not_kept() -> None:
    authenticator = Authenticator(Policy(), static())
    refusal(authenticator, "bob")

    authenticator.replace(Policy(), static("bob"))

    assert identify(authenticator, "bob").subject == "bob"


def test_a_policy_that_is_replaced_holds_at_once() -> None:
    authenticator = Authenticator(Policy({"alice": (VIEWER,)}), static())
    assert identify(authenticator, "alice").grants == (VIEWER,)

    authenticator.replace(Policy(), static())

    assert identify(authenticator, "alice").grants == ()


def test_a_token_that_is_taken_away_is_refused_at_once() -> None:
    authenticator = Authenticator(Policy(), static())
    assert identify(authenticator, "alice")

    authenticator.replace(Policy(), static("bob"))

    assert refusal(authenticator, "alice") == NOT_VALID


def test_those_who_depend_on_who_callers_are_are_told() -> None:
    told = []
    authenticator = Authenticator(Policy(), static())
    authenticator.listeners.append(lambda: told.append(identify(authenticator, "alice").grants))
    identify(authenticator, "alice")

    authenticator.forget()
    authenticator.replace(Policy(everyone=(VIEWER,)), static())

    # With what holds from then on.
    assert told == [(), (VIEWER,)]


# What a caller may do


def record(parent: str = "a", created_by: str = "bob") -> Record:
    values: dict[str, Any] = {each.name: None for each in fields(Record)}
    return Record(**{**values, "id": "ops1", "parent": parent, "created_by": created_by})


def caller(right: Right, *grants: str) -> Caller:
    return Caller(Identity("alice", tuple(map(parse_grant, grants))), right)


def test_what_a_caller_may_not_see_is_not_there() -> None:
    for right in Right:
        with pytest.raises(OperationNotFound, match=r"^Operation ops1 not found$") as caught:
            caller(right, "admin:b").admit(record())
        assert caught.value.hidden


@pytest.mark.parametrize("right", [Right.CANCEL, Right.DELETE, Right.PRODUCE])
def test_what_a_caller_may_see_but_not_change_he_is_told(right: Right) -> None:
    message = f"You may see operation ops1, but not {right.value} it"

    with pytest.raises(PermissionDenied, match=f"^{re.escape(message)}$"):
        caller(right, "viewer:a").admit(record())


@pytest.mark.parametrize("right", Right)
def test_what_a_caller_has_the_right_to_he_may_do(right: Right) -> None:
    caller(right, "admin:a").admit(record())


@pytest.mark.parametrize(
    ("parent", "where"), [("b/c", "under b/c"), ("", "without a parent")], ids=["b/c", "none"]
)
def test_who_may_not_produce_under_a_parent_may_not_start_there(parent: str, where: str) -> None:
    with pytest.raises(PermissionDenied, match=f"^You may not start operations {where}$"):
        caller(Right.PRODUCE, "producer:a/*", "editor:b/*").admit_start(parent)


def test_who_may_produce_under_a_parent_may_start_there() -> None:
    caller(Right.PRODUCE, "producer:a/*").admit_start("a/b")
