"""The tokens that the server in memory gives: of the page after this one, and of how far a stream was told.

A digest binds a token to what was asked for. It tells tokens that are foreign or damaged, and is no secret.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

_DIGEST_BYTES = 12


def token_of(place: str, asked: Sequence[str]) -> str:
    return _encode(digest(place, *asked)[:_DIGEST_BYTES] + place.encode())


def place_of(token: str, asked: Sequence[str]) -> str | None:
    """None when the token is not one of what was asked for."""
    try:
        place = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))[_DIGEST_BYTES:].decode()
    except ValueError:
        return None
    return place if token_of(place, asked) == token else None


def digest(*parts: str | bytes) -> bytes:
    """Of all of them: where one ends and the next begins counts, too."""
    made = hashlib.sha256()
    for part in parts:
        encoded = part.encode() if isinstance(part, str) else part
        made.update(len(encoded).to_bytes(8, "big") + encoded)
    return made.digest()


def _encode(token: bytes) -> str:
    return base64.urlsafe_b64encode(token).decode().rstrip("=")
