"""What the server logs within a test's own process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from structlog.testing import LogCapture
from structlog.typing import EventDict

from opservice.common.loggers import PROCESSORS


@contextmanager
def capture_logs() -> Iterator[list[EventDict]]:
    """The lines that are logged within the block, at any level, each as its values."""
    capture, before = LogCapture(), PROCESSORS[:]
    PROCESSORS[:] = [capture]
    try:
        yield capture.entries
    finally:
        PROCESSORS[:] = before
