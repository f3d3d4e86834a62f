"""JSON Web Tokens: which are good, and what they say of their callers."""

from __future__ import annotations

import asyncio
import json
import time
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auth.test_authenticator import (
    FIRST,
    NOT_VALID,
    RSA,
    VIEWER,
    authenticator_of,
    identify,
    refusal,
)
from opservice.auth import keys as keys_module
from opservice.auth.authenticator import (
    LEEWAY_SECONDS,
    Credentials,
    JwtRules,
)
from opservice.domain.errors import (
    CredentialsExpired,
    Unauthenticated,
)
from opservice.domain.identity import EVERYWHERE, Grant, Identity, Role, parse_grant
from support.identities import (
    AUDIENCE,
    ISSUER,
    Issuer,
    SigningKey,
    make_key,
    with_another_signature,
    with_claims,
)

OTHER = make_key("other")


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path, FIRST, RSA)


@pytest.mark.parametrize("key", [FIRST, RSA], ids=["ES256", "RS256"])
async def test_a_good_token_says_who_calls_and_what_he_may_do(
    issuer: Issuer, key: SigningKey
) -> None:
    until = int(time.time()) + 60
    token = issuer.token("alice", "viewer:a", key=key, exp=until)

    identity = identify(await authenticator_of(issuer), token)

    assert identity == Identity("alice", (VIEWER,), "jwt", until + LEEWAY_SECONDS)


@pytest.mark.parametrize("claim", ["exp", "aud", "iss", "sub"])
async def test_a_token_without_a_claim_that_is_needed_is_refused(
    issuer: Issuer, claim: str
) -> None:
    token = issuer.token("alice", "admin:*", without=[claim])

    assert refusal(await authenticator_of(issuer), token) == NOT_VALID


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"aud": "another"}, "The token is for another audience"),
        ({"aud": ["another", "opservic"]}, "The token is for another audience"),
        ({"aud": []}, NOT_VALID),
        ({"aud": ""}, NOT_VALID),
        ({"aud": 5}, "The token is for another audience"),
        ({"iss": "https://issuer.example.org"}, "The token is of another issuer"),
        ({"iss": f"{ISSUER}/"}, "The token is of another issuer"),
        ({"iss": [ISSUER]}, "The token is of another issuer"),
        ({"nbf": 10**10}, NOT_VALID),
        ({"iat": 10**10}, NOT_VALID),
        ({"exp": "soon"}, NOT_VALID),
        ({"exp": None}, NOT_VALID),
        ({"exp": float("inf")}, NOT_VALID),
        ({"exp": float("nan")}, NOT_VALID),
        ({"exp": 10**400}, NOT_VALID),
        ({"exp": [1]}, NOT_VALID),
        ({"exp": 0}, "The credentials have expired."),
        ({"exp": -(10**30)}, "The credentials have expired."),
    ],
    ids=str,
)
async def test_a_token_with_a_wrong_claim_is_refused_with_what_is_wrong(
    issuer: Issuer, claims: dict[str, Any], message: str
) -> None:
    token = issuer.token("alice", "admin:*", **claims)

    assert refusal(await authenticator_of(issuer), token) == message


@pytest.mark.parametrize("audience", ["second", ["second"], ["elsewhere", AUDIENCE]], ids=str)
async def test_one_audience_of_several_is_enough(issuer: Issuer, audience: object) -> None:
    rules = JwtRules(ISSUER, (AUDIENCE, "second"), ("ES256",), "opservice")

    identity = identify(await authenticator_of(issuer, rules), issuer.token("a", aud=audience))

    assert identity.subject == "a"


async def test_clocks_may_differ_a_little(issuer: Issuer) -> None:
    now = time.time()
    authenticator = await authenticator_of(issuer)

    fast = issuer.token("fast", nbf=now + LEEWAY_SECONDS / 2, iat=now + LEEWAY_SECONDS / 2)
    slow = issuer.token("slow", exp=now - LEEWAY_SECONDS / 2)

    assert identify(authenticator, fast).subject == "fast"
    assert identify(authenticator, slow).subject == "slow"


async def test_clocks_may_not_differ_much(issuer: Issuer) -> None:
    token = issuer.token("alice", exp=time.time() - 2 * LEEWAY_SECONDS)

    with pytest.raises(CredentialsExpired):
        identify(await authenticator_of(issuer), token)


NOT_ACCEPTED = "The token is signed by an algorithm that is not accepted"


async def test_a_token_that_nobody_signed_is_refused(issuer: Issuer) -> None:
    assert refusal(await authenticator_of(issuer), issuer.unsigned("a", "admin:*")) == NOT_ACCEPTED


async def test_a_token_signed_with_what_everybody_knows_is_refused(issuer: Issuer) -> None:
    token = issuer.signed_with_the_public_key("a", "admin:*")

    assert refusal(await authenticator_of(issuer), token) == NOT_ACCEPTED


async def test_an_algorithm_that_is_not_of_the_rules_is_refused(issuer: Issuer) -> None:
    rules = JwtRules(ISSUER, (AUDIENCE,), ("ES256",), "opservice")

    assert refusal(await authenticator_of(issuer, rules), issuer.token("a", key=RSA)) == (
        NOT_ACCEPTED
    )


def signed(key: SigningKey, claims: object, **header: object) -> str:
    """Whatever the header says, with the key and its algorithm."""
    signer = jwt.get_algorithm_by_name(key.algorithm)
    parts = {"alg": key.algorithm, "kid": key.id, **header}, claims
    content = ".".join(encoded(json.dumps(part).encode()) for part in parts)
    return f"{content}.{encoded(signer.sign(content.encode(), key.private))}"


def encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def good_claims(**more: object) -> dict[str, object]:
    return {"sub": "a", "iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 60, **more}


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [(RSA, "ES256"), (FIRST, "RS256"), (RSA, "PS256"), (FIRST, "ES384")],
    ids=["RSA for ES256", "EC for RS256", "RSA for PS256", "P-256 for ES384"],
)
async def test_a_key_is_good_for_its_own_algorithm_only(
    issuer: Issuer, key: SigningKey, algorithm: str
) -> None:
    rules = JwtRules(ISSUER, (AUDIENCE,), ("ES256", "ES384", "RS256", "PS256"), "opservice")
    authenticator = await authenticator_of(issuer, rules)
    signer = jwt.get_algorithm_by_name(algorithm)
    private: Any = key.private

    honest = signed(key, good_claims())
    lying = signed(key, good_claims(), alg=algorithm)

    assert identify(authenticator, honest)
    assert refusal(authenticator, lying) == NOT_VALID
    if algorithm == "PS256":  # the key could be used for it
        content = lying.rpartition(".")[0]
        made = f"{content}.{encoded(signer.sign(content.encode(), private))}"
        assert refusal(authenticator, made) == NOT_VALID


async def test_a_token_that_was_tampered_with_is_refused(issuer: Issuer) -> None:
    authenticator = await authenticator_of(issuer)
    token = issuer.token("alice", "viewer:a")

    assert identify(authenticator, token)
    assert refusal(authenticator, with_claims(token, opservice=["admin:*"])) == NOT_VALID
    assert refusal(authenticator, with_another_signature(token)) == NOT_VALID
    assert refusal(authenticator, token.rpartition(".")[0] + ".") == NOT_VALID


async def test_a_token_of_another_key_under_a_known_id_is_refused(issuer: Issuer) -> None:
    token = signed(SigningKey(FIRST.id, OTHER.private), good_claims())

    assert refusal(await authenticator_of(issuer), token) == NOT_VALID


async def test_a_key_that_is_too_short_is_of_no_use(tmp_path: Path) -> None:
    weak = SigningKey("weak", rsa.generate_private_key(65_537, 1024))
    issuer = Issuer(tmp_path, weak)

    assert refusal(await authenticator_of(issuer), issuer.token("a")) == NOT_VALID


@pytest.mark.parametrize(
    "header",
    [{"kid": 5}, {"kid": None}, {"kid": ["first"]}, {"crit": ["b64"], "b64": False}, {"alg": 5}],
    ids=str,
)
async def test_a_token_with_a_wrong_header_is_refused(
    issuer: Issuer, header: dict[str, object]
) -> None:
    token = signed(FIRST, good_claims(), **header)

    assert refusal(await authenticator_of(issuer), token)


@pytest.mark.parametrize("field", ["jwk", "jku", "x5u", "x5c"])
async def test_a_key_that_a_token_brings_along_is_not_used(issuer: Issuer, field: str) -> None:
    """RFC 8725, section 3.10."""
    value: object = OTHER.jwk if field == "jwk" else "https://127.0.0.1:1/jwks.json"
    token = signed(SigningKey(FIRST.id, OTHER.private), good_claims(), **{field: value})

    assert refusal(await authenticator_of(issuer), token) == NOT_VALID


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "...", "a.b.c", "é.é.é", "e30.e30.", "opservice_x", "x" * 100_000],
    ids=lambda token: ascii(token[:20]),
)
async def test_what_is_no_token_is_refused(issuer: Issuer, token: str) -> None:
    assert refusal(await authenticator_of(issuer), token)


NESTED = b"[" * 100_000


async def test_json_that_is_nested_without_end_is_refused(issuer: Issuer) -> None:
    authenticator = await authenticator_of(issuer)
    header = encoded(json.dumps({"alg": "ES256", "kid": "first"}).encode())
    content = f"{header}.{encoded(b'[' + NESTED)}"
    signature = jwt.get_algorithm_by_name("ES256").sign(content.encode(), FIRST.private)

    assert refusal(authenticator, f"{encoded(NESTED)}.e30.e30") == NOT_VALID
    assert refusal(authenticator, f"{content}.{encoded(signature)}") == NOT_VALID


@pytest.mark.parametrize("subject", ["x" * 255, "user@example.org", "Jürgen Ñ"])
async def test_a_subject_may_be_any_printable_text(issuer: Issuer, subject: str) -> None:
    assert identify(await authenticator_of(issuer), issuer.token(subject)).subject == subject


@pytest.mark.parametrize("subject", ["", "x" * 256, "a\nb", "a\0", "a\u202eb"], ids=ascii)
async def test_a_subject_that_is_empty_long_or_not_printable_is_refused(
    issuer: Issuer, subject: str
) -> None:
    message = refusal(await authenticator_of(issuer), issuer.token(subject))

    assert message == "The token's subject is not text of 1 to 255 characters"


@pytest.mark.parametrize("subject", [5, None, True, ["alice"], {"alice": 1}], ids=str)
async def test_a_subject_that_is_no_text_is_refused(issuer: Issuer, subject: object) -> None:
    assert refusal(await authenticator_of(issuer), issuer.token(subject)) == NOT_VALID


@pytest.mark.parametrize(
    ("claim", "grants"),
    [
        (["viewer:a", "admin:*"], (VIEWER, Grant(Role.ADMIN, EVERYWHERE))),
        ("viewer:a admin:*", (VIEWER, Grant(Role.ADMIN, EVERYWHERE))),
        ("  viewer:a\n", (VIEWER,)),
        (["viewer:a b"], (parse_grant("viewer:a b"),)),
        ([], ()),
        ("", ()),
        (None, ()),
    ],
    ids=str,
)
async def test_grants_are_a_list_or_text_with_spaces(
    issuer: Issuer, claim: object, grants: tuple[Grant, ...]
) -> None:
    token = signed(FIRST, good_claims(opservice=claim))

    assert identify(await authenticator_of(issuer), token).grants == grants


async def test_a_token_need_not_bring_grants(issuer: Issuer) -> None:
    assert identify(await authenticator_of(issuer), signed(FIRST, good_claims())).grants == ()


async def test_grants_are_taken_from_the_claim_of_the_rules(issuer: Issuer) -> None:
    rules = JwtRules(ISSUER, (AUDIENCE,), ("ES256",), "https://example.org/grants")
    claims = {"opservice": ["admin:*"], "https://example.org/grants": ["viewer:a"]}

    identity = identify(await authenticator_of(issuer, rules), signed(FIRST, good_claims(**claims)))

    assert identity.grants == (VIEWER,)


LIST = "The token's claim opservice is no list of at most 100 grants"


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"viewer": "a"}, LIST),
        (5, LIST),
        (True, LIST),
        (["viewer:a"] * 101, LIST),
        ("viewer:a " * 101, LIST),
        (["viewer:a", "owner:a"], "The token's claim opservice: 'owner:a': unknown role"),
        (["viewer:a", 5], "The token's claim opservice: '5' is no grant"),
        ([["viewer:a"]], "The token's claim opservice: "),
        ("openid profile", "The token's claim opservice: 'openid' is no grant"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_grants_that_are_none_are_refused_with_what_is_wrong(
    issuer: Issuer, claim: object, message: str
) -> None:
    token = signed(FIRST, good_claims(opservice=claim))

    assert refusal(await authenticator_of(issuer), token).startswith(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
CLAIMS = st.dictionaries(
    st.sampled_from(["sub", "iss", "aud", "exp", "nbf", "iat", "jti", "opservice"]), JSON
)


@settings(
    deadline=None,
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture],
)
@given(CLAIMS | JSON, st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "cty"]), JSON))
def test_whatever_is_signed_is_accepted_or_refused(
    tmp_path: Path, claims: Any, header: dict[str, object]
) -> None:
    authenticator = asyncio.run(authenticator_of(Issuer(tmp_path, FIRST)))
    content = good_claims(**claims) if isinstance(claims, dict) else claims
    token = signed(FIRST, content, **header)

    try:
        identity = authenticator.identify_now(Credentials(token))
    except Unauthenticated:
        return
    assert identity is None or 0 < len(identity.subject) <= 255


# Keys that are not known


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "MIN_PAUSE_SECONDS", 0.01)


async def test_a_token_of_a_key_that_is_newer_than_what_was_read_is_good(
    issuer: Issuer, hasty: None
) -> None:
    authenticator = await authenticator_of(issuer)
    assert authenticator.keys is not None
    reading = asyncio.create_task(authenticator.keys.keep_fresh())
    issuer.publish(OTHER, FIRST)
    credentials = Credentials(issuer.token("alice"))

    assert authenticator.identify_now(credentials) is None
    assert (await authenticator.identify(credentials)).subject == "alice"
    reading.cancel()


async def test_a_token_of_a_key_that_the_issuer_does_not_have_is_refused(
    issuer: Issuer, hasty: None
) -> None:
    authenticator = await authenticator_of(issuer)
    assert authenticator.keys is not None
    reading = asyncio.create_task(authenticator.keys.keep_fresh())

    with pytest.raises(Unauthenticated, match="signed with a key that is not known"):
        await authenticator.identify(Credentials(issuer.token("alice", key=OTHER)))
    reading.cancel()


async def test_a_token_of_a_key_that_was_taken_away_is_refused(issuer: Issuer, hasty: None) -> None:
    authenticator = await authenticator_of(issuer)
    assert authenticator.keys is not None
    reading = asyncio.create_task(authenticator.keys.keep_fresh())
    credentials = Credentials(issuer.token("alice"))
    assert await authenticator.identify(credentials)
    issuer.publish(RSA)
    await authenticator.keys.find_anew(FIRST.id)

    with pytest.raises(Unauthenticated, match="signed with a key that is not known"):
        await authenticator.identify(credentials)
    reading.cancel()


async def test_a_token_may_leave_out_the_id_of_the_only_key(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path, FIRST)
    header = {"alg": "ES256"}
    content = ".".join(encoded(json.dumps(part).encode()) for part in (header, good_claims()))
    signature = jwt.get_algorithm_by_name("ES256").sign(content.encode(), FIRST.private)

    assert identify(await authenticator_of(issuer), f"{content}.{encoded(signature)}")
