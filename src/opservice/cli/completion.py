"""`opservice completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands and options in a shell.

    \b
    eval "$(opservice completion bash)"                       in ~/.bashrc
    eval "$(opservice completion zsh)"                        in ~/.zshrc
    opservice completion fish > ~/.config/fish/completions/opservice.fish
    """
    completion = get_completion_class(shell)
    assert completion is not None
    root = ctx.find_root().command
    click.echo(completion(root, {}, "opservice", "_OPSERVICE_COMPLETE").source())
