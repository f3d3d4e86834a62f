"""`opservice serve` and `opservice migrate`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from opservice.cli.parameters import Duration
from opservice.runtime.settings import GROUPS, SETTINGS, Settings
from opservice.runtime.settings.setting import Setting, settings_of

Command = TypeVar("Command", bound=Callable[..., Any])


def _option(setting: Setting) -> Callable[[Command], Command]:
    kind = setting.kind
    arguments: dict[str, Any] = {
        "help": setting.meaning,
        "envvar": setting.variable,
        "show_envvar": True,
        "default": setting.default,
        "show_default": setting.format(setting.default) or False,
    }
    if kind == "flag":
        return click.option(setting.flag, is_flag=True, **arguments)
    if kind in {"file", "files"}:
        arguments["type"] = click.Path(path_type=Path)
    elif kind == "duration":
        arguments["type"] = Duration()
    elif kind == "choice":
        arguments["type"] = click.Choice(setting.choices)
    elif kind in {"count", "bytes"}:
        arguments["type"] = int
        arguments["metavar"] = kind.upper()
    return click.option(setting.flag, multiple=kind in {"files", "texts"}, **arguments)


def _settings_options(command: Command) -> Command:
    for setting in reversed(list(SETTINGS.values())):
        command = _option(setting)(command)
    return command


def refuse_password(database: str) -> None:
    """Raises UsageError when a password was given on the command line, StartupError for what is no URL."""
    source = click.get_current_context().get_parameter_source("database")
    if source is not ParameterSource.COMMANDLINE:
        return
    from opservice.store.urls import parse_database_url

    if parse_database_url(database).holds_secret:
        raise click.UsageError(
            "a password in --database is seen by whoever may list this machine's processes: give"
            " the URL as OPSERVICE_DATABASE, or the password as PGPASSWORD or in a .pgpass file"
        )


database_option = _option(SETTINGS["database"])


class _ServeCommand(click.Command):
    """Shows the settings by group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        shown = {parameter.name: parameter.get_help_record(ctx) for parameter in self.params}
        for group in GROUPS.values():
            names = [setting.name for setting in settings_of(group)]
            with formatter.section(group.TITLE):
                formatter.write_dl([record for name in names if (record := shown.pop(name))])
        others = [*shown.values(), *(each.get_help_record(ctx) for each in self._help(ctx))]
        with formatter.section("Other options"):
            formatter.write_dl([record for record in others if record])

    def _help(self, ctx: click.Context) -> list[click.Option]:
        option = self.get_help_option(ctx)
        return [] if option is None else [option]


@click.command("serve", cls=_ServeCommand)
@_settings_options
def serve_command(**arguments: Any) -> None:
    """Run the server until SIGTERM.

    \b
    opservice serve                                     on SQLite, in ./opservice.db
    opservice serve --demo                              with something to look at
    opservice serve --workers 4                         with a process for each of four cores
    opservice serve --listen 0.0.0.0:443 --tls-cert server.pem --tls-key server.key
    OPSERVICE_DATABASE=postgresql://... opservice serve --migrate
    """
    refuse_password(arguments["database"])
    settings = Settings.of(**arguments)
    # Only now: they take most of a second, which --help and wrong usage need not wait for.
    import uvloop

    from opservice.main.server import serve
    from opservice.main.workers import supervise
    from opservice.runtime.logs import configure_logging

    configure_logging(settings.logging, settings.storage.file_group)
    if settings.processes.workers > 1:
        sys.exit(asyncio.run(supervise(settings, lambda line: click.echo(line))))
    uvloop.run(serve(settings, lambda line: click.echo(line)))


@click.command("migrate")
@database_option
@_option(SETTINGS["file_group"])
def migrate_command(database: str, file_group: str) -> None:
    """Bring a database's schema up to date. Safe to repeat, and to run from several places.

    \b
    OPSERVICE_DATABASE=postgresql://... opservice migrate
    """
    refuse_password(database)
    from opservice.common.private_files import group_id
    from opservice.store.engine import open_database
    from opservice.store.migrations import migrate

    opened = open_database(database, group=group_id(file_group))
    try:
        opened.check_connections()
        before, after = migrate(opened)
    finally:
        opened.close()
    if before == after:
        click.echo(f"The schema is up to date: {after}")
    else:
        click.echo(f"Migrated the schema from {before or 'nothing'} to {after}")
