"""What ends a call that lasts, as far as no server is needed to see it."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from opservice.methods.lasting import _retrieve


@pytest.fixture
async def told() -> list[dict[str, Any]]:
    """What asyncio complains of."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    return complaints


async def test_a_read_that_is_cancelled_is_nothing_to_complain_of(
    told: list[dict[str, Any]],
) -> None:
    reading = asyncio.get_running_loop().create_future()
    reading.add_done_callback(_retrieve)

    reading.cancel()
    await asyncio.sleep(0)

    assert not told


async def test_a_read_that_fails_when_nobody_waits_for_it_is_nothing_to_complain_of(
    told: list[dict[str, Any]],
) -> None:
    reading = asyncio.get_running_loop().create_future()
    reading.add_done_callback(_retrieve)

    reading.set_exception(ConnectionError("the client is gone"))
    await asyncio.sleep(0)
    del reading
    gc.collect()

    assert not told
