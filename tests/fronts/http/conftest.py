"""What the tests of connections share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fronts.http.connections import Served, serving


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as made:
        yield made
