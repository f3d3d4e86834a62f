"""The server's loggers, in a process that has set up no logging of the server's."""

from __future__ import annotations

import logging

import pytest
import structlog

from opservice.common.loggers import get_logger

LOGGER = "opservice.test"


def test_a_line_goes_to_the_standard_librarys_logger_and_not_through_structlogs_configuration(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, LOGGER)

    get_logger(LOGGER).info("swept", count=2)

    assert not structlog.is_configured()
    assert caplog.record_tuples == [(LOGGER, logging.INFO, "event='swept' count=2")]
    assert capsys.readouterr().out == ""


def test_a_line_below_the_loggers_level_is_not_made(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, LOGGER)

    get_logger(LOGGER).info("swept")

    assert not caplog.records
