"""The public keys that check tokens: a JWKS (RFC 7517) from a file or a URL, read again now and then.

The keys that were read last stay in use until better ones are read: when the source fails, the log says so,
and nothing else changes. When a token names an unknown key, the source is read at once, so that keys can be
rotated without refusing a valid token.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jwt

from opservice.auth.fetching import FetchFailed, fetch
from opservice.common.jitter import jitter
from opservice.common.loggers import get_logger
from opservice.common.threads import OneThread
from opservice.domain.errors import KeysUnavailable, StartupError
from opservice.domain.operation import SECOND

MIN_PAUSE_SECONDS = 1.0
"""The pause between two readings, because anybody can send tokens that name unknown keys."""

MAX_ASKING = 500
"""Calls that may wait for keys at the same time."""

MAX_JWKS_BYTES = 1 << 20
_FETCH_SECONDS = 8.0
"""The time for the whole answer of a URL."""
_READ_SECONDS = 9.0
"""The time for one reading, including the lookup of names, and slow file systems."""
_FIRST_BACKOFF_SECONDS = 2.0
_URL_SCHEMES = ("https://", "http://")

_PATIENCE_SECONDS = 10.0
"""How long a call waits while the keys are read."""

log = get_logger("opservice.keys")


class KeysUnreadable(Exception):
    """The keys cannot be read. The message says why."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key: its JSON text, and the object of PyJWT, which is bound to one algorithm."""

    description: str
    jwk: jwt.PyJWK = field(compare=False)


Keys = Mapping[str, Key]
"""Keys by their ids; a key without an id has the id ""."""


def is_url(source: str) -> bool:
    """Whether --jwks names a URL. Otherwise it names a file."""
    return source.startswith(_URL_SCHEMES)


def read_keys(source: str, proxy: str = "") -> Keys:
    """Reads the signature keys of a file or URL. May block. Raises KeysUnreadable.

    A URL is fetched through `proxy` if that is given. Proxies of the environment are not used.
    """
    try:
        if is_url(source):
            content = fetch(source, seconds=_FETCH_SECONDS, most_bytes=MAX_JWKS_BYTES, proxy=proxy)
        else:
            content = _read_file(Path(source))
        return _keys(json.loads(content))
    except (OSError, ValueError, TypeError, RecursionError, FetchFailed) as error:
        raise KeysUnreadable(f"no keys from {source}: {error}") from error


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_JWKS_BYTES + 1)
    if len(content) > MAX_JWKS_BYTES:
        raise ValueError(f"it is longer than {MAX_JWKS_BYTES} bytes")
    return content


def _keys(content: Any) -> Keys:
    listed = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise ValueError("it is no JWKS: there is no list of keys")  # noqa: TRY004 - one error for all
    keys: dict[str, Key] = {}
    for item in listed:
        # Not keys that are shared secrets: whoever can check with them can also sign with them.
        if (
            not isinstance(item, dict)
            or item.get("use", "sig") != "sig"
            or item.get("kty") == "oct"
        ):
            continue
        if "d" in item:
            raise ValueError("it has a private key: give the public ones alone")
        # Skips keys of an unknown kind, and those for the algorithm "none".
        with suppress(jwt.PyJWTError, NotImplementedError):
            key = Key(json.dumps(item, sort_keys=True), jwt.PyJWK(item))
            key_id = str(item.get("kid", ""))
            if key_id in keys:
                raise ValueError(f"it has two keys with the id {key_id!r}")
            keys[key_id] = key
    if not keys:
        raise ValueError("it has no public key of a known kind")
    return keys


class KeySource:
    """Keeps the keys of a file or URL, and reads them again every `interval` microseconds.

    Calls `on_change` on the event loop when the keys have changed. A URL is fetched through `proxy` if that
    is given. Proxies of the environment are not used.
    """

    def __init__(
        self, source: str, interval: int, on_change: Callable[[], None], proxy: str = ""
    ) -> None:
        self._source = source
        self._read_keys = partial(read_keys, source, proxy)
        self._thread: OneThread[Keys] = OneThread("keys")
        self._interval = interval / SECOND
        self._on_change = on_change
        self._keys: Keys = {}
        self._failed = False
        self._asking = 0
        self._tell = False
        self._wanted = asyncio.Event()
        self._next_reading = asyncio.Event()

    async def start(self, *, strict: bool = True) -> None:
        """Reads the keys. When `strict`, raises StartupError if a file has none; a URL may answer later."""
        try:
            self._keys = await self._read()
        except KeysUnreadable as error:
            if strict and not is_url(self._source):
                raise StartupError(str(error)) from error
            log.error("tokens cannot be checked yet", cause=str(error))  # noqa: TRY400 - no more to say
            self._failed = True

    async def _read(self) -> Keys:
        """Raises KeysUnreadable, also when it takes too long."""
        if self._thread.busy:
            raise KeysUnreadable(f"no keys from {self._source}: the reading before still hangs")
        try:
            async with asyncio.timeout(_READ_SECONDS):
                return await self._thread.run(self._read_keys)
        except TimeoutError as error:
            raise KeysUnreadable(
                f"no keys from {self._source} within {_READ_SECONDS:g} s"
            ) from error

    @property
    def has_keys(self) -> bool:
        """Whether any keys were read yet. Until then every token is refused."""
        return bool(self._keys)

    def find(self, key_id: str) -> Key | None:
        """The key with this id, or None. For "" it is the only key, if there is only one."""
        if not key_id and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    async def find_anew(self, key_id: str) -> Key | None:
        """Like `find`, but reads the keys first, in a reading that begins after this call.

        Raises KeysUnavailable when the key is unknown and the source cannot be read, or too many calls wait.
        """
        if self._asking >= MAX_ASKING:
            raise KeysUnavailable
        self.refresh()
        late = True
        self._asking += 1
        with suppress(TimeoutError):
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    await self._next_reading.wait()
                    late = False
            finally:
                self._asking -= 1
        key = self.find(key_id)
        if key is None and (late or self._failed):
            raise KeysUnavailable
        return key

    def refresh(self, *, tell: bool = False) -> None:
        """Asks for a reading soon. With `tell` the log mentions it even when nothing has changed."""
        self._tell = self._tell or tell
        self._wanted.set()

    async def keep_fresh(self) -> None:
        """Reads the keys again every interval, and when `refresh` asks for it, until cancelled."""
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            await asyncio.sleep(MIN_PAUSE_SECONDS)
            until_next = backoff if self._failed else self._interval * jitter.uniform(0.9, 1)
            with suppress(TimeoutError):
                async with asyncio.timeout(until_next):
                    await self._wanted.wait()
            self._wanted.clear()
            tell, self._tell = self._tell, False
            # Calls that ask from now on wait for the next reading, not for this one.
            awaited, self._next_reading = self._next_reading, asyncio.Event()
            try:
                keys = await self._read()
                self._failed = False
                if keys != self._keys:
                    self._keys = keys
                    log.info("new keys", key_ids=sorted(keys))
                    self._on_change()
                elif tell:
                    log.info("the keys were reloaded, and nothing has changed")
            except KeysUnreadable as error:
                log.error("the previous keys stay in use", cause=str(error))  # noqa: TRY400 - no more to say
                backoff = (
                    min(2 * backoff, self._interval) if self._failed else _FIRST_BACKOFF_SECONDS
                )
                self._failed = True
            except Exception:  # whatever it is, the keys must be read again
                log.exception("the previous keys stay in use")
                self._failed = True
            finally:
                awaited.set()
