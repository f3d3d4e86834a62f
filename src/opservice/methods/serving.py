"""Whether the server serves: what health checks and probes are told."""

from __future__ import annotations

import asyncio

STOPPING = "the server is stopping"
FILE_LOST = "a file of the database is lost: the server must be restarted"


class ServingState:
    """Serving until `stop`: when the server is being stopped, or has lost its database file."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()
        self.reason: str | None = None
        """Why it does not serve, in plain words, for whoever asks; None while it does."""

    @property
    def serving(self) -> bool:
        """Whether it serves now."""
        return not self._stopping.is_set()

    def stop(self, reason: str) -> None:
        """Not serving from now on. Whoever waits for `stopped` goes on. The first reason is kept."""
        self.reason = self.reason or reason
        self._stopping.set()

    async def stopped(self) -> None:
        """Returns once the server does not serve any more."""
        await self._stopping.wait()
