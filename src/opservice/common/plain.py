"""Text from elsewhere, made harmless: it could hold what moves the cursor or retitles the terminal."""

from __future__ import annotations


def plain(text: str) -> str:
    """The text in one line, with what is not printable escaped as Python would."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plain_lines(text: str) -> str:
    """The same, but that lines stay lines."""
    return "\n".join(map(plain, text.split("\n")))
