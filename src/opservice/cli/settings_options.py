"""Options that are made from the settings' declarations, and --config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from opservice.cli.parameters import Duration
from opservice.runtime.settings import GROUPS, SETTINGS
from opservice.runtime.settings.setting import settings_of

Command = TypeVar("Command", bound=Callable[..., Any])


def setting_option(name: str) -> Callable[[Command], Command]:
    """The option of this setting."""
    setting = SETTINGS[name]
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


def all_settings_options(command: Command) -> Command:
    for name in reversed(list(SETTINGS)):
        command = setting_option(name)(command)
    return command


def _read_config(ctx: click.Context, _parameter: click.Parameter, file: Path | None) -> None:
    """Gives click the file's values, which count for less than flags and variables."""
    if file is None or ctx.resilient_parsing:
        return
    from opservice.runtime.settings.config_file import read_config

    ctx.default_map = read_config(file)
    ctx.meta[_CONFIG] = file


_CONFIG = f"{__name__}.config"

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="OPSERVICE_CONFIG",
    show_envvar=True,
    # Before the other options are given their values.
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="Read settings from this file (TOML). Its keys are the flags without their dashes. Flags and"
    " environment variables count for more. Relative paths in it are relative to the working directory.",
)


def config_text(values: dict[str, Any]) -> str:
    """The current command's settings as a configuration file.

    Raises StartupError for a malformed database URL, UnicodeEncodeError for a value that is not Unicode.
    """
    from opservice.runtime.settings.config_file import format_config

    return format_config(values, {name: _origin(name) for name in SETTINGS})


def _origin(name: str) -> str:
    """Where the value of a setting comes from."""
    ctx = click.get_current_context()
    source = ctx.get_parameter_source(name)
    if source is ParameterSource.COMMANDLINE:
        return f"from {SETTINGS[name].flag}"
    if source is ParameterSource.ENVIRONMENT:
        return f"from {SETTINGS[name].variable}"
    if source is ParameterSource.DEFAULT_MAP:
        return f"from {ctx.meta[_CONFIG]}"
    return "the default"


def refuse_password(database: str) -> None:
    """Raises UsageError when a password was given on the command line, StartupError for a malformed URL."""
    source = click.get_current_context().get_parameter_source("database")
    if source is not ParameterSource.COMMANDLINE:
        return
    from opservice.store.urls import parse_database_url

    if parse_database_url(database).holds_secret:
        raise click.UsageError(
            "others can see a password in --database when they list this machine's processes: give the URL as"
            " OPSERVICE_DATABASE or in a private configuration file, or the password as PGPASSWORD or in a"
            " .pgpass file"
        )


class CommandWithSettings(click.Command):
    """Its help shows the settings by group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        shown = {each.name: each.get_help_record(ctx) for each in self.get_params(ctx)}
        for group in GROUPS.values():
            names = [setting.name for setting in settings_of(group)]
            with formatter.section(group.TITLE):
                formatter.write_dl([record for name in names if (record := shown.pop(name))])
        with formatter.section("Other options"):
            formatter.write_dl([record for record in shown.values() if record])
