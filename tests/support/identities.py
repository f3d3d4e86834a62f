"""Who calls: an issuer of tokens, good and broken, and the files and certificates that tell callers apart."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import grpc
import jwt
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from opservice.auth.policy import hash_token, new_token
from support.certificates import Authority, Pair
from support.client import Client

ISSUER = "https://issuer.example"
AUDIENCE = "opservice"
LIFETIME_SECONDS = 3600


@dataclass(frozen=True)
class SigningKey:
    id: str
    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

    @property
    def algorithm(self) -> str:
        return "RS256" if isinstance(self.private, rsa.RSAPrivateKey) else "ES256"

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key, as a JWKS has it."""
        if isinstance(self.private, rsa.RSAPrivateKey):
            made = RSAAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        else:
            made = ECAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        return {**made, "kid": self.id, "use": "sig", "alg": self.algorithm}

    @property
    def public_pem(self) -> bytes:
        return self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


def make_key(key_id: str, algorithm: str = "ES256") -> SigningKey:
    if algorithm == "RS256":
        return SigningKey(key_id, rsa.generate_private_key(65_537, 2048))
    return SigningKey(key_id, ec.generate_private_key(ec.SECP256R1()))


class Issuer:
    """Makes tokens; the keys that it publishes stand in `file`."""

    def __init__(self, directory: Path, *keys: SigningKey) -> None:
        self.file = directory / "jwks.json"
        self.keys: Sequence[SigningKey] = keys or (make_key("first"),)
        self.publish(*self.keys)

    @property
    def settings(self) -> dict[str, Any]:
        """Of a server that takes its tokens."""
        return {"jwks": self.file, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}

    def publish(self, *keys: SigningKey) -> None:
        """Replaces the file; tokens are signed with the first key from now on."""
        self.keys = keys
        replace_text(self.file, jwks(*keys))

    def token(
        self,
        subject: object,
        *grants: str,
        key: SigningKey | None = None,
        without: Collection[str] = (),
        **claims: object,
    ) -> str:
        """Good, unless its key is not published, a claim is wrong, or one is left out."""
        key = key or self.keys[0]
        header = {"alg": key.algorithm, "typ": "JWT", "kid": key.id}
        payload = self._claims(subject, grants, without, claims)
        signer = jwt.get_algorithm_by_name(key.algorithm)
        return _compact(header, payload, lambda content: signer.sign(content, key.private))

    def unsigned(self, subject: str, *grants: str) -> str:
        """With the algorithm `none`."""
        header = {"alg": "none", "typ": "JWT", "kid": self.keys[0].id}
        return _compact(header, self._claims(subject, grants), lambda _: b"")

    def signed_with_the_public_key(self, subject: str, *grants: str) -> str:
        """As if the key that everybody knows were a shared secret."""
        key = self.keys[0]
        header = {"alg": "HS256", "typ": "JWT", "kid": key.id}
        return _compact(
            header,
            self._claims(subject, grants),
            lambda content: hmac.digest(key.public_pem, content, hashlib.sha256),
        )

    def _claims(
        self,
        subject: object,
        grants: Sequence[str],
        without: Collection[str] = (),
        claims: Mapping[str, object] | None = None,
    ) -> dict[str, object]:
        made = {
            "sub": subject,
            "iss": ISSUER,
            "aud": AUDIENCE,
            "exp": int(time.time()) + LIFETIME_SECONDS,
            "opservice": list(grants),
            **(claims or {}),
        }
        return {name: value for name, value in made.items() if name not in without}


def jwks(*keys: SigningKey) -> str:
    return json.dumps({"keys": [key.jwk for key in keys]})


def with_claims(token: str, **claims: object) -> str:
    """The token with other claims and the signature that it had."""
    header, payload, signature = token.split(".")
    padded = payload + "=" * (-len(payload) % 4)
    tampered = {**json.loads(urlsafe_b64decode(padded)), **claims}
    return ".".join((header, _encoded(json.dumps(tampered).encode()), signature))


def with_another_signature(token: str) -> str:
    """The token with one bit of its signature turned."""
    content, _, signature = token.rpartition(".")
    made = bytearray(urlsafe_b64decode(signature + "=" * (-len(signature) % 4)))
    made[0] ^= 1
    return f"{content}.{_encoded(bytes(made))}"


def with_random_signature(token: str) -> str:
    content, _, _ = token.rpartition(".")
    return f"{content}.{_encoded(random.randbytes(64))}"


def _compact(
    header: Mapping[str, object], claims: Mapping[str, object], sign: Callable[[bytes], bytes]
) -> str:
    content = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
    return f"{content}.{_encoded(sign(content.encode()))}"


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


class KeyServer:
    """Serves a JWKS over HTTP on loopback while it is `available`, else 503."""

    def __init__(self, *keys: SigningKey) -> None:
        self.keys: Sequence[SigningKey] = keys
        self.available = True
        self.url = ""
        self.asked = 0


@contextmanager
def serving_keys(*keys: SigningKey) -> Iterator[KeyServer]:
    state = KeyServer(*keys)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked += 1
            self.send_response(200 if state.available else 503)
            self.end_headers()
            if state.available:
                self.wfile.write(jwks(*state.keys).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by http.server
            """Not to standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/jwks.json"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class TokenFile:
    """Static tokens by subject, in the file for `serve --tokens`."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "tokens.yaml"
        self._entries: dict[str, dict[str, object]] = {}

    def add(self, subject: str, *grants: str, expires: datetime | None = None) -> str:
        """A new token for the subject, which loses the one that it had."""
        token = new_token()
        entry: dict[str, object] = {
            "subject": subject,
            "sha256": hash_token(token),
            "grants": [*grants],
        }
        if expires is not None:
            entry["expires"] = expires
        self._entries[subject] = entry
        self._write()
        return token

    def remove(self, subject: str) -> None:
        del self._entries[subject]
        self._write()

    def _write(self) -> None:
        replace_text(self.file, yaml.safe_dump([*self._entries.values()]))


def write_policy(file: Path, subjects: Mapping[str, Sequence[str]]) -> Path:
    granted = {subject: [*grants] for subject, grants in subjects.items()}
    replace_text(file, yaml.safe_dump({"subjects": granted}))
    return file


def replace_text(file: Path, text: str) -> None:
    """At once, as whoever deploys files does: nobody reads half of it."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(text)
    new.replace(file)


def client_certificate(
    authority: Authority,
    file: Path,
    uris: Sequence[str] = (),
    names: Sequence[str] = (),
    lasts: timedelta = timedelta(days=1),
) -> Pair:
    """A certificate of the authority with these URIs and DNS names; `file` without its suffix."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, file.name)]))
        .issuer_name(authority._name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + lasts)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    alternatives: list[x509.GeneralName] = [
        *map(x509.UniformResourceIdentifier, uris),
        *map(x509.DNSName, names),
    ]
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    made = builder.sign(authority._key, hashes.SHA256())
    pair = Pair(file.with_suffix(".pem"), file.with_suffix(".key"))
    pair.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pair.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return pair


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call with this token."""
    return (("authorization", f"Bearer {token}"),)


def calling_with(channel: grpc.Channel, token: str) -> Client:
    """A client whose every call has the token."""
    return Client(grpc.intercept_channel(channel, _WithToken(token)))


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _WithToken(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    def __init__(self, token: str) -> None:
        self._token = token

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._with_token(details), request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._with_token(details), request)

    def _with_token(self, details: Any) -> _Details:
        return _Details(
            details.method,
            details.timeout,
            (*(details.metadata or ()), *bearer(self._token)),
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )
