"""The settings of TLS and authentication, and the checks that no mistake in them lets anybody in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from opservice.common.addresses import is_loopback, split_address
from opservice.common.durations import MINUTE
from opservice.domain.errors import StartupError
from opservice.domain.operation import SECOND
from opservice.runtime.settings.setting import check_bounds, setting

ASYMMETRIC_ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
"""The algorithms of JWTs that are allowed. With any other, whoever can check a token can also make one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecuritySettings:
    """Who may connect, how callers authenticate, and what they may do. docs/access.md explains it all."""

    TITLE: ClassVar = "TLS and authentication"

    tls_cert: Path | None = setting(
        "file",
        None,
        "Certificate chain (PEM) of the server. With it the server speaks TLS. Needs --tls-key.",
        change_when="callers connect from other machines.",
        essential=True,
    )
    tls_key: Path | None = setting(
        "file",
        None,
        "Private key (PEM) of the certificate, without a password.",
        change_when="you set --tls-cert.",
        essential=True,
    )
    tls_client_ca: Path | None = setting(
        "file",
        None,
        "Certificate authorities (PEM) for client certificates. With it only clients that have a certificate"
        " from one of these authorities can connect.",
        change_when="callers authenticate with client certificates, or only known machines may connect.",
    )
    allow_anonymous: bool = setting(
        "flag",
        False,
        "Let everybody who can connect do everything, also from other machines. Without this flag, a server"
        " without authentication listens on loopback or on a Unix socket only.",
        change_when="something in front of the server, such as a network policy, decides who can connect.",
    )
    tokens: Path | None = setting(
        "file",
        None,
        "File of static tokens (YAML). It holds only their hashes. `opservice token` makes a token and its"
        " entry.",
        change_when="callers authenticate with tokens that you hand out.",
        essential=True,
    )
    policy: Path | None = setting(
        "file",
        None,
        "File of grants (YAML): what each subject may do. It adds to the grants that tokens bring.",
        change_when="callers have JWTs or client certificates that bring no grants of their own.",
    )
    jwks: str = setting(
        "text",
        "",
        "Public keys (JWKS) that check the tokens (JWT) of callers: a file or an https URL. Needs"
        " --jwt-issuer and --jwt-audience.",
        change_when="callers bring JWTs from an identity provider.",
    )
    jwks_proxy: str = setting(
        "text",
        "",
        "HTTP proxy, as http://HOST:PORT, for the https URL of --jwks. The server ignores `https_proxy` and"
        " similar variables.",
        change_when="the server reaches the identity provider only through a proxy.",
    )
    jwks_refresh: int = setting(
        "duration",
        5 * MINUTE,
        "How often the server reads the keys of --jwks again. When a token names an unknown key, it reads"
        " them at once.",
        change_when="keys that were withdrawn must stop working sooner.",
        least=SECOND,
    )
    jwt_issuer: str = setting(
        "text",
        "",
        "The issuer (`iss`) that a JWT must have.",
        change_when="you set --jwks.",
    )
    jwt_audience: tuple[str, ...] = setting(
        "texts",
        (),
        "The audience (`aud`) that a JWT must have. May be repeated: one of them is enough.",
        change_when="you set --jwks.",
    )
    jwt_algorithm: tuple[str, ...] = setting(
        "texts",
        ("RS256", "ES256"),
        "The signature algorithms that a JWT may use. Only asymmetric algorithms are allowed. May be"
        " repeated.",
        change_when="your identity provider signs with another algorithm.",
    )
    jwt_grants_claim: str = setting(
        "text",
        "opservice",
        "The claim of a JWT that lists grants, such as viewer:folders/b1g/*.",
        change_when="your identity provider puts the grants into another claim.",
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise StartupError("--tls-cert and --tls-key belong together: give both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise StartupError("--tls-client-ca needs --tls-cert and --tls-key")
        self._check_jwt()
        if self.policy is not None and not self.authenticates:
            raise StartupError(
                "--policy says what callers may do, but no setting says how they authenticate: give --tokens,"
                " --jwks or --tls-client-ca"
            )
        if self.allow_anonymous and self.authenticates:
            raise StartupError("--allow-anonymous contradicts --tokens, --jwks and --policy")

    @property
    def authenticates(self) -> bool:
        """Whether callers must authenticate. A client certificate alone, without a policy, grants nothing."""
        by_certificate = self.tls_client_ca is not None and self.policy is not None
        return self.tokens is not None or bool(self.jwks) or by_certificate

    def _check_jwt(self) -> None:
        """Raises StartupError when the settings of JWTs are incomplete or unsafe."""
        if self.jwks and not (self.jwt_issuer and self.jwt_audience):
            raise StartupError("--jwks needs --jwt-issuer and --jwt-audience")
        if not self.jwks and (self.jwt_issuer or self.jwt_audience):
            raise StartupError("--jwt-issuer and --jwt-audience need --jwks")
        unsafe = sorted(set(self.jwt_algorithm) - ASYMMETRIC_ALGORITHMS)
        if unsafe or not self.jwt_algorithm:
            known = ", ".join(sorted(ASYMMETRIC_ALGORITHMS))
            raise StartupError(f"--jwt-algorithm {' '.join(unsafe)}: expected one of {known}")
        if "://" in self.jwks:
            _check_url(self.jwks)
        if self.jwks_proxy:
            if not self.jwks.startswith("https://"):
                raise StartupError("--jwks-proxy needs --jwks with an https URL")
            _check_proxy(self.jwks_proxy)


def _check_url(url: str) -> None:
    """Raises StartupError for a URL that must not be trusted with keys, or that holds a secret."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise StartupError(f"--jwks: the URL does not parse: {error}") from error
    if parts.username or parts.password:
        raise StartupError("--jwks: a URL with a password in it would be seen by others")
    if not (parts.scheme == "https" or is_loopback(parts.hostname or "")):
        raise StartupError(f"--jwks {url}: expected https, except on loopback")


def _check_proxy(url: str) -> None:
    """Raises StartupError when it is not http://HOST:PORT."""
    scheme, _, address = url.removesuffix("/").partition("://")
    try:
        split_address(address)
    except StartupError:
        scheme = ""
    if scheme != "http":  # not shown: it may hold a password
        raise StartupError("--jwks-proxy: expected http://HOST:PORT")
