"""Types of parameters that several commands have."""

from __future__ import annotations

import click

from opservice.settings import parse_duration


class Duration(click.ParamType[int]):
    """Microseconds, written `500ms`, `2m`, `1.5h`."""

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
