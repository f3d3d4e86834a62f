"""Makes text from elsewhere harmless. It could move the cursor, or change the terminal's title."""

from __future__ import annotations


def plain(text: str) -> str:
    """The text in one line. Characters that are not printable are escaped as Python escapes them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plain_lines(text: str) -> str:
    """Like `plain`, but keeps the line breaks."""
    return "\n".join(map(plain, text.split("\n")))
