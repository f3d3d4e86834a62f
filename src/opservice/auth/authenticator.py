"""Authentication: credentials in, an Identity out; and the caller of one call, with what they may do.

Credentials are a bearer token in the header `authorization`, a static one or a JWT; or else the certificate
that the client showed. Without authentication there is no Authenticator, and every caller is ANYBODY.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jwt
from cryptography import x509

from opservice.auth.keys import KeySource
from opservice.auth.policy import Policy, StaticTokens, hash_token, valid_subject
from opservice.domain.errors import (
    CredentialsExpired,
    CredentialsMissing,
    OperationNotFound,
    PermissionDenied,
    Unauthenticated,
)
from opservice.domain.identity import MAX_GRANTS, Grant, Identity, Right, parse_grant
from opservice.domain.operation import Command, Origin, Outcome, Record

LEEWAY_SECONDS = 10
"""By how much the clocks of whoever makes tokens and of this server may differ."""

_MAX_KNOWN = 10_000
"""Credentials that were checked before and need not be checked again."""
_NAMED_NOT_FOUND = 10
"""Of those that a call for several did not find."""
_AUTHORIZATION = "authorization"
_SCHEME = "bearer "
_NOT_VALID = "The token is not valid"
_NO_NAME = "The client certificate has no URI or DNS name that can be a subject"


@dataclass(frozen=True, slots=True)
class Credentials:
    """As the caller sent them. `certificate` is PEM, and was checked when the connection was made."""

    token: str | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)

    @classmethod
    def of(cls, headers: Sequence[tuple[str, Any]], certificate: bytes | None) -> Credentials:
        """From a call's headers and the client's certificate. Raises Unauthenticated."""
        given = [value for key, value in headers if key == _AUTHORIZATION]
        if not given:
            token = None
        elif len(given) > 1:
            raise Unauthenticated("There is more than one authorization header")
        elif given[0][: len(_SCHEME)].lower() != _SCHEME:
            raise Unauthenticated("The authorization header must be `Bearer TOKEN`")
        else:
            token = given[0][len(_SCHEME) :].strip()
        return cls(token, certificate)

    @property
    def key(self) -> bytes:
        """Tells credentials apart, and does not give them away."""
        shown = self.certificate or b"" if self.token is None else b"token " + self.token.encode()
        return hashlib.sha256(shown).digest()


_NO_CREDENTIALS = Credentials()


@dataclass(slots=True)
class Caller:
    """Who makes one call, and the right that it requires.

    `identity` changes when the grants of a caller do whose call lasts. `command` and `outcome` are what the
    call asked for and what came of it; the audit log tells them.
    """

    identity: Identity
    right: Right
    credentials: Credentials = _NO_CREDENTIALS
    command: Command | None = None
    outcome: Outcome | None = None
    not_found: int = 0
    """Operations of a call for several that the caller was told are not there."""
    first_not_found: list[str] = field(default_factory=list)
    """The ids of the first few of them."""

    def admit_call(self) -> None:
        """Raises PermissionDenied when there is no operation for which they have the required right."""
        if not self.identity.may_any(self.right):
            raise PermissionDenied(f"You may not {self.right.value} any operation")

    def admit(self, record: Record | Origin) -> None:
        """Raises OperationNotFound when they may not see the operation, and PermissionDenied when they may,
        but lack the required right for it.
        """
        may = self.identity.may
        if not may(Right.SEE, record.parent, record.created_by):
            raise OperationNotFound(record.id, hidden=True)
        if not may(self.right, record.parent, record.created_by):
            raise PermissionDenied(
                f"You may see operation {record.id}, but not {self.right.value} it"
            )

    def note_not_found(self, operation_id: str) -> None:
        """Notes that they asked for an operation that is not there for them."""
        self.not_found += 1
        if self.not_found <= _NAMED_NOT_FOUND:
            self.first_not_found.append(operation_id)

    def admit_start(self, parent: str) -> None:
        """Raises PermissionDenied when they may not start operations under this parent."""
        if not self.identity.may(Right.PRODUCE, parent, ""):
            where = f"under {parent}" if parent else "without a parent"
            raise PermissionDenied(f"You may not start operations {where}")


@dataclass(frozen=True, slots=True)
class JwtRules:
    """What a JWT must be like. `algorithms` are asymmetric; the claim named `grants_claim` holds grants."""

    issuer: str
    audiences: tuple[str, ...]
    algorithms: tuple[str, ...]
    grants_claim: str


class Authenticator:
    """Finds out who a caller is by their credentials, and remembers what it has checked.

    `clock` returns seconds since the epoch.
    """

    def __init__(
        self,
        policy: Policy,
        tokens: StaticTokens,
        jwt_rules: JwtRules | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._policy = policy
        self._tokens = tokens
        self._jwt = jwt_rules
        self.clock = clock
        self._known: OrderedDict[bytes, Identity] = OrderedDict()
        self.keys: KeySource | None = None
        """Needed with `jwt_rules`. It is set afterwards, since it calls `forget` when there are new keys."""
        self.listeners: list[Callable[[], None]] = []
        """Each is called when tokens, grants or keys have changed: callers must be checked again."""

    async def identify(self, credentials: Credentials) -> Identity:
        """Whose credentials they are. Raises Unauthenticated or KeysUnavailable.

        For credentials that it does not remember it checks a signature, and may wait for keys to be read.
        """
        identity = self.identify_now(credentials)
        if identity is None:
            assert self.keys is not None
            assert credentials.token is not None
            # Its key may be newer than what was read of the keys.
            key = await self.keys.find_anew(_key_id(_header(credentials.token)))
            identity = None if key is None else self.identify_now(credentials)
            if identity is None:
                raise Unauthenticated("The token is signed with a key that is not known")
        return identity

    def identify_now(self, credentials: Credentials) -> Identity | None:
        """As `identify`, without waiting: None when the key of a token is not known."""
        identity = self.known(credentials)
        if identity is not None:
            return identity
        identity = self._check(credentials)
        if identity is None:
            return None
        self._known[credentials.key] = identity
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return self._unexpired(identity)

    def known(self, credentials: Credentials) -> Identity | None:
        """Whose credentials they are, when they were checked before.

        Raises CredentialsMissing or CredentialsExpired.
        """
        if credentials.token is None and credentials.certificate is None:
            raise CredentialsMissing
        identity = self._known.get(credentials.key)
        return None if identity is None else self._unexpired(identity)

    def _unexpired(self, identity: Identity) -> Identity:
        if identity.expires_at is not None and identity.expires_at <= self.clock():
            raise CredentialsExpired
        return identity

    def replace(self, policy: Policy, tokens: StaticTokens) -> None:
        """Uses another policy and other tokens, unless they are the same objects. Has the keys read again."""
        if self.keys is not None:
            self.keys.refresh(tell=True)
        if policy is not self._policy or tokens is not self._tokens:
            self._policy, self._tokens = policy, tokens
            self.forget()

    def forget(self) -> None:
        """Forgets all that it has checked, and calls the listeners."""
        self._known.clear()
        for listener in self.listeners:
            listener()

    def _check(self, credentials: Credentials) -> Identity | None:
        if credentials.token is None:
            assert credentials.certificate is not None
            identity = _of_certificate(credentials.certificate)
        else:
            static = self._tokens.get(hash_token(credentials.token))
            if static is not None:
                identity = Identity(static.subject, static.grants, "token", static.expires_at)
            elif self._jwt is None:
                raise Unauthenticated(_NOT_VALID)
            else:
                of_jwt = self._of_jwt(credentials.token, self._jwt)
                if of_jwt is None:
                    return None
                identity = of_jwt
        return replace(identity, grants=identity.grants + self._policy.grants_of(identity.subject))

    def _of_jwt(self, token: str, rules: JwtRules) -> Identity | None:
        header = _header(token)
        if header.get("alg") not in rules.algorithms:
            raise Unauthenticated("The token is signed by an algorithm that is not accepted")
        assert self.keys is not None
        key = self.keys.find(_key_id(header))
        if key is None:
            return None
        try:
            claims = jwt.decode(
                token,
                key.jwk,
                algorithms=rules.algorithms,
                audience=rules.audiences,
                issuer=rules.issuer,
                leeway=LEEWAY_SECONDS,
                options={
                    "require": ["exp", "aud", "iss", "sub"],
                    "enforce_minimum_key_length": True,
                },
            )
            expires_at = float(claims["exp"]) + LEEWAY_SECONDS
        except jwt.ExpiredSignatureError as error:
            raise CredentialsExpired from error
        except jwt.InvalidAudienceError as error:
            raise Unauthenticated("The token is for another audience") from error
        except jwt.InvalidIssuerError as error:
            raise Unauthenticated("The token is of another issuer") from error
        except _BAD_TOKEN as error:
            raise Unauthenticated(_NOT_VALID) from error
        subject = claims["sub"]
        if not valid_subject(subject):
            raise Unauthenticated("The token's subject is not text of 1 to 255 characters")
        return Identity(subject, _grants(claims.get(rules.grants_claim), rules), "jwt", expires_at)


# Of a token that anybody may have made: PyJWT lets some of what its JSON leads to pass.
_BAD_TOKEN = (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError)


def _header(token: str) -> dict[str, Any]:
    try:
        return jwt.get_unverified_header(token)
    except _BAD_TOKEN as error:
        raise Unauthenticated(_NOT_VALID) from error


def _key_id(header: dict[str, Any]) -> str:
    return str(header.get("kid", ""))


def _grants(claim: Any, rules: JwtRules) -> tuple[Grant, ...]:
    """Of a list, or of text with spaces between, as a `scope` has them."""
    listed = claim.split() if isinstance(claim, str) else claim or []
    if not isinstance(listed, list) or len(listed) > MAX_GRANTS:
        raise Unauthenticated(
            f"The token's claim {rules.grants_claim} is no list of at most {MAX_GRANTS} grants"
        )
    try:
        return tuple(parse_grant(str(text)) for text in listed)
    except ValueError as error:
        # Whoever signed it should know, and nobody else sees it.
        raise Unauthenticated(f"The token's claim {rules.grants_claim}: {error}") from error


def _of_certificate(pem: bytes) -> Identity:
    """By its first URI, or else its first DNS name.

    They are read here, since gRPC's own reading of them ends at a NUL.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        subjects = [
            *names.get_values_for_type(x509.UniformResourceIdentifier),
            *names.get_values_for_type(x509.DNSName),
        ]
    except (ValueError, x509.ExtensionNotFound) as error:
        raise Unauthenticated(_NO_NAME) from error
    if not subjects or not valid_subject(subjects[0]):
        raise Unauthenticated(_NO_NAME)
    return Identity(subjects[0], (), "certificate", certificate.not_valid_after_utc.timestamp())
