"""The labels of an operation, and the one text in which they are kept.

A filter looks for a label in that text, by functions that every database has: see store/conditions.py.
"""

from __future__ import annotations

from collections.abc import Mapping


def labels_to_text(labels: Mapping[str, str]) -> str:
    """As they are kept: empty, or `\\nKEY=VALUE` of each by the order of keys, and `\\n`.

    No key may contain `=`, and neither key nor value a line feed.
    """
    return "".join(f"\n{key}={labels[key]}" for key in sorted(labels)) + "\n" * bool(labels)


def labels_from_text(text: str) -> dict[str, str]:
    """What `labels_to_text` made the text of."""
    return dict(line.split("=", 1) for line in text[1:-1].split("\n")) if text else {}
