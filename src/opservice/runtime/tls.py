"""TLS from files: they are checked when they are read, and new connections get what was read last."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile

import grpc

from opservice.common.loggers import get_logger
from opservice.common.tls_files import TlsFilesUnusable, explain_unreadable, load_tls_files
from opservice.domain.errors import StartupError
from opservice.runtime.settings.security import SecuritySettings

_PEM_CERTIFICATE = re.compile(
    rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL
)

log = get_logger("opservice.tls")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The content (PEM) of the TLS files, which were checked to fit together."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None = None

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the first certificate, as `openssl x509 -noout -fingerprint -sha256` shows it."""
        leaf = _PEM_CERTIFICATE.search(self.certificate)
        assert leaf is not None  # OpenSSL has found it
        der = ssl.PEM_cert_to_DER_cert(leaf[0].decode())
        return hashlib.sha256(der).digest().hex(":").upper()


class ReloadableTls:
    """TLS for gRPC. A new connection gets the files that were given last; the others keep what they have."""

    def __init__(self, first: TlsFiles) -> None:
        # gRPC asks on threads of its own; a deque's append and pop are atomic.
        self.files = first
        self.when_replaced: Callable[[], object] = lambda: None
        """Called when there are other files for new connections."""
        self._next: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)
        self.grpc_credentials = grpc.dynamic_ssl_server_credentials(
            _configuration(first),
            self._take_next,  # type: ignore[arg-type] # its types know nothing of None, its docs do
            first.client_ca is not None,
        )

    def replace(self, files: TlsFiles) -> None:
        """Uses these files for new connections. Does nothing when they are the same as before."""
        if files == self.files:
            return
        self.files = files
        self._next.append(_configuration(files))
        self.when_replaced()
        log.info("new connections use the new TLS files", certificate_sha256=files.fingerprint)

    def _take_next(self) -> grpc.ServerCertificateConfiguration | None:
        """Called before every handshake. None lets gRPC go on with what it parsed before."""
        try:
            return self._next.pop()
        except IndexError:
            return None


def read_tls_files(settings: SecuritySettings) -> TlsFiles | None:
    """The files that the settings name; None when they name none.

    Raises StartupError when the files cannot be read, or do not fit each other.
    """
    certificate, key, client_ca = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    if certificate is None or key is None:
        return None
    names = ", ".join(str(path) for path in (certificate, key, client_ca) if path is not None)
    try:
        files = _read(certificate, key, client_ca)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load_tls_files(context, certificate=certificate, key=key, authorities=client_ca)
        # OpenSSL reads the files for itself: if they changed meanwhile, it has checked other content.
        unchanged = files == _read(certificate, key, client_ca)
    except TlsFilesUnusable as error:
        raise StartupError(str(error)) from error
    except OSError as error:
        raise StartupError(explain_unreadable(error, names)) from error
    if not unchanged:
        raise StartupError(f"the TLS files changed while they were read ({names})")
    return files


def ssl_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS for servers that are not gRPC's, of the same files. May block.

    As with gRPC, clients must show a certificate when there is a CA for these.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # OpenSSL reads a key from a file only. This one is in memory, and nobody else's.
    with _file_of(files.certificate) as certificate, _file_of(files.key) as key:
        context.load_cert_chain(certificate, key)
    if files.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        with _file_of(files.client_ca) as authorities:  # as text it may have comments in ASCII only
            context.load_verify_locations(authorities)
    return context


@contextmanager
def _file_of(content: bytes) -> Iterator[str]:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("tls")
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            yield file.name


def _read(certificate: Path, key: Path, client_ca: Path | None) -> TlsFiles:
    return TlsFiles(
        certificate=certificate.read_bytes(),
        key=key.read_bytes(),
        client_ca=None if client_ca is None else client_ca.read_bytes(),
    )


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(files.key, files.certificate)], root_certificates=files.client_ca
    )
