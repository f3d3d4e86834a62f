"""The command line: arguments in, exit codes out; no logic.

Each command is imported when it is called, so that `get` does not wait for a database driver.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from io import TextIOWrapper

import click

from opservice import __version__
from opservice.cli.exits import INTERRUPTED, CommandFailed, Exit
from opservice.domain.errors import OpserviceError, StoreError

_COMMANDS = {
    "serve": "serve",
    "migrate": "serve",
    "backup": "backup",
    "token": "token",
    "health": "health",
    "get": "operations",
    "list": "operations",
    "wait": "waiting",
    "watch": "waiting",
    "cancel": "operations",
    "delete": "operations",
    "run": "running",
    "start": "producing",
    "renew": "producing",
    "report": "producing",
    "complete": "producing",
    "fail": "producing",
    "completion": "completion",
}
"""The module of each command, which has it under the name COMMAND_command."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        # What gRPC's C core has to say breaks live output and the JSON of a log, as often as a peer likes.
        # It looks at this when it is imported.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        module = import_module(f"{__name__}.{_COMMANDS[cmd_name]}")
        command = getattr(module, f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except OpserviceError as error:
            raise CommandFailed(f"{error.message}{_cause(error)}", Exit.ERROR) from error
        except UnicodeEncodeError as error:
            raise click.UsageError("an argument is not valid UTF-8") from error
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="opservice")
def cli() -> None:
    """The operations server of an asynchronous API, and its command-line client.

    \b
    Exit codes:
      0    success; wait, watch: the operation ended with a response
      1    something unexpected
      2    wrong usage
      3    wait, watch: the operation failed
      4    wait, watch: the operation was cancelled; renew, report: a cancel was requested
      5    wait, watch: it was not done within --timeout
      6    there is no such operation
      7    the server could not be reached, or cannot serve at the moment
      8    the server refused the request
      130  interrupted (Ctrl-C)
    With several ids, the exit code is the first of 1, 7, 8, 6, 5, 3, 4, 0 that applies to any.
    `run` has the exit code of its command.
    """


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Text from the server may have characters that this terminal has not.
            stream.reconfigure(errors="backslashreplace")
    cli()


def _cause(error: OpserviceError) -> str:
    """What the driver said, for the operator: without it nobody knows why the database failed."""
    if not isinstance(error, StoreError) or error.__cause__ is None:
        return ""
    return " " + str(error.__cause__).partition("\n")[0]
