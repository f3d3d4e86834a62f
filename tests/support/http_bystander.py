"""A client that means well, by HTTP, beside those of `hostile_http.py`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from support.bystander import ANEW, INTERVAL

_SECONDS = 30
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class HttpBystander:
    """Calls at a steady pace, whether those before were answered or not."""

    url: str
    took: list[float] = field(default_factory=list)
    """Seconds from when a call was due until it was answered."""
    failures: list[object] = field(default_factory=list)
    _id: str = ""
    _idle: list[_Connection] = field(default_factory=list)

    async def prepare(self) -> None:
        """To be called before the attack: starts the operation to get."""
        self._id = (await self._ask("POST", "/v1/producer/operations:start"))["operation"]["id"]

    async def run(self, enough: Callable[[], bool]) -> None:
        """Gets, and now and then, on a connection of its own, starts and ends an operation."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as calls:
            for number in count():
                if enough():
                    break
                due = began + number * INTERVAL
                await asyncio.sleep(due - time.monotonic())
                calls.create_task(self._timed(due, anew=not number % ANEW))
        for _, writer in self._idle:
            writer.close()

    async def _timed(self, due: float, *, anew: bool) -> None:
        try:
            async with asyncio.timeout(_SECONDS):
                if anew:
                    await self._live()
                else:
                    answer = await self._ask("GET", f"/operations/{self._id}")
                    assert answer["id"] == self._id
        except (OSError, EOFError, AssertionError, KeyError) as error:  # TimeoutError is an OSError
            self.failures.append(error)
        else:
            self.took.append(time.monotonic() - due)

    async def _live(self) -> None:
        made = await self._connect()
        started = await self._ask("POST", "/v1/producer/operations:start", made)
        id_ = started["operation"]["id"]
        done = await self._ask("POST", f"/v1/producer/operations/{id_}:complete")
        assert done["done"] is True

    async def _connect(self) -> _Connection:
        place = urlsplit(self.url)
        return await asyncio.open_connection(place.hostname, place.port)

    async def _ask(self, method: str, path: str, on: _Connection | None = None) -> Any:
        reader, writer = on or (self._idle.pop() if self._idle else await self._connect())
        body = "content-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
        end = body if method == "POST" else "\r\n"
        writer.write(f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{end}".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        answer = await reader.readexactly(
            int(head.partition("content-length: ")[2].split("\r\n")[0])
        )
        assert head.startswith("http/1.1 200"), answer
        self._idle.append((reader, writer))
        return json.loads(answer)
