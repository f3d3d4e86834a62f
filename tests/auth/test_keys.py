"""Keys for tokens: what is taken of a JWKS."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from auth.key_files import RSA, A, B, File, answering, jwks_of
from opservice.auth.keys import KeysUnreadable, read_keys
from support.identities import jwks, serving_keys

SHARED_SECRET = {"kty": "oct", "kid": "shared", "k": "c2VjcmV0"}


def test_keys_of_a_file_are_found_by_their_ids_each_for_its_algorithm(file: File) -> None:
    file.write(jwks(A, RSA))

    read = read_keys(str(file))

    assert {id_: key.jwk.algorithm_name for id_, key in read.items()} == {
        "a": "ES256",
        "rsa": "RS256",
    }


def test_keys_of_a_url_are_read() -> None:
    with serving_keys(A) as server:
        assert read_keys(server.url).keys() == {"a"}


SKIPPED = {
    "for encryption": {**B.jwk, "use": "enc"},
    "shared secrets": SHARED_SECRET,
    "private shared secrets": {**SHARED_SECRET, "d": "c2VjcmV0"},
    "of a kind that is not known": {"kty": "AKP", "kid": "b", "alg": "ML-DSA-44", "pub": "AA"},
    "for a shared secret's algorithm": {**B.jwk, "alg": "HS256"},
    "for no algorithm": {**B.jwk, "alg": "none"},
    "for an algorithm of other keys": {**B.jwk, "alg": "RS256"},
    "without a number": {**RSA.jwk, "n": None},
    "with a point that is not on its curve": {**B.jwk, "x": B.jwk["y"]},
    "without a kind": {"kid": "b"},
    "that are no mappings": "b",
}


@pytest.mark.parametrize("item", SKIPPED.values(), ids=SKIPPED)
def test_keys_that_are_not_for_checking_tokens_are_passed_over(file: File, item: object) -> None:
    file.write(jwks_of(item, A.jwk))

    assert read_keys(str(file)).keys() == {"a"}


PRIVATE = {
    "EC": {**json.loads(ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()))), "kid": "b"},
    "RSA": {**json.loads(RSAAlgorithm.to_jwk(rsa.generate_private_key(65_537, 2048))), "kid": "b"},
}


@pytest.mark.parametrize("item", PRIVATE.values(), ids=PRIVATE)
def test_a_private_key_is_refused_and_not_shown(file: File, item: dict[str, Any]) -> None:
    """Who deploys it by mistake gives everybody who reads the file what signs tokens."""
    file.write(jwks_of(A.jwk, item))

    with pytest.raises(KeysUnreadable, match="it has a private key") as caught:
        read_keys(str(file))

    assert item["d"] not in str(caught.value)


NO_KEYS = {
    "no JSON": ("keys", "Expecting value"),
    "no mapping": ("[]", "it is no JWKS: there is no list of keys"),
    "no keys": ("{}", "it is no JWKS: there is no list of keys"),
    "keys that are no list": (json.dumps({"keys": {"a": A.jwk}}), "it is no JWKS"),
    "an empty list": (jwks_of(), "it has no public key of a known kind"),
    "only what is passed over": (jwks_of(*SKIPPED.values()), "it has no public key"),
    "one id twice": (jwks_of(A.jwk, {**B.jwk, "kid": "a"}), "it has two keys with the id 'a'"),
    "no id twice": (
        jwks_of(*({k: v for k, v in each.jwk.items() if k != "kid"} for each in (A, B))),
        "it has two keys with the id ''",
    ),
    "lists without an end": ("[" * 100_000, ""),
}


@pytest.mark.parametrize(("content", "complaint"), NO_KEYS.values(), ids=NO_KEYS)
def test_a_file_that_gives_no_keys_is_named_with_what_is_wrong(
    file: File, content: str, complaint: str
) -> None:
    file.write(content)

    with pytest.raises(KeysUnreadable) as caught:
        read_keys(str(file))

    assert str(caught.value).startswith(f"no keys from {file}: {complaint}")


def test_a_file_that_is_not_there_is_named(file: File) -> None:
    with pytest.raises(KeysUnreadable, match=f"no keys from {file}: .*No such file"):
        read_keys(str(file))


def test_a_redirect_is_not_followed() -> None:
    with serving_keys(A) as elsewhere:

        def redirect(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(302)
            handler.send_header("Location", elsewhere.url)
            handler.end_headers()

        with answering(redirect) as url, pytest.raises(KeysUnreadable, match=url):
            read_keys(url)

        assert elsewhere.asked == 0


@pytest.mark.parametrize(
    "answer",
    [
        lambda handler: handler.send_error(503),
        lambda handler: handler.wfile.write(b"what is HTTP?\r\n\r\n"),
        lambda handler: None,
        lambda handler: handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n{"),
        lambda handler: handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n<html>\xff"),
    ],
    ids=["an error", "no HTTP", "nothing", "half of it", "no JSON"],
)
def test_a_url_that_gives_something_else_gives_no_keys(
    answer: Callable[[BaseHTTPRequestHandler], None],
) -> None:
    with answering(answer) as url, pytest.raises(KeysUnreadable, match=f"no keys from {url}"):
        read_keys(url)
