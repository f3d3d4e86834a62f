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
from threading import Thread
from typing import Any

import jwt
import structlog

from opservice.errors import KeysUnavailable, StartupError
from opservice.operation import SECOND

MIN_PAUSE_SECONDS = 1.0
"""Between two readings: anybody can invent keys that are not known."""

MAX_ASKING = 500
"""Calls that wait for keys at a time."""

_FETCH_SECONDS = 5.0
"""For a part of what a URL sends."""
_READ_SECONDS = 8.0
"""For all of it."""
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


def read_keys(source: str) -> Keys:
    """The keys of a file or URL that are for signatures. May block. Raises KeysUnreadable."""
    try:
        if is_url(source):
            # It follows no redirect, and knows no other scheme.
            client = jwt.PyJWKClient(source, cache_jwk_set=False, timeout=_FETCH_SECONDS)
            content = client.fetch_data()
        else:
            content = json.loads(Path(source).read_text())
        return _keys(content)
    except (OSError, ValueError, TypeError, RecursionError, jwt.PyJWKClientError) as error:
        raise KeysUnreadable(f"no keys from {source}: {error}") from error


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


async def _on_thread(read: Callable[[], Keys]) -> Keys:
    """On a thread that the end of the process does not wait for. Raises KeysUnreadable, also when it takes
    too long.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Keys] = loop.create_future()

    def finish(keys: Keys | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        elif keys is not None:
            done.set_result(keys)

    def work() -> None:
        keys, failure = None, None
        try:
            keys = read()
        except Exception as error:  # noqa: BLE001 - goes to the caller
            failure = error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(finish, keys, failure)

    Thread(target=work, name="keys", daemon=True).start()
    try:
        async with asyncio.timeout(_READ_SECONDS):
            return await done
    except TimeoutError as error:
        raise KeysUnreadable(f"no keys within {_READ_SECONDS:g} s") from error


class KeySource:
    """Keeps the keys of a file or URL; `interval` is microseconds between two readings.

    `on_change` is called on the event loop whenever other keys were read than before.
    """

    def __init__(self, source: str, interval: int, on_change: Callable[[], None]) -> None:
        self._source = source
        self._interval = interval / SECOND
        self._on_change = on_change
        self._keys: Keys = {}
        self._failed = False
        self._asking = 0
        self._wanted = asyncio.Event()
        self._next_reading = asyncio.Event()

    async def start(self, *, strict: bool = True) -> None:
        """Reads the keys. When `strict`, raises StartupError if a file has none; a URL may answer later."""
        try:
            self._keys = await _on_thread(partial(read_keys, self._source))
        except KeysUnreadable as error:
            if strict and not is_url(self._source):
                raise StartupError(str(error)) from error
            log.error("tokens cannot be checked yet", cause=str(error))  # noqa: TRY400 - no more to say
            self._failed = True

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

    def refresh(self) -> None:
        """Has the keys read again soon."""
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
            # Who asks from now on waits for the reading after this one.
            awaited, self._next_reading = self._next_reading, asyncio.Event()
            try:
                keys = await _on_thread(partial(read_keys, self._source))
                self._failed = False
                if keys != self._keys:
                    self._keys = keys
                    log.info("new keys", key_ids=sorted(keys))
                    self._on_change()
            except KeysUnreadable as error:
                log.error("the old keys stay in use", cause=str(error))  # noqa: TRY400 - no more to say
                backoff = (
                    min(2 * backoff, self._interval) if self._failed else _FIRST_BACKOFF_SECONDS
                )
                self._failed = True
            except Exception:  # whatever it is, the keys must be read again
                log.exception("the old keys stay in use")
                self._failed = True
            finally:
                awaited.set()
