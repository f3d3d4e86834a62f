"""Types of parameters that several commands have."""

from __future__ import annotations

import click

from opservice.common.durations import parse_duration
from opservice.domain.operation import SECOND

_LONGEST = 315_576_000_000 * SECOND  # google/protobuf/duration.proto


class Duration(click.ParamType[int]):
    """Microseconds, written `500ms`, `2m`, `1.5h`."""

    name = "duration"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        try:
            duration = parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)
        if duration > _LONGEST:
            self.fail(f"{value!r}: more than 10000 years", param, ctx)
        return duration
