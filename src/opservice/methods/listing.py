"""List, for both services that have it: what a request must be like, and the tokens of its pages.

A page token holds where the page before it ended and a digest that binds it to its query. The digest
tells tokens that are foreign or damaged; it is no secret, since a position gives nothing away that
the query alone would not.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

from opservice.domain.filters import Condition, ListQuery, Position
from opservice.domain.operation import Record
from opservice.methods.call import Call, name_of
from opservice.methods.filtering import MAX_FILTER, FilterError, parse_filter
from opservice.methods.guard import GuardedStore
from opservice.methods.validation import Check

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
MAX_PAGE_TOKEN = 1024
ALL_PARENTS = "-"

_VERSION = b"\x01"
_DIGEST_BYTES = 12
_TIME_BYTES = 8


@dataclass(frozen=True, slots=True)
class Page:
    """`next_page_token` is empty when there is nothing more."""

    records: tuple[Record, ...]
    next_page_token: str


async def list_page(
    store: GuardedStore,
    call: Call,
    *,
    parent: str,
    page_size: int,
    page_token: str,
    filter_: str,
    parent_field: str = "parent",
) -> Page:
    """A page of the operations of `parent`, or of all when it is `-`; newest first.

    Raises InvalidArgument that names every violation, or a StoreError.
    """
    check = Check()
    if parent != ALL_PARENTS:
        check.parent(parent_field, parent)
    if page_size < 0:
        check.wrong("page_size", "must not be negative")
    condition = checked_filter(filter_, check)
    after = None
    if page_token:
        after = position_from_token(page_token, parent, filter_)
        if after is None:
            check.wrong("page_token", "is not one that this server gave for this parent and filter")
    check.finish()
    listed = await store.page(
        call.caller,
        ListQuery(
            parent=None if parent == ALL_PARENTS else parent,
            limit=min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE),
            condition=condition,
            after=after,
        ),
        name_of(call.caller, call.peer),
    )
    token = "" if listed.end is None else position_to_token(listed.end, parent, filter_)
    return Page(listed.records, token)


def checked_filter(filter_: str, check: Check) -> Condition | None:
    """The filter's condition, None for none; what is wrong with it is noted in `check`."""
    if len(filter_) > MAX_FILTER or "\0" in filter_:
        check.text("filter", filter_, MAX_FILTER)
        return None
    try:
        return parse_filter(filter_)
    except FilterError as error:
        check.wrong("filter", str(error))
        return None


def position_to_token(position: Position, parent: str, filter_: str) -> str:
    """The token of the page that begins after this position, bound to the parent and the filter."""
    created_at, id_ = position
    place = created_at.to_bytes(_TIME_BYTES, "big", signed=True) + id_.encode()
    token = _VERSION + _digest(place, parent, filter_) + place
    return base64.urlsafe_b64encode(token).decode().rstrip("=")


def position_from_token(token: str, parent: str, filter_: str) -> Position | None:
    """None when the token is not one of this query."""
    if len(token) > MAX_PAGE_TOKEN or not token.isascii():
        return None
    try:
        data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except binascii.Error:
        return None
    start = len(_VERSION) + _DIGEST_BYTES
    place = data[start:]
    if data[:start] != _VERSION + _digest(place, parent, filter_) or len(place) <= _TIME_BYTES:
        return None
    try:
        id_ = place[_TIME_BYTES:].decode()
    except UnicodeDecodeError:
        return None
    if "\0" in id_:
        return None  # nor could PostgreSQL be asked for it
    position = int.from_bytes(place[:_TIME_BYTES], "big", signed=True), id_
    # Base64 is decoded leniently, but only one spelling was given out.
    return position if position_to_token(position, parent, filter_) == token else None


def _digest(place: bytes, parent: str, filter_: str) -> bytes:
    digest = hashlib.sha256(_VERSION)
    for part in (place, parent.encode(), filter_.encode()):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()[:_DIGEST_BYTES]
