"""What clients were told of operations, and whether a correct server could have told them that.

A history is correct when every operation could have gone from version to version, one change at a time,
each call taking effect at one moment between its invocation and its return. Versions carry their
number (`modified_at` grows with every change), so nothing is searched for: whatever was told is compared
with what had been told before it was asked. That takes O(n log n).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Literal

Call = Literal[
    "Start", "Get", "GetRecord", "Wait", "Watch", "Renew", "Cancel", "Complete", "Fail", "Delete", "List",
    "LongrunningGet", "LongrunningWait", "LongrunningCancel", "LongrunningDelete",
    "LongrunningList",
]  # fmt: skip
Answer = Literal["ok", "refused", "unknown"]

DONE = "OPERATION_DONE"
NOT_FOUND = "OPERATION_NOT_FOUND"
RUNNING = "OPERATION_RUNNING"
WRONG_TOKEN = "LEASE_TOKEN_MISMATCH"

DELETES = frozenset({"Delete", "LongrunningDelete"})
MEMORY_SECONDS = 5.0
"""So long after a Delete another process may answer from memory for a done operation without a key."""
_MEMORY_MARGIN = 0.5
_FROM_MEMORY = frozenset({"Get", "GetRecord", "Wait", "Watch", "LongrunningGet", "LongrunningWait"})
_SHOWS_NO_VERSION = DELETES | {
    "LongrunningGet", "LongrunningWait", "LongrunningCancel", "LongrunningList",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class State:
    """An operation as a client was shown it. `revision` and `beside` come with a record only."""

    modified_at: int
    done: bool = False
    result: str | None = None
    """The response or the error; an operation that is being cancelled has one before it is done."""
    metadata: str = ""
    rest: bytes = b""
    """Whatever else the operation holds."""
    born: int = 0
    """When it was created: after a Delete a key leads to another operation of the same id."""
    revision: int | None = None
    beside: bytes = b""
    """Whatever the record holds beside the operation."""

    @property
    def shown(self) -> tuple[object, ...]:
        return (self.done, self.result, self.metadata, self.rest)

    def __str__(self) -> str:
        number = "" if self.revision is None else f" revision {self.revision}"
        done = "done" if self.done else "running"
        return f"[{self.modified_at}{number} {done} {self.result or '-'} {self.metadata or '-'}]"


@dataclass(frozen=True, slots=True)
class Sight:
    at: float
    """When the client had it."""
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One call. Times are seconds by one monotonic clock, that of the process of all clients."""

    client: str
    call: Call
    operation_id: str
    """Empty for a Start whose answer was lost."""
    invoked_at: float
    returned_at: float
    answer: Answer = "ok"
    """`unknown`: the call failed in a way that does not say whether it happened."""
    seen: tuple[Sight, ...] = ()
    """What it was told: one state, or those that a Watch sent, also when the stream broke then."""
    glimpse: State | None = None
    """What google.longrunning told, which shows no version."""
    refusal: str = ""
    attempts: tuple[str, ...] = ()
    """Results that the operation may come to because of this call."""
    metadata: str = ""
    """What it writes as metadata, if anything."""
    ends: bool = False
    """An OK means that the operation is done."""
    key: str = ""
    """The idempotency key of a Start, and `token` its lease token."""
    token: str = ""
    owned: bool = False

    def __str__(self) -> str:
        times = f"{self.invoked_at:.6f}..{self.returned_at:.6f}"
        states = " ".join(f"{sight.at:.6f}{sight.state}" for sight in self.seen)
        wrote = " ".join((*self.attempts, self.metadata))
        glimpse = "" if self.glimpse is None else str(self.glimpse)
        said = " ".join(filter(None, (self.answer, self.refusal, states, glimpse)))
        return f"{times} {self.client} {self.call}({wrote.strip()}) {self.operation_id}: {said}"


@dataclass(frozen=True, slots=True)
class Violation:
    message: str
    events: tuple[Event, ...]

    def __str__(self) -> str:
        return "\n    ".join([self.message, *map(str, self.events)])


Found = Iterator[Violation]


def check(events: Iterable[Event]) -> list[Violation]:
    """What no correct server would have answered; empty when there is nothing of that kind."""
    events = list(events)
    by_operation: dict[str, list[Event]] = defaultdict(list)
    # A Start whose answer was lost names no operation, but may be the one that made that of its key.
    of_key = {event.key: event.operation_id for event in events if event.key and event.operation_id}
    for event in events:
        by_operation[event.operation_id or of_key.get(event.key, "")].append(event)
    by_operation.pop("", None)
    rules = (
        _each_version_is_one_state,
        _revisions_count_the_changes,
        _nothing_goes_back,
        _done_is_done,
        _acknowledged_writes_are_there,
        _metadata_is_the_last_written,
        _results_were_asked_for,
        _refusals_are_true,
        _glimpses_agree,
        _deleted_is_gone,
    )
    operations = [_Operation(each) for its in by_operation.values() for each in _lives(its)]
    found = [each for operation in operations for rule in rules for each in rule(operation)]
    return found + list(_a_key_leads_to_one_operation(events))


def _lives(events: list[Event]) -> list[list[Event]]:
    """The events of each operation that had the id, one after the other.

    What shows no state is taken to have met any of them: it is there as what may have happened.
    """
    if not any(event.call == "Start" for event in events):
        return []  # only lists show it: its Start was never answered, so nobody knows what it wrote
    births = sorted({sight.state.born for event in events for sight in event.seen})
    if len(births) < 2:
        return [events]
    return [[its for each in events for its in _of_life(each, birth)] for birth in births]


def _of_life(event: Event, birth: int) -> list[Event]:
    if event.glimpse is not None:
        return []
    seen = tuple(sight for sight in event.seen if sight.state.born == birth)
    if seen or event.call in DELETES:
        return [replace(event, seen=seen)]
    if event.seen and event.call != "Start":
        return []
    # Every Start of a key writes the same.
    return [replace(event, seen=(), answer="unknown", refusal="", owned=False)]


@dataclass(slots=True)
class _Operation:
    """The events of one operation, in the order of their invocation."""

    events: list[Event]
    sights: list[tuple[Event, Sight]] = field(init=False)
    """In the order of versions."""
    _times: list[float] = field(init=False)
    _newest: list[tuple[int, Event]] = field(init=False)

    def __post_init__(self) -> None:
        self.events.sort(key=lambda event: event.invoked_at)
        sights = [(event, sight) for event in self.events for sight in event.seen]
        self.sights = sorted(sights, key=lambda each: each[1].state.modified_at)
        by_time = sorted(sights, key=lambda each: each[1].at)
        self._times = [sight.at for _, sight in by_time]
        versions = ((sight.state.modified_at, event) for event, sight in by_time)
        self._newest = list(accumulate(versions, _newer))

    @property
    def keyed(self) -> bool:
        """After a Delete there may be another operation of the same id, even one that nobody was shown."""
        return any(event.key for event in self.events)

    def newest_before(self, time: float) -> tuple[int, Event] | None:
        """The newest version that somebody had by then, and who."""
        count = bisect_left(self._times, time)
        return self._newest[count - 1] if count else None

    def acknowledged(self, *calls: Call) -> list[tuple[Event, State]]:
        """Those that returned OK, with what they were told; a call told nothing is not among them."""
        return [
            (event, event.seen[-1].state)
            for event in self.events
            if event.call in calls and event.answer == "ok" and event.seen
        ]


def _newer(one: tuple[int, Event], other: tuple[int, Event]) -> tuple[int, Event]:
    return one if one[0] >= other[0] else other


def _each_version_is_one_state(operation: _Operation) -> Found:
    first: dict[int, tuple[Event, State]] = {}
    first_record: dict[int, tuple[Event, State]] = {}
    for event, sight in operation.sights:
        state = sight.state
        other, as_other = first.setdefault(state.modified_at, (event, state))
        if state.shown != as_other.shown:
            yield Violation("one version shows two states", (other, event))
        if state.revision is None:
            continue
        other, as_other = first_record.setdefault(state.modified_at, (event, state))
        if (state.revision, state.beside) != (as_other.revision, as_other.beside):
            yield Violation("one version shows two records", (other, event))


def _revisions_count_the_changes(operation: _Operation) -> Found:
    """Between two records there are at most as many versions as revisions."""
    rank, last, unseen, before = 0, None, 0, operation.sights[:1]
    for event, sight in operation.sights:
        if sight.state.modified_at != last:
            rank, last = rank + 1, sight.state.modified_at
        if sight.state.revision is None:
            continue
        if sight.state.revision - rank < unseen:
            yield Violation("revisions do not count the changes", (before[0][0], event))
        unseen, before = sight.state.revision - rank, [(event, sight)]


def _nothing_goes_back(operation: _Operation) -> Found:
    for event in operation.events:
        known = operation.newest_before(event.invoked_at)
        if event.seen and known and event.seen[0].state.modified_at < known[0]:
            yield Violation("a state went back", (known[1], event))
        for older, newer in pairwise(event.seen):
            # A Watch repeats what it sent last, unless that was the end.
            if newer.state.modified_at < older.state.modified_at or older.state.done:
                yield Violation("a stream went back", (event,))
        if event.call == "Watch" and event.answer == "ok":
            if not (event.seen and event.seen[-1].state.done):
                yield Violation("a stream ended before the operation", (event,))
        elif event.answer == "ok" and not event.seen and event.call not in _SHOWS_NO_VERSION:
            yield Violation("an OK shows no state", (event,))


def _done_is_done(operation: _Operation) -> Found:
    done = [(event, sight.state) for event, sight in operation.sights if sight.state.done]
    if done:
        winner, terminal = done[0]
        for event, state in done:
            if state.result != terminal.result:
                yield Violation("two terminal results", (winner, event))
            elif state.modified_at != terminal.modified_at:
                yield Violation("it changed after it was done", (winner, event))
        for event, sight in operation.sights:
            if not sight.state.done and sight.state.modified_at > terminal.modified_at:
                yield Violation("it was running after it was done", (winner, event))
    refused = [event for event in operation.events if event.refusal == DONE]
    first = min(refused, key=lambda event: event.returned_at, default=None)
    for event in operation.events if first else ():
        assert first is not None
        late = event.invoked_at > first.returned_at
        if late and event.seen and not event.seen[0].state.done:
            yield Violation("a writer was refused as if it were done", (first, event))


def _acknowledged_writes_are_there(operation: _Operation) -> Found:
    """In their own answers. `_nothing_goes_back` looks for them in what was asked later."""
    for event, state in operation.acknowledged("Complete", "Fail"):
        if not state.done or state.result not in event.attempts:
            yield Violation("an acknowledged result is not the result", (event,))
    for event, state in operation.acknowledged("Cancel"):
        if state.result is None or (event.ends and not state.done):
            yield Violation("an acknowledged Cancel did nothing", (event,))
    for (cancel, older), (event, newer) in pairwise(operation.sights):
        if older.state.result is not None and newer.state.result is None:
            yield Violation("a cancellation was forgotten", (cancel, event))
    made: dict[int, Event] = {}
    for event, state in operation.acknowledged("Renew"):
        known = operation.newest_before(event.invoked_at)
        other = made.setdefault(state.modified_at, event)
        if known and known[0] == state.modified_at:
            yield Violation("an acknowledged Renew made no version", (known[1], event))
        elif other is not event:
            yield Violation("two acknowledged Renews made one version", (other, event))
        if state.done or (event.metadata and state.metadata != event.metadata):
            yield Violation("an acknowledged Renew is not what it answered", (event,))


def _metadata_is_the_last_written(operation: _Operation) -> Found:
    """Each version shows that of the last acknowledged writer, or of one of unknown fate."""
    fates: dict[str, list[int | None]] = defaultdict(list)
    writers: list[tuple[int, Event]] = []
    for event in operation.events:
        if not event.metadata:
            continue
        # A Start may be answered late, but it wrote first. Of a Renew that is refused nothing is known: when
        # its commit was in doubt, it is done again, and by then the operation may have ended.
        ok = event.answer == "ok" and event.seen
        written_at = event.seen[-1].state.modified_at if ok and event.call != "Start" else None
        fates[event.metadata].append(0 if event.call == "Start" else written_at)
        if written_at is not None:
            writers.append((written_at, event))
    writers.sort(key=lambda each: each[0])
    versions = [version for version, _ in writers]
    for event, sight in operation.sights:
        shown, state = sight.state.metadata, sight.state
        if shown not in fates and shown:
            yield Violation("metadata that nobody wrote", (event,))
        count = bisect_left(versions, state.modified_at + 1)
        if not count or writers[count - 1][1].metadata == shown:
            continue
        last, writer = writers[count - 1]
        # No upper bound: a Renew whose commit was in doubt is done again, and answered with the later.
        if not any(at is None or at >= last for at in fates[shown]):
            yield Violation("the metadata of an acknowledged write was lost", (writer, event))


def _results_were_asked_for(operation: _Operation) -> Found:
    asked: dict[str, Event] = {}
    for event in operation.events:
        if event.answer != "refused":
            for attempt in event.attempts:
                asked.setdefault(attempt, event)
    for event, sight in operation.sights:
        result = sight.state.result
        if result is not None and result not in asked:
            yield Violation("a result that nobody asked for", (event,))
        elif result is not None and asked[result].invoked_at > sight.at:
            yield Violation("a result before anybody asked for it", (asked[result], event))


def _refusals_are_true(operation: _Operation) -> Found:
    ends = ((event, sight.state) for event, sight in operation.sights if sight.state.done)
    witness, ended = next(ends, (None, None))
    for event in operation.events:
        if event.answer != "refused":
            continue
        deletes = (each for each in operation.events if each.call in DELETES)
        deleted = any(each.invoked_at < event.returned_at for each in deletes)
        if event.refusal == NOT_FOUND:
            known = operation.newest_before(event.invoked_at)
            if known and not deleted:
                yield Violation("an operation that was there is not found", (known[1], event))
        elif event.refusal == DONE and event.call in ("Renew", "Complete", "Fail"):
            if witness is None or ended is None:
                continue
            able = [each for each in operation.events if ended.result in each.attempts]
            if event in able:  # had it won with an earlier try, a repeat would have been OK
                yield Violation("the result of a call that was refused", (event, witness))
            elif able and able[0].invoked_at > event.returned_at:
                yield Violation("refused before anybody could have ended it", (event, able[0]))
        elif event.refusal == RUNNING and event.call in DELETES:
            late = witness is not None and witness.returned_at < event.invoked_at
            if witness is not None and late and not operation.keyed:
                yield Violation("a Delete was refused after it was done", (witness, event))
        elif event.refusal != WRONG_TOKEN or not deleted:
            yield Violation("a refusal for which there is no reason", (event,))


def _glimpses_agree(operation: _Operation) -> Found:
    """What google.longrunning tells is what the others tell, though it shows no version."""
    done = [(event, sight) for event, sight in operation.sights if sight.state.done]
    first_done = min(done, key=lambda each: each[1].at, default=None)
    if operation.keyed and any(event.call in DELETES for event in operation.events):
        return
    for event in operation.events:
        glimpse = event.glimpse
        if glimpse is None:
            continue
        if not glimpse.done:
            if first_done and first_done[1].at < event.invoked_at:
                yield Violation("a state went back", (first_done[0], event))
            continue
        if first_done and first_done[1].state.result != glimpse.result:
            yield Violation("two terminal results", (first_done[0], event))
        for other in operation.events:
            shown = other.seen[0].state if other.seen else other.glimpse
            if shown and not shown.done and other.invoked_at > event.returned_at:
                yield Violation("it was running after it was done", (event, other))


def _deleted_is_gone(operation: _Operation) -> Found:
    """Lists included. What was created under the same key since is another operation."""
    events = operation.events
    shows = [(event, event.seen[0].state) for event in events if event.seen]
    if not operation.keyed:
        shows += [(event, event.glimpse) for event in events if event.glimpse]
    for delete in events:
        if delete.call not in DELETES or delete.answer != "ok":
            continue
        if operation.newest_before(delete.invoked_at) is None:
            continue  # what it deleted may have been there before this one
        for event, shown in shows:
            remembered = shown.done and not operation.keyed and event.call in _FROM_MEMORY
            excused = MEMORY_SECONDS + _MEMORY_MARGIN if remembered else 0
            if event.invoked_at > delete.returned_at + excused:
                yield Violation("an operation was there after it was deleted", (delete, event))


def _a_key_leads_to_one_operation(events: Sequence[Event]) -> Found:
    by_key: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event.key:
            by_key[event.key].append(event)
    for starts in by_key.values():
        answered = [event for event in starts if event.answer == "ok"]
        births = {event.seen[0].state.born for event in answered if event.seen}
        for event in answered:
            if event.operation_id != answered[0].operation_id:
                yield Violation("one key made two operations", (answered[0], event))
            for other in answered:
                if _born(other) != _born(event):
                    continue
                if event.owned and (other.owned != (other.token == event.token)):
                    yield Violation("an operation has two owners, or none", (event, other))
        if len(answered) < len(starts):
            continue
        for birth in births:
            its = tuple(event for event in starts if _born(event) == birth)
            if not any(event.owned for event in its):
                yield Violation("an operation has no owner", its)


def _born(start: Event) -> int:
    return start.seen[0].state.born if start.seen else 0
