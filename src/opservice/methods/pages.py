"""Large pages are made and encoded in slices. Between two slices, other calls go on.

The operations of a page may have a hundred thousand details together. A thread would not help: protobuf
keeps all threads waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

_SLICE = 20
"""Operations of a page that are converted, or encoded, before others get their turn."""

Source = TypeVar("Source")


async def fill(page: Any, records: Sequence[Source], to_pb: Callable[[Source], Message]) -> None:
    """Converts the records and adds them to `page`, a repeated field."""
    for index, slice_ in enumerate(slices(records)):
        if index:
            await asyncio.sleep(0)
        page.extend(map(to_pb, slice_))


async def encode(response: Message) -> bytes:
    """As SerializeToString does; the response has a repeated field, and perhaps text.

    Parts of a message that were encoded apart are the message when they are put together
    (https://protobuf.dev/programming-guides/encoding/#last-one-wins).
    """
    parts: list[bytes] = []
    for field, value in response.ListFields():
        for slice_ in [value] if isinstance(value, str) else slices(value):
            if parts:
                await asyncio.sleep(0)
            parts.append(type(response)(**{field.name: slice_}).SerializeToString())
    return b"".join(parts)


def slices(records: Sequence[Source]) -> Iterator[Sequence[Source]]:
    """The records, a few at a time."""
    return (records[start : start + _SLICE] for start in range(0, len(records), _SLICE))
