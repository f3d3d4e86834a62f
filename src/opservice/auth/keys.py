"""The keys that tokens are checked with: a JWKS (RFC 7517) from a file or a URL, read again now and then.

What was read last is used until something better is read: a source that is away or broken changes nothing,
and is said in the log. A token of a key that is not known yet has the source read at once, so that
keys may be rotated without a good call being refused.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import structlog

from opservice.auth.fetching import FetchFailed, fetch
from opservice.common.threads import OneThread
from opservice.domain.errors import KeysUnavailable, StartupError
from opservice.domain.operation import SECOND

MIN_PAUSE_SECONDS = 1.0
"""Between two readings: anybody can invent keys that are not known."""

MAX_ASKING = 500
"""Calls that wait for keys at a time."""

MAX_JWKS_BYTES = 1 << 20
_FETCH_SECONDS = 8.0
"""For all that a URL sends."""
_READ_SECONDS = 9.0
"""For a reading, names that are looked up and slow file systems included."""
_FIRST_BACKOFF_SECONDS = 2.0
_URL_SCHEMES = ("https://", "http://")

_PATIENCE_SECONDS = 10.0
"""How long a call waits for keys that are being read."""

log = structlog.stdlib.get_logger("opservice.keys")


class KeysUnreadable(Exception):
    """The source gives no keys; says why."""


@dataclass(frozen=True, slots=True)
class Key:
    """What was read, and what it is for PyJWT, which binds it to one algorithm."""

    description: str
    jwk: jwt.PyJWK = field(compare=False)


Keys = Mapping[str, Key]
"""By key id; a key without one has the id ""."""


def is_url(source: str) -> bool:
    return source.startswith(_URL_SCHEMES)


def read_keys(source: str, proxy: str = "") -> Keys:
    """The keys of a file or URL that are for signatures. May block. Raises KeysUnreadable.

    A URL is asked through `proxy`, when one is given, and through no other.
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
        # Whoever knows a shared secret could sign with it, too.
        if (
            not isinstance(item, dict)
            or item.get("use", "sig") != "sig"
            or item.get("kty") == "oct"
        ):
            continue
        if "d" in item:
            raise ValueError("it has a private key: give the public ones alone")
        # Of a kind that is not known here, or for the algorithm "none".
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
    """Keeps the keys of a file or URL; `interval` is microseconds between two readings.

    `on_change` is called on the event loop whenever other keys were read than before. A URL is asked through
    `proxy`, when one is given, and through no other.
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
        """Whether keys have been read at all; without any every token is refused."""
        return bool(self._keys)

    def find(self, key_id: str) -> Key | None:
        """The key with this id; for "", the only one there is."""
        if not key_id and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    async def find_anew(self, key_id: str) -> Key | None:
        """As `find`, but after a reading that begins after this call.

        Raises KeysUnavailable when the key is not known and the source cannot be asked, or too many ask.
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
        """Has the keys read again soon. With `tell` the log says it also when nothing has changed."""
        self._tell = self._tell or tell
        self._wanted.set()

    async def keep_fresh(self) -> None:
        """Reads the keys again every interval and when it is wanted, until cancelled."""
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            await asyncio.sleep(MIN_PAUSE_SECONDS)
            until_next = backoff if self._failed else self._interval * random.uniform(0.9, 1)
            with suppress(TimeoutError):
                async with asyncio.timeout(until_next):
                    await self._wanted.wait()
            self._wanted.clear()
            tell, self._tell = self._tell, False
            # Who asks from now on waits for the reading after this one.
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
