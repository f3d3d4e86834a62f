"""TLS from files, with errors that say what is wrong with them, and for new connections read again."""

from __future__ import annotations

import hashlib
import re
import ssl
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import structlog

from opservice.domain.errors import StartupError
from opservice.runtime.settings import Settings

_PEM_CERTIFICATE = re.compile(
    rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL
)

log = structlog.stdlib.get_logger("opservice.tls")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the TLS files held (PEM), checked to fit together."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None = None

    @property
    def fingerprint(self) -> str:
        """As `openssl x509 -noout -fingerprint -sha256` shows it."""
        leaf = _PEM_CERTIFICATE.search(self.certificate)
        assert leaf is not None  # OpenSSL has found it
        der = ssl.PEM_cert_to_DER_cert(leaf[0].decode())
        return hashlib.sha256(der).digest().hex(":").upper()


class CurrentCredentials:
    """gRPC's credentials: a new connection gets what was given last, the others keep what they have."""

    def __init__(self, first: Credentials) -> None:
        # gRPC asks on threads of its own; a deque's append and pop are atomic.
        self._current = first
        self._next: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)
        self.of_grpc = grpc.dynamic_ssl_server_credentials(
            _configuration(first),
            self._take_next,  # type: ignore[arg-type] # its types know nothing of None, its docs do
            first.client_ca is not None,
        )

    def replace(self, credentials: Credentials) -> None:
        """Not at all when they are the same as before."""
        if credentials == self._current:
            return
        self._current = credentials
        self._next.append(_configuration(credentials))
        log.info("new connections get new TLS files", certificate_sha256=credentials.fingerprint)

    def _take_next(self) -> grpc.ServerCertificateConfiguration | None:
        """Called before every handshake. None lets gRPC go on with what it parsed before."""
        try:
            return self._next.pop()
        except IndexError:
            return None


def server_credentials(settings: Settings) -> Credentials | None:
    """What is in the files that the settings name; None when they name none.

    Raises StartupError when the files cannot be read, or do not fit each other.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    try:
        credentials = _read(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        # grpc says only that a handshake or binding failed; OpenSSL says what is wrong.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=_no_password)
        if settings.tls_client_ca is not None:
            context.load_verify_locations(settings.tls_client_ca)
        # OpenSSL reads for itself: files that were being replaced are not the ones that it checked.
        unchanged = credentials == _read(
            settings.tls_cert, settings.tls_key, settings.tls_client_ca
        )
    except ssl.SSLError as error:
        raise StartupError(_explain_tls(error, _names(settings))) from error
    except OSError as error:
        name = error.filename or _names(settings)
        raise StartupError(f"cannot read the TLS file {name}: {error.strerror}") from error
    if not unchanged:
        raise StartupError(f"the TLS files changed while they were read ({_names(settings)})")
    return credentials


def _read(certificate: Path, key: Path, client_ca: Path | None) -> Credentials:
    return Credentials(
        certificate=certificate.read_bytes(),
        key=key.read_bytes(),
        client_ca=None if client_ca is None else client_ca.read_bytes(),
    )


def _configuration(credentials: Credentials) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(credentials.key, credentials.certificate)], root_certificates=credentials.client_ca
    )


def _names(settings: Settings) -> str:
    files = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    return ", ".join(str(path) for path in files if path is not None)


def _explain_tls(error: ssl.SSLError, files: str) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the TLS key is not the key of the certificate ({files})"
    return f"the TLS files cannot be used ({files}): {error.reason or error}"


def _no_password() -> str:
    raise StartupError("the TLS key is encrypted: give one that is not")
