"""What the README says is true, and it is short."""

from __future__ import annotations

import re
from pathlib import Path

from click import Context

from opservice.cli import cli

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def test_the_readme_is_read_in_two_minutes() -> None:
    assert len(README.read_text().splitlines()) <= 120


def test_every_page_that_the_readme_links_to_exists() -> None:
    targets = re.findall(r"\]\(([^)#]+)", README.read_text())
    local = [target for target in targets if not target.startswith("https://")]
    assert local
    assert [target for target in local if not (ROOT / target).exists()] == []


def shell_lines() -> list[list[str]]:
    """The commands of the README's shell blocks, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
    lines = [line.partition(" #")[0].split() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_every_script_that_the_readme_calls_exists() -> None:
    scripts = [line[0] for line in shell_lines() if line[0].startswith("scripts/")]
    assert scripts
    assert [script for script in scripts if not (ROOT / script).exists()] == []


def test_every_command_that_the_readme_calls_takes_the_options_it_gives() -> None:
    called = [line[1:] for line in shell_lines() if line[0] == "opservice"]
    assert called
    for name, *arguments in called:
        command = cli.get_command(Context(cli), name)
        assert command, name
        options = {option for parameter in command.params for option in parameter.opts}
        assert {each for each in arguments if each.startswith("-")} <= options, name
