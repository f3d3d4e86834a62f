"""The command line: arguments in, exit codes out; no logic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from opservice import __version__
from opservice.errors import OpserviceError, StoreError
from opservice.logs import configure_logging
from opservice.server import serve as serve_until_stopped
from opservice.settings import (
    Settings,
    default_of,
    environment_variable,
    flag,
    format_value,
    parse_duration,
)
from opservice.store.engine import open_database
from opservice.store.migrations import migrate as migrate_database

Command = TypeVar("Command", bound=Callable[..., Any])


class Duration(click.ParamType[int]):
    name = "duration"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


def _option(setting: Field[Any]) -> Callable[[Command], Command]:
    kind = setting.metadata["kind"]
    default = default_of(setting)
    arguments: dict[str, Any] = {
        "help": setting.metadata["meaning"],
        "envvar": environment_variable(setting),
        "show_envvar": True,
        "default": default,
        "show_default": format_value(setting, default) or False,
    }
    if kind == "flag":
        return click.option(flag(setting), is_flag=True, **arguments)
    if kind in {"file", "files"}:
        arguments["type"] = click.Path(path_type=Path)
    elif kind == "duration":
        arguments["type"] = Duration()
    elif kind == "choice":
        arguments["type"] = click.Choice(setting.metadata["choices"])
    elif kind in {"count", "bytes"}:
        arguments["type"] = int
        arguments["metavar"] = kind.upper()
    return click.option(flag(setting), multiple=kind in {"files", "texts"}, **arguments)


def _settings_options(command: Command) -> Command:
    for setting in reversed(fields(Settings)):
        command = _option(setting)(command)
    return command


_DATABASE = next(setting for setting in fields(Settings) if setting.name == "database")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="opservice")
def cli() -> None:
    """A durable long-running-operations server."""


@cli.command()
@_settings_options
def serve(**arguments: Any) -> None:
    """Run the server until SIGTERM.

    \b
    opservice serve                                     on SQLite, in ./opservice.db
    opservice serve --demo                              with something to look at
    opservice serve --listen 0.0.0.0:443 --tls-cert server.pem --tls-key server.key
    OPSERVICE_DATABASE=postgresql://... opservice serve --migrate
    """
    settings = Settings(**arguments)
    configure_logging(settings)
    asyncio.run(serve_until_stopped(settings, lambda line: click.echo(line)))


@cli.command()
@_option(_DATABASE)
def migrate(database: str) -> None:
    """Bring a database's schema up to date. Safe to repeat, and to run from several places."""
    opened = open_database(database)
    try:
        before, after = migrate_database(opened)
    finally:
        opened.close()
    if before == after:
        click.echo(f"The schema is up to date: {after}")
    else:
        click.echo(f"Migrated the schema from {before or 'nothing'} to {after}")


@cli.command()
@click.option(
    "--server",
    default="127.0.0.1:50051",
    show_default=True,
    envvar="OPSERVICE_SERVER",
    show_envvar=True,
    metavar="HOST:PORT",
)
@click.option(
    "--tls-ca",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    envvar="OPSERVICE_TLS_CA",
    show_envvar=True,
    help="Speak TLS, and trust these authorities (PEM).",
)
@click.option(
    "--tls-server-name",
    envvar="OPSERVICE_TLS_SERVER_NAME",
    show_envvar=True,
    help="The name to expect in the server's certificate, where it is not that of --server.",
)
@click.option("--timeout", type=Duration(), default="3s", show_default=True)
def health(server: str, tls_ca: Path | None, tls_server_name: str | None, timeout: int) -> None:
    """Exit with 0 when the server is serving, else with 1."""
    with _channel(server, tls_ca, tls_server_name) as channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(  # type: ignore[attr-defined] # its types lack the methods
                health_pb2.HealthCheckRequest(), timeout=timeout / 1e6
            )
        except grpc.RpcError as error:
            raise click.ClickException(
                f"{server}: {error.code().name}: {error.details()}"
            ) from error
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    click.echo(status)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise SystemExit(1)


def _channel(server: str, tls_ca: Path | None, server_name: str | None) -> grpc.Channel:
    if tls_ca is None:
        return grpc.insecure_channel(server)
    options = [("grpc.ssl_target_name_override", server_name)] if server_name else []
    credentials = grpc.ssl_channel_credentials(tls_ca.read_bytes())
    return grpc.secure_channel(server, credentials, options)


def main() -> None:
    try:
        cli()
    except OpserviceError as error:
        click.echo(f"opservice: {error.message}{_cause(error)}", err=True)
        raise SystemExit(1) from error


def _cause(error: OpserviceError) -> str:
    """What the driver said, for the operator: without it nobody knows why the database failed."""
    if not isinstance(error, StoreError) or error.__cause__ is None:
        return ""
    return " " + str(error.__cause__).partition("\n")[0]
