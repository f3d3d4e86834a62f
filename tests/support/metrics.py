"""The metrics of this process."""

from __future__ import annotations

from opservice.common.metrics import REGISTRY


def counted(name: str, **labels: str) -> float:
    """The value of a sample; 0 when there is none."""
    return REGISTRY.get_sample_value(name, labels) or 0
