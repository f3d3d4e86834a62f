"""The configuration file: TOML, one key a setting, named as the flag without its dashes.

listen = "0.0.0.0:443"
tls-cert = "/etc/opservice/server.pem"
retention = "90d"
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from opservice import __version__
from opservice.common.plain import plain
from opservice.domain.errors import OpserviceError, StartupError
from opservice.runtime.settings import GROUPS, SETTINGS
from opservice.runtime.settings.setting import settings_of
from opservice.store.urls import parse_database_url

MAX_BYTES = 1 << 20
_SHOWN = 40
"""Characters of an unknown key that are shown: somebody may have put a secret there."""

_NAMES = {each.key: name for name, each in SETTINGS.items()}


def read_config(path: Path) -> dict[str, Any]:
    """The values in the file, by the names of settings. May block.

    Raises StartupError, which names the file and the key, for a file that cannot be read or is not TOML, for
    an unknown key, for a value of the wrong type or out of bounds, and when others may read a password in it
    or may write to it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise StartupError(f"cannot read the configuration {path}: {error.strerror}") from error
    if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
        raise StartupError(
            f"everybody may write to the configuration {path}: run 'chmod o-w {path}'"
        )
    values = {
        name: _value(path, name, value) for name, value in _named(path, _parse(path, content))
    }
    if _has_password(path, values.get("database")) and mode & stat.S_IROTH:
        raise StartupError(
            f"the database URL in {path} has a password, and everybody may read the file: run"
            f" 'chmod o-r {path}'"
        )
    return values


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    if len(content) > MAX_BYTES:
        raise StartupError(f"the configuration {path} is longer than {MAX_BYTES} bytes")
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError:
        raise StartupError(f"the configuration {path} is not TOML: it is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        where = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "a value is too large"
        raise StartupError(f"the configuration {path} is not TOML: {plain(where)}") from None


def _named(path: Path, content: dict[str, Any]) -> list[tuple[str, Any]]:
    """The values by the names of settings. Raises StartupError for an unknown key."""
    for key, value in content.items():
        if key not in _NAMES:
            raise StartupError(f"{path}: {_explain_unknown(key, value)}")
    return [(_NAMES[key], value) for key, value in content.items()]


def _explain_unknown(key: str, value: object) -> str:
    close = get_close_matches(key.replace("_", "-").lower(), _NAMES, 1)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    if isinstance(value, dict) and not close:
        guess = "; settings stand at the top, in no table"
    return f"unknown key {plain(key[:_SHOWN])!r}{guess}"


def _value(path: Path, name: str, value: object) -> Any:
    setting = SETTINGS[name]
    try:
        return setting.from_toml(value)
    except ValueError as error:
        raise StartupError(f"{path}: {setting.key}: {error}") from error


def _has_password(path: Path, database: str | None) -> bool:
    try:
        return database is not None and parse_database_url(database).holds_secret
    except OpserviceError as error:
        raise StartupError(f"{path}: database: {error.message}") from error


def format_config(values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """The values as a configuration file, which `read_config` accepts.

    `origins` says where each value comes from, in a few words. A database URL with a password is left out.
    Raises UnicodeEncodeError for a value that is not Unicode.
    """
    lines = [f"# opservice {__version__}: the effective configuration, for --config"]
    for group in GROUPS.values():
        lines += ["", f"# {group.TITLE}"]
        for setting in settings_of(group):
            value, origin = values[setting.name], plain(origins[setting.name])
            if value is None:
                lines.append(f"# {setting.key} is not set")
            elif setting.name == "database" and parse_database_url(value).holds_secret:
                shown = plain(parse_database_url(value).shown)
                lines.append(
                    f"# {setting.key} is left out, as it has a password: {shown} ({origin})"
                )
            else:
                lines.append(f"{setting.key} = {setting.to_toml(value)}  # {origin}")
    return "\n".join(lines)
