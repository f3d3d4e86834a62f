"""Whether the server serves: what health checks and probes are told."""

from __future__ import annotations

import asyncio


class ServingState:
    """Serving until `stop`: when the server is being stopped, or has lost its database file."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()

    @property
    def serving(self) -> bool:
        """Whether it serves now."""
        return not self._stopping.is_set()

    def stop(self) -> None:
        """Not serving from now on. Whoever waits for `stopped` goes on."""
        self._stopping.set()

    async def stopped(self) -> None:
        """Returns once the server does not serve any more."""
        await self._stopping.wait()
