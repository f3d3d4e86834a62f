"""Logging: through structlog, with the records of the standard library in the same form."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import TextIO, cast

import structlog

from opservice.common.loggers import AUDIT_LOGGER, PROCESSORS
from opservice.common.plain import plain
from opservice.common.private_files import check_place, group_id, make_private
from opservice.domain.errors import StartupError
from opservice.runtime.settings.groups import LoggingSettings


def configure_logging(
    settings: LoggingSettings, file_group: str = "", *, worker: int | None = None
) -> None:
    """Sends every log line to standard error, as JSON or, on a terminal, in a form for people.

    `file_group` may also read the audit log. With `worker`, every line says the worker's number. Raises
    StartupError when the file of the audit log cannot be written.
    """
    as_json = settings.log_format == "json" or (
        settings.log_format == "auto" and not sys.stderr.isatty()
    )
    level = settings.log_level.upper()
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if worker is not None:
        shared.append(_number(worker))
    json: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]

    def formatter(renderers: list[structlog.typing.Processor]) -> logging.Formatter:
        return structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )

    PROCESSORS[:] = [
        structlog.stdlib.filter_by_level,
        *shared,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ]
    handler = logging.StreamHandler(sys.stderr)
    for_people: list[structlog.typing.Processor] = [
        _plain_values,
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=_plain_traceback
        ),
    ]
    handler.setFormatter(formatter(json if as_json else for_people))
    audit = logging.getLogger(AUDIT_LOGGER)
    audit.setLevel(logging.INFO)
    if settings.audit_log is not None:
        try:
            check_place(settings.audit_log)
            to_file = _AuditFile(settings.audit_log, group_id(file_group))
        except OSError as error:
            raise StartupError(
                f"cannot write the audit log {settings.audit_log}: {error.strerror}"
            ) from error
        to_file.setFormatter(formatter(json))
        audit.handlers = [to_file]
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # Of libraries only what needs attention, whatever our own level.
    for library in ("alembic", "sqlalchemy", "asyncio", "grpc"):
        logging.getLogger(library).setLevel(max(logging.WARNING, root.level))
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_peers_doing)


_AUDIT_GROUP_MODE = 0o040


class _AuditFile(logging.handlers.WatchedFileHandler):
    """The audit log, private to the server's user. It is opened anew after a rotation has moved it away."""

    def __init__(self, file: Path, group: int | None) -> None:
        self._group = group
        super().__init__(file)

    def _open(self) -> TextIOWrapper:
        make_private(Path(self.baseFilename), self._group, _AUDIT_GROUP_MODE, create=True)

        def private(path: str, flags: int) -> int:
            return os.open(path, flags | os.O_NOFOLLOW, 0o600)

        # Closed by the handler. Path.open takes no opener.
        opened = open(self.baseFilename, self.mode, encoding="utf-8", opener=private)  # noqa: SIM115
        return cast("TextIOWrapper", opened)

    def emit(self, record: logging.LogRecord) -> None:
        """Says on standard error when a line cannot be written. The call that is logged goes on."""
        try:
            super().emit(record)
        except (OSError, StartupError):  # when it was opened anew
            self.handleError(record)


def _is_no_peers_doing(record: logging.LogRecord) -> bool:
    """Drops two records of grpc that any peer can cause, with a traceback, as often as they like.

    They are of headers that are not UTF-8, with their values, which may be secret, and of callers that hang
    up before they are answered.
    """
    return not record.getMessage().startswith(("Invalid encoding on ", "ExecuteBatchError raised "))


def _plain_values(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Escapes values: callers choose some of them, and they must not move the cursor or reverse the text."""
    return {key: plain(value) if isinstance(value, str) else value for key, value in event.items()}


def _plain_traceback(file: TextIO, error: structlog.typing.ExcInfo) -> None:
    """A traceback without the values of variables, which may be secret. The prettier ones show them."""
    shown = StringIO()
    structlog.dev.plain_traceback(shown, error)
    file.write("\n".join(map(plain, shown.getvalue().split("\n"))))


def _number(worker: int) -> structlog.typing.Processor:
    def add(
        _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        event["worker"] = worker
        return event

    return add
