"""TLS from files, with errors that say what is wrong with them."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from opservice.errors import StartupError
from opservice.settings import Settings


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Credentials from the files that the settings name; None when they name none.

    Raises StartupError when the files cannot be read, or do not fit each other.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    # grpc says only that binding failed; OpenSSL says what is wrong.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=_no_password)
        client_ca = None
        if settings.tls_client_ca is not None:
            context.load_verify_locations(settings.tls_client_ca)
            client_ca = settings.tls_client_ca.read_bytes()
        pair = settings.tls_key.read_bytes(), settings.tls_cert.read_bytes()
    except ssl.SSLError as error:
        files = ", ".join(str(path) for path in _tls_files(settings))
        raise StartupError(_explain_tls(error, files)) from error
    except OSError as error:
        name = error.filename or ", ".join(str(path) for path in _tls_files(settings))
        raise StartupError(f"cannot read the TLS file {name}: {error.strerror}") from error
    return grpc.ssl_server_credentials(
        [pair], root_certificates=client_ca, require_client_auth=client_ca is not None
    )


def _tls_files(settings: Settings) -> list[Path]:
    files = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    return [path for path in files if path is not None]


def _explain_tls(error: ssl.SSLError, files: str) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the TLS key is not the key of the certificate ({files})"
    return f"the TLS files cannot be used ({files}): {error.reason or error}"


def _no_password() -> str:
    raise StartupError("the TLS key is encrypted: give one that is not")
