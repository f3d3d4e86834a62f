"""Checks TLS files with OpenSSL, which says what is wrong with them.

gRPC says only that a handshake, a connection or the binding of a port failed.
"""

from __future__ import annotations

import ssl
from pathlib import Path


class TlsFilesUnusable(Exception):
    """TLS files that are missing, are not PEM, or do not fit each other. The message names the files."""


def load_tls_files(
    context: ssl.SSLContext,
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    authorities: Path | None = None,
) -> None:
    """Loads the PEM files into the context. Raises TlsFilesUnusable."""
    names = ", ".join(str(path) for path in (certificate, key, authorities) if path is not None)
    try:
        if authorities is not None:
            context.load_verify_locations(authorities)
        if certificate is not None:
            context.load_cert_chain(certificate, key, password=_refuse_encrypted)
    except ssl.SSLError as error:
        raise TlsFilesUnusable(_explain(error, names)) from error
    except OSError as error:
        raise TlsFilesUnusable(explain_unreadable(error, names)) from error


def explain_unreadable(error: OSError, names: str) -> str:
    """What to tell of a TLS file that cannot be read; `names` is said when the error names no file."""
    return f"cannot read the TLS file {error.filename or names}: {error.strerror}"


def _explain(error: ssl.SSLError, names: str) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the TLS key does not belong to the certificate ({names})"
    return f"the TLS files cannot be used ({names}): {error.reason or error}"


def _refuse_encrypted() -> str:
    raise TlsFilesUnusable("the TLS key is encrypted: give a key without a password")
