"""Conversions between JSON and messages: the larger ones are made one at a time, and callers take turns.

Python makes them, a few hundred values in a millisecond, while nothing else runs. The answers to hundreds of
calls may be there at once, and all of them together would keep other callers waiting for seconds. Large ones
are made on a thread, where others get their turn after 5 ms, but one at a time: many threads would hold up
the event loop as well.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from google.protobuf.message import Message

from opservice.common.turns import Turns
from opservice.methods.protojson import ProtoJson

_SMALL, _LARGE = 4 << 10, 16 << 10
"""Bytes. Smaller messages wait for no turn; those that are not smaller are converted on a thread."""
_LONG_SECONDS = 0.001
"""After a conversion that took longer the next one has another turn of the event loop."""

Converted = TypeVar("Converted")


class Conversions:
    """The conversions of all calls of a process."""

    def __init__(self, json: ProtoJson, clock: Callable[[], float] = time.perf_counter) -> None:
        """`clock` returns seconds."""
        self.json = json
        self._clock = clock
        self._here, self._on_thread = Turns(sys.maxsize), Turns(sys.maxsize)

    async def run(self, size: int, caller: str, convert: Callable[[], Converted]) -> Converted:
        """Returns what `convert` does, when it is the caller's turn. `size` is the bytes of the message."""
        if size < _SMALL:
            return convert()
        if size >= _LARGE:
            async with self._on_thread.turn(caller):
                return await _on_thread(convert)
        async with self._here.turn(caller):
            began = self._clock()
            converted = convert()
            if self._clock() - began > _LONG_SECONDS:
                await asyncio.sleep(0)
            return converted

    async def to_json(self, message: Message, caller: str) -> bytes:
        """The JSON of the message, with the fields that have their default values."""
        convert = partial(self.json.to_json, message, with_defaults=True)
        return await self.run(message.ByteSize(), caller, convert)


async def _on_thread(convert: Callable[[], Converted]) -> Converted:
    """What `convert` returns. When this is cancelled, the thread is waited for all the same."""
    converting = asyncio.create_task(asyncio.to_thread(convert))
    try:
        return await asyncio.shield(converting)
    finally:
        await asyncio.wait((converting,))
