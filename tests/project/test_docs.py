"""The pages name what is there, and all of it where they should."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric

from opservice.common.metrics import REGISTRY
from opservice.methods.status import REASONS

ROOT = Path(__file__).parents[2]
PLACES = (ROOT, ROOT / "src" / "opservice")
NOT_THERE_YET = ("NAME", "…")


def paths_of(page: str) -> list[str]:
    """What stands in backquotes and is the path of a file or a folder, except what a reader would add."""
    lines = [line for line in (ROOT / page).read_text().splitlines() if "(new)" not in line]
    named = re.findall(r"`([\w./…-]+(?:\.py|\.proto|\.sh|\.md|\.toml|/))`", "\n".join(lines))
    return [path for path in named if not any(mark in path for mark in NOT_THERE_YET)]


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_file_that_the_page_names_is_there(page: str) -> None:
    paths = paths_of(page)

    assert paths
    assert [path for path in paths if not any((place / path).exists() for place in PLACES)] == []


def test_every_reason_and_every_metric_has_a_line() -> None:
    errors = (ROOT / "docs" / "errors.md").read_text()
    metrics = (ROOT / "docs" / "metrics.md").read_text()
    own = [names_of(metric) for metric in REGISTRY.collect()]
    named = set(re.findall(r"`((?:opservice|grpc_server|http_request)s?_\w+)`", metrics))

    assert [reason for reason in REASONS if f"| `{reason}` |" not in errors] == []
    assert named - set().union(*own) == set()
    assert [names for names in own if not named & names] == []


def names_of(metric: Metric) -> set[str]:
    return {metric.name, f"{metric.name}_total"}
