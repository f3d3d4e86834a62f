"""`opservice token`: a token for a caller, and its entry for the file of `serve --tokens`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import yaml

from opservice.auth.policy import hash_token, new_token, valid_subject
from opservice.cli.parameters import Duration
from opservice.domain.identity import MAX_SUBJECT, parse_grant


@click.command("token")
@click.option(
    "--subject",
    required=True,
    help="Name of the caller. It is the created_by of the operations that they start.",
)
@click.option(
    "--grant",
    "grants",
    multiple=True,
    metavar="ROLE:PARENT",
    help="What the caller may do, and where: viewer:folders/b1g for one parent, editor:folders/b1g/* for"
    " it and all below it, producer:* for all. Roles: viewer, editor, producer, admin. May be repeated.",
)
@click.option(
    "--expires-in",
    type=Duration(),
    help="Time until the token expires, such as 90d. Default: never.",
)
def token_command(subject: str, grants: tuple[str, ...], expires_in: int | None) -> None:
    """Make a token, and its entry for the file of `serve --tokens`.

    Prints the token once, on standard error. Prints the entry, which contains only the token's hash, on
    standard output.

    \b
    opservice token --subject alice --grant 'editor:folders/b1g/*' >> tokens.yaml
    """
    if not valid_subject(subject):
        raise click.UsageError(f"--subject must be 1 to {MAX_SUBJECT} printable characters")
    for grant in grants:
        try:
            parse_grant(grant)
        except ValueError as error:
            raise click.UsageError(f"--grant {error}") from error
    token = new_token()
    entry: dict[str, object] = {
        "subject": subject,
        "sha256": hash_token(token),
        "grants": list(grants),
    }
    if expires_in is not None:
        until = datetime.now(UTC) + timedelta(microseconds=expires_in)
        entry["expires"] = until.replace(microsecond=0)
    click.echo(yaml.safe_dump([entry], sort_keys=False, allow_unicode=True), nl=False)
    click.echo(f"The token of {subject}, shown only now: {token}", err=True)
