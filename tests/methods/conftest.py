"""What the tests of the pipeline share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from methods.pipelines import Line
from support.logs import capture_logs


@pytest.fixture
def lines() -> Iterator[list[Line]]:
    """What is logged."""
    with capture_logs() as captured:
        yield captured
