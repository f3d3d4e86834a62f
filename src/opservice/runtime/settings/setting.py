"""What one setting is: its names, its default, its bounds, and the words that explain it.

A setting is declared once, as a field of its group (`groups.py`). The command line, the environment, the
configuration file and docs/settings.md are all made from that declaration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from opservice.common.durations import format_duration, parse_duration
from opservice.domain.errors import StartupError
from opservice.domain.operation import DAY

Kind = Literal["text", "choice", "flag", "count", "bytes", "duration", "files", "file", "texts"]
"""`duration` is whole microseconds; `count` and `bytes` are whole numbers; `texts` and `files` are tuples."""

_LONGEST = 10_000 * DAY
"""No duration may be longer: databases and clients cannot count so far."""

_TOML_TYPES: Mapping[Kind, tuple[type, str]] = {
    "text": (str, "text in quotes"),
    "choice": (str, "text in quotes"),
    "file": (str, "a path in quotes"),
    "duration": (str, 'a duration in quotes, such as "30s"'),
    "flag": (bool, "true or false"),
    "count": (int, "a whole number"),
    "bytes": (int, "a whole number"),
    "texts": (list, 'a list of texts, such as ["a", "b"]'),
    "files": (list, 'a list of paths, such as ["a", "b"]'),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The declaration of one setting."""

    name: str
    kind: Kind
    default: Any
    meaning: str
    """What it does, in whole sentences. `--help` and docs/settings.md show it."""

    change_when: str
    """The end of a sentence that begins with "Change it when"."""

    essential: bool = False
    """Whether everybody needs to know it."""

    least: int | None = None
    most: int | None = None
    choices: tuple[str, ...] = ()

    @classmethod
    def of(cls, declared: Field[Any]) -> Setting:
        assert declared.default is not MISSING
        return cls(name=declared.name, default=declared.default, **declared.metadata)

    @property
    def flag(self) -> str:
        return "--" + self.key

    @property
    def variable(self) -> str:
        """The environment variable."""
        return "OPSERVICE_" + self.name.upper()

    @property
    def key(self) -> str:
        """The key in the configuration file."""
        return self.name.replace("_", "-")

    @property
    def bounds(self) -> tuple[int | None, int | None]:
        """The least and the greatest value; None where there is no bound."""
        return self.least, self.most or (_LONGEST if self.kind == "duration" else None)

    def explain_bounds(self, value: Any) -> str | None:
        """How the value is out of bounds, None when it is not."""
        least, most = self.bounds
        if least is not None and value < least:
            return f"is {self.format(value)}, but must be at least {self.format(least)}"
        if most is not None and value > most:
            return f"is {self.format(value)}, but must be at most {self.format(most)}"
        return None

    def format(self, value: Any) -> str:
        """The value as one would write it on the command line."""
        if self.kind == "duration":
            return format_duration(value)
        if self.kind == "flag":
            return "on" if value else "off"
        if isinstance(value, tuple):
            return " ".join(map(str, value))
        return "" if value is None else str(value)

    def to_toml(self, value: Any) -> str:
        """The value as it stands in the configuration file. The value must not be None."""
        if isinstance(value, tuple):
            return "[" + ", ".join(_toml_text(str(each)) for each in value) + "]"
        if self.kind == "flag":
            return "true" if value else "false"
        if self.kind in {"count", "bytes"}:
            return str(value)
        return _toml_text(self.format(value))

    def from_toml(self, value: object) -> Any:
        """The value from the configuration file. Raises ValueError, which never quotes what stands there."""
        type_, expected = _TOML_TYPES[self.kind]
        if type(value) is not type_:
            raise ValueError(f"expected {expected}")
        texts = value if isinstance(value, list) else [value] if isinstance(value, str) else []
        if not all(isinstance(each, str) for each in texts):
            raise ValueError(f"expected {expected}")
        if any("\0" in each for each in texts):
            raise ValueError("a NUL character is not allowed")
        converted = self._convert(value)
        out_of_bounds = self.explain_bounds(converted)
        if out_of_bounds is not None:
            raise ValueError(out_of_bounds)
        return converted

    def _convert(self, value: Any) -> Any:
        if self.kind == "choice" and value not in self.choices:
            raise ValueError("expected one of " + ", ".join(self.choices))
        if self.kind == "file":
            return Path(value)
        if self.kind == "files":
            return tuple(map(Path, value))
        if self.kind == "texts":
            return tuple(value)
        if self.kind == "duration":
            return parse_duration(value)
        return value


def setting(
    kind: Kind, default: Any, meaning: str, *, change_when: str, secret: bool = False, **more: Any
) -> Any:
    """Declares a setting as a field of its group. A `secret` is left out of the group's repr."""
    metadata = {"kind": kind, "meaning": meaning, "change_when": change_when, **more}
    return field(default=default, repr=not secret, metadata=metadata)


def settings_of(group: Any) -> tuple[Setting, ...]:
    """The settings of a group, or of a class of groups."""
    return tuple(map(Setting.of, fields(group)))


def check_bounds(group: Any) -> None:
    """Raises StartupError, which names the flag and the bound, when a value is out of bounds."""
    for each in settings_of(group):
        out_of_bounds = each.explain_bounds(getattr(group, each.name))
        if out_of_bounds is not None:
            raise StartupError(f"{each.flag} {out_of_bounds}")


def _toml_text(text: str) -> str:
    """A basic string of TOML. Raises UnicodeEncodeError for text that is not Unicode, such as some paths."""
    text.encode()
    # JSON escapes as TOML does, but for this character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
