"""Whether lists held what there was. That they lack what was deleted is a rule of history.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

from support.history import DELETES, Event, State, Violation


@dataclass(frozen=True, slots=True)
class Listing:
    """A whole list, all pages, and what its filter asked for."""

    invoked_at: float
    returned_at: float
    listed: tuple[tuple[str, int], ...]
    """The ids, and when each operation was created."""
    since: int = 0
    """Only operations that were created later."""
    done: bool | None = None
    """Only done ones, only running ones, or all."""

    def __str__(self) -> str:
        asked = f"since {self.since} done {self.done}"
        return f"{self.invoked_at:.6f}..{self.returned_at:.6f} List({asked}): {len(self.listed)}"


def check_listings(events: Iterable[Event], listings: Sequence[Listing]) -> list[Violation]:
    operations: dict[tuple[str, int], _Known] = defaultdict(_Known)
    deletes: dict[str, float] = {}
    for event in events:
        if event.call in DELETES:
            asked = deletes.get(event.operation_id, inf)
            deletes[event.operation_id] = min(asked, event.invoked_at)
        for sight in event.seen:
            operations[event.operation_id, sight.state.born].show(event, sight.at, sight.state)
    return [
        violation for each in listings for violation in _listing_is_whole(each, operations, deletes)
    ]


@dataclass(slots=True)
class _Known:
    """What clients knew of an operation."""

    since: float = inf
    done_since: float = inf
    running_until: float = -inf
    """A call that was invoked then still saw it running."""
    witness: Event | None = None

    def show(self, event: Event, at: float, state: State) -> None:
        if at < self.since:
            self.since, self.witness = at, event
        if state.done:
            self.done_since = min(self.done_since, at)
        else:
            self.running_until = max(self.running_until, event.invoked_at)

    def matches_throughout(self, listing: Listing) -> bool:
        if listing.done is None:
            return True
        if listing.done:
            return self.done_since < listing.invoked_at
        return self.running_until > listing.returned_at


def _listing_is_whole(
    listing: Listing, operations: dict[tuple[str, int], _Known], deletes: dict[str, float]
) -> Iterator[Violation]:
    listed = set(listing.listed)
    if len(listed) < len(listing.listed):
        yield Violation(f"a list has an operation twice: {listing}", ())
    for (id_, born), known in operations.items():
        there = known.since < listing.invoked_at and born > listing.since
        safe = deletes.get(id_, inf) > listing.returned_at
        if there and safe and known.matches_throughout(listing) and (id_, born) not in listed:
            shown = () if known.witness is None else (known.witness,)
            yield Violation(f"a list lacks an operation: {listing}", shown)
