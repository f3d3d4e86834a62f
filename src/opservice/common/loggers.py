"""The server's loggers. What becomes of their lines is told here, and not to structlog as a whole.

So a program that runs the server within its own process, as tests do, keeps its own configuration of
structlog, whatever that is.
"""

from __future__ import annotations

import logging
from typing import cast

import structlog

AUDIT_LOGGER = "opservice.audit"
"""Logs who did what, at whatever level the rest is logged."""

PROCESSORS: list[structlog.typing.Processor] = [
    structlog.stdlib.filter_by_level,
    structlog.processors.format_exc_info,
    structlog.processors.KeyValueRenderer(key_order=["event"]),
]
"""What every line goes through, on its way to the standard library's logger of the same name.

Loggers keep this list: whoever wants others changes its content (runtime/logs.py).
"""


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger whose lines go through PROCESSORS."""
    logger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=PROCESSORS,
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return cast("structlog.stdlib.BoundLogger", logger)
