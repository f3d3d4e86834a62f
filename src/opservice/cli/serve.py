"""`opservice serve` and `opservice migrate`."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import click

from opservice.cli.settings_options import (
    CommandWithSettings,
    all_settings_options,
    config_option,
    config_text,
    refuse_password,
    setting_option,
)
from opservice.runtime.settings import Settings


@click.command("serve", cls=CommandWithSettings)
@all_settings_options
@config_option
@click.option(
    "--print-config",
    is_flag=True,
    help="Print the settings that would be in effect as a configuration file, with where each comes from, and"
    " exit. A database URL with a password is left out.",
)
def serve_command(print_config: bool, **arguments: Any) -> None:
    """Run the server until SIGTERM.

    \b
    opservice serve                                     on SQLite, in ./opservice.db
    opservice serve --demo                              with something to look at
    opservice serve --workers 4                         with a process for each of four cores
    opservice serve --config opservice.toml             with settings from a file
    opservice serve --listen 0.0.0.0:443 --tls-cert server.pem --tls-key server.key --tokens tokens.yaml
    OPSERVICE_DATABASE=postgresql://... opservice serve --migrate
    """
    refuse_password(arguments["database"])
    settings = Settings.of(**arguments)
    if print_config:
        click.echo(config_text(arguments))
        return
    # Only now: they take most of a second, which --help and wrong usage need not wait for.
    import uvloop

    from opservice.main.serve import serve, supervise
    from opservice.runtime.logs import configure_logging

    configure_logging(settings.logging, settings.storage.file_group)
    if settings.processes.workers > 1:
        sys.exit(asyncio.run(supervise(settings, announce)))
    uvloop.run(serve(settings, announce))


def announce(line: str) -> None:
    """Prints the line. When nobody reads it any more, as after `| head -1`, the server must not fail."""
    try:
        click.echo(line)
    except OSError:
        # Python writes what is left when it exits, and would exit with 120 if that failed.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@click.command("migrate")
@setting_option("database")
@setting_option("file_group")
@config_option
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
