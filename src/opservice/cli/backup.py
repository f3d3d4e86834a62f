"""`opservice backup`: a copy of the database while the server runs."""

from __future__ import annotations

from pathlib import Path

import click

from opservice.cli.settings_options import config_option, refuse_password, setting_option


@click.command("backup")
@setting_option("database")
@config_option
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
def backup_command(database: str, force: bool, file: Path) -> None:
    """Copy an SQLite database to FILE while the server runs.

    The copy contains every change that was acknowledged before the command began. The command checks the
    copy, and writes FILE whole or not at all. docs/databases.md explains how to restore it. For a PostgreSQL
    database, use PostgreSQL's own tools.

    \b
    opservice backup backup.db
    opservice backup --database sqlite:////data/opservice.db --force /backups/opservice.db
    """
    refuse_password(database)
    from opservice.store.drivers import back_up
    from opservice.store.urls import parse_database_url

    made = back_up(parse_database_url(database), file, overwrite=force)
    mib = made.bytes / (1 << 20)
    click.echo(f"Backed up {made.operations} operations ({mib:.1f} MiB) to {file}")
