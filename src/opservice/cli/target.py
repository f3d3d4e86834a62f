"""Which server a command talks to, and as whom: the options, the channel, the token."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable
from datetime import timedelta
from os import environ
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc

from opservice.cli.connection import Connection
from opservice.cli.parameters import Duration
from opservice.common.tls_files import TlsFilesUnusable, explain_unreadable, load_tls_files
from opservice_client import Producer
from opservice_client.targets import is_loopback

Command = TypeVar("Command", bound=Callable[..., Any])

_CHANNEL_OPTIONS = [
    # A list of operations with large payloads is larger than what gRPC accepts by default.
    ("grpc.max_receive_message_length", -1),
    # `wait` outlives restarts; by default a channel that lost its server tries every two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 30_000),
]


def _check_server(_context: click.Context, _parameter: click.Parameter, server: str) -> str:
    """The target of gRPC. Raises BadParameter for a URL, which gRPC would take for a name and not find."""
    if server.lower().startswith(("http://", "https://")):
        raise click.BadParameter(f"{server}: expected HOST:PORT, that of --listen of the server")
    return server


_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_OPTIONS = [
    click.option(
        "--server",
        default="127.0.0.1:50051",
        show_default=True,
        envvar="OPSERVICE_SERVER",
        show_envvar=True,
        metavar="HOST:PORT",
        callback=_check_server,
        help="Address of the server: HOST:PORT or unix:PATH.",
    ),
    click.option("--tls", is_flag=True, help="Use TLS, and trust the authorities of this system."),
    click.option(
        "--tls-ca",
        type=_FILE,
        envvar="OPSERVICE_TLS_CA",
        show_envvar=True,
        help="Use TLS, and trust the authorities in this file (PEM).",
    ),
    click.option(
        "--tls-server-name",
        envvar="OPSERVICE_TLS_SERVER_NAME",
        show_envvar=True,
        help="Name in the server's certificate, if it is not the host of --server.",
    ),
    # Not OPSERVICE_TLS_CERT: that is the server's own, and in a container both read one environment.
    click.option(
        "--tls-cert",
        type=_FILE,
        envvar="OPSERVICE_TLS_CLIENT_CERT",
        show_envvar=True,
        help="Client certificate (PEM), if the server demands one. Needs --tls-key.",
    ),
    click.option(
        "--tls-key",
        type=_FILE,
        envvar="OPSERVICE_TLS_CLIENT_KEY",
        show_envvar=True,
        help="Private key (PEM) of --tls-cert.",
    ),
    click.option(
        "--token-file",
        type=_FILE,
        help="File with the token, which is sent as `authorization: Bearer`. Default: the variable"
        " OPSERVICE_TOKEN. Without TLS, a token is sent only to this machine.",
    ),
]


def server_options(timeout: str | None = "10s") -> Callable[[Command], Command]:
    """Options that make the command's first argument, a Connection.

    `timeout` is the default of --timeout, of each call; None for a command that has its own.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def connected(
            server: str,
            token_file: Path | None,
            tls: bool,
            tls_ca: Path | None,
            tls_server_name: str | None,
            tls_cert: Path | None,
            tls_key: Path | None,
            call_timeout: int = 0,
            **others: Any,
        ) -> Any:
            credentials = None
            if tls or tls_ca or tls_cert or tls_key:
                credentials = _credentials(tls_ca, tls_cert, tls_key)
            token = _token(token_file)
            if token and credentials is None and not is_loopback(server):
                raise click.UsageError(
                    f"a token is not sent to {server} in plaintext: use --tls or --tls-ca"
                )
            channel = _channel(server, credentials, tls_server_name)
            new_producer = functools.partial(
                Producer,
                server,
                credentials=credentials,
                token=token,
                tls_server_name=tls_server_name,
                start_timeout=timedelta(microseconds=call_timeout),
            )
            seconds = call_timeout / 1e6
            with Connection(server, channel, token, seconds, new_producer) as connection:
                return command(connection, **others)

        options: list[Callable[[Any], Any]] = list(_OPTIONS)
        if timeout is not None:
            options.append(
                click.option(
                    "--timeout",
                    "call_timeout",
                    type=Duration(),
                    default=timeout,
                    show_default=True,
                    help="Give up on a call after this time.",
                )
            )
        decorated: Any = connected
        for option in reversed(options):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return] # click's options keep the function they decorate

    return decorate


def _channel(
    server: str, credentials: grpc.ChannelCredentials | None, server_name: str | None
) -> grpc.Channel:
    options: list[tuple[str, Any]] = list(_CHANNEL_OPTIONS)
    if is_loopback(server):
        # A proxy, which gRPC takes from the environment, would see the token on its way to this machine.
        options.append(("grpc.enable_http_proxy", 0))
    if credentials is None:
        return grpc.insecure_channel(server, options)
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    return grpc.secure_channel(server, credentials, options)


def _credentials(ca: Path | None, cert: Path | None, key: Path | None) -> grpc.ChannelCredentials:
    if (cert is None) != (key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together: give both or neither")
    if ca is None:
        # Else gRPC would trust what it brings along, and not what this machine's owner added.
        system = ssl.get_default_verify_paths().cafile
        ca = Path(system) if system is not None else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        load_tls_files(context, certificate=cert, key=key, authorities=ca)
        return grpc.ssl_channel_credentials(
            ca.read_bytes() if ca else None,
            key.read_bytes() if key else None,
            cert.read_bytes() if cert else None,
        )
    except TlsFilesUnusable as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        raise click.UsageError(explain_unreadable(error, "")) from error


def _token(file: Path | None) -> str | None:
    if file is None:
        source, token = "OPSERVICE_TOKEN", environ.get("OPSERVICE_TOKEN", "")
    else:
        source, token = str(file), read_secret(file)
    token = token.strip()
    if not (token.isascii() and token.isprintable()) or (file is not None and not token):
        raise click.UsageError(f"{source} holds no token: expected printable ASCII in one line")
    return token or None


def read_secret(file: Path) -> str:
    """The text of a file. Raises UsageError when it cannot be read."""
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"cannot read {file}: {error}") from error
