"""The checker of histories, against those that are known to be bad, and those that are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from support.history import (
    DONE,
    NOT_FOUND,
    WRONG_TOKEN,
    Answer,
    Call,
    Event,
    Sight,
    State,
    check,
)
from support.history import RUNNING as REFUSED_RUNNING
from support.listing_rules import Listing, check_listings

CANCELLED = "CANCELLED"
RUNNING = State(10, metadata="m0", revision=1)
RENEWED = State(20, metadata="m1", revision=2)
ENDED = State(30, done=True, result="r1", metadata="m1", revision=3)


def call(
    kind: Call, at: float, state: State | None = None, *, lasts: float = 0.5, **more: Any
) -> Event:
    """A call that is over before the next whole second, unless it `lasts` longer."""
    seen = () if state is None else (Sight(at + lasts, state),)
    given: dict[str, Any] = {"client": "c", "operation_id": "ops1", "seen": seen, **more}
    return Event(call=kind, invoked_at=at, returned_at=at + lasts, **given)


def watch(at: float, *states: State, answer: Answer = "ok") -> Event:
    seen = tuple(Sight(at + number + 1, state) for number, state in enumerate(states))
    return call("Watch", at, lasts=len(states) + 1, seen=seen, answer=answer)


def refused(kind: Call, at: float, reason: str = DONE, **more: Any) -> Event:
    return call(kind, at, answer="refused", refusal=reason, **more)


def unknown(kind: Call, at: float, **more: Any) -> Event:
    return call(kind, at, answer="unknown", **more)


START = call("Start", 1, RUNNING, metadata="m0", key="k", token="t1", owned=True)
RENEW = call("Renew", 2, RENEWED, metadata="m1")
COMPLETE = call("Complete", 3, ENDED, attempts=("r1",), ends=True)
LIFE = [START, RENEW, COMPLETE]
CANCEL = call("Cancel", 3, replace(ENDED, result=CANCELLED), attempts=(CANCELLED,), ends=True)
UNKEYED = replace(START, key="")
DELETE = call("Delete", 4)
"""OK, as an Empty."""
REBORN = State(60, metadata="m0", born=55, revision=1)
RESTART = replace(START, invoked_at=6, returned_at=6.5, seen=(Sight(6.5, REBORN),), token="t2")
CANCELLING = State(20, result=CANCELLED, metadata="m0", revision=2)

LAPSED = replace(ENDED, metadata="m0", revision=2)

GOOD = {
    "nothing": [],
    "a life": LIFE,
    "reads that see each state": [
        *LIFE,
        call("Get", 1.6, RUNNING),
        call("Get", 2.6, RENEWED),
        call("Get", 4, ENDED),
    ],
    "reads during a write that see it, and then do not": [
        START,
        call("Renew", 2, RENEWED, lasts=10, metadata="m1"),
        call("Get", 3, RENEWED, lasts=5),
        call("Get", 4, RUNNING),
    ],
    "a write of unknown fate that happened": [
        START,
        unknown("Renew", 2, metadata="m1"),
        call("Get", 3, RUNNING),
        call("Get", 4, RENEWED),
    ],
    "a write of unknown fate that did not happen": [
        *LIFE,
        unknown("Fail", 2, attempts=("r2",)),
        unknown("Renew", 2, metadata="m2"),
    ],
    "a result of unknown fate that won": [
        START,
        RENEW,
        unknown("Complete", 2.6, attempts=("r1",)),
        refused("Fail", 3, attempts=("r2",)),
        call("Wait", 4, ENDED),
    ],
    "the same result twice": [*LIFE, replace(COMPLETE, invoked_at=5, returned_at=6)],
    "a Cancel of what is done": [
        *LIFE,
        call("Cancel", 4, ENDED, attempts=(CANCELLED,), ends=True),
    ],
    "a Cancel that a result overtakes": [
        START,
        call("Cancel", 2, CANCELLING, attempts=(CANCELLED,)),
        call(
            "Complete",
            3,
            replace(CANCELLING, modified_at=30, done=True, result="r1", revision=3),
            attempts=("r1",),
        ),
    ],
    "a timeout": [
        replace(START, attempts=("TIMEOUT",)),
        call("Get", 2, replace(RUNNING, modified_at=15, done=True, result="TIMEOUT", revision=2)),
    ],
    "streams that skip, lag and break": [
        *LIFE,
        watch(1.6, RUNNING, ENDED),
        watch(1.6, RUNNING, RENEWED, answer="unknown"),
        watch(5, ENDED),
        watch(5, answer="unknown"),
    ],
    "a stream that repeats": [*LIFE, watch(1.6, RUNNING, RUNNING, ENDED)],
    "a Get that is not found before the Start has returned": [
        call("Start", 1, RUNNING, lasts=3, metadata="m0"),
        refused("Get", 2, NOT_FOUND),
    ],
    "a Renew that was in doubt and done twice": [
        START,
        RENEW,
        call("Renew", 3, State(50, metadata="m2", revision=4), lasts=3, metadata="m2"),
        call("GetRecord", 4, State(40, metadata="m2", revision=3)),
    ],
    "a Renew that was in doubt, and refused when it was done again": [
        START,
        refused("Renew", 2, metadata="m1", lasts=3),
        call("Get", 2.1, RENEWED),
        call("Cancel", 3, replace(ENDED, result=CANCELLED), attempts=(CANCELLED,), ends=True),
    ],
    "a Delete": [*LIFE, DELETE, refused("Get", 5, NOT_FOUND)],
    "a Delete while it runs": [START, refused("Delete", 2, REFUSED_RUNNING), RENEW, COMPLETE],
    "a Delete in doubt": [*LIFE, unknown("Delete", 4), call("Get", 5, ENDED)],
    "a Delete in doubt that happened": [
        *LIFE,
        unknown("Delete", 4, lasts=9),
        refused("Get", 5, NOT_FOUND),
    ],
    "a Get from memory after a Delete": [UNKEYED, RENEW, COMPLETE, DELETE, call("Get", 9, ENDED)],
    "another operation under the key of one that was deleted": [
        *LIFE,
        DELETE,
        RESTART,
        call("Get", 7, REBORN),
        refused("Renew", 8, WRONG_TOKEN, metadata="m5"),
        refused("Delete", 8, REFUSED_RUNNING),
    ],
    "what google.longrunning tells": [
        *LIFE,
        call("LongrunningGet", 2.6, glimpse=State(0, metadata="m1")),
        call("LongrunningGet", 4, glimpse=State(0, done=True, result="r1", metadata="m1")),
    ],
    "a list of what was never answered": [call("List", 2, RUNNING)],
    "a list of what a Start that was not answered made, before its repeat": [
        unknown("Start", 0, operation_id="", key="k", attempts=("r1",), token="t1"),
        call("List", 4, LAPSED),
        replace(START, invoked_at=6, returned_at=6.5, seen=(Sight(6.5, LAPSED),), attempts=("r1",)),
    ],
    "public states between records": [
        *LIFE,
        call("Get", 2.6, replace(RENEWED, revision=None)),
    ],
    "one key and several who ask": [
        unknown("Start", 0, operation_id="", key="k", token="t1"),
        START,
        replace(START, token="t2", owned=False),
    ],
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_a_good_history_passes(history: list[Event]) -> None:
    assert [str(each) for each in check(history)] == []


OTHER_END = replace(ENDED, result="r2")
RESTED = replace(RENEWED, rest=b"another")
BAD: dict[str, tuple[str, list[Event]]] = {
    "another state under the same version": (
        "one version shows two states",
        [START, RENEW, call("Get", 3, RESTED)],
    ),
    "another metadata under the same version": (
        "one version shows two states",
        [START, RENEW, call("Get", 3, replace(RENEWED, metadata="m0"))],
    ),
    "another lease under the same version": (
        "one version shows two records",
        [*LIFE, call("GetRecord", 4, replace(ENDED, beside=b"another"))],
    ),
    "another revision under the same version": (
        "one version shows two records",
        [*LIFE, call("GetRecord", 4, replace(ENDED, revision=4))],
    ),
    "one revision for two versions": (
        "revisions do not count the changes",
        [START, call("Renew", 2, replace(RENEWED, revision=1), metadata="m1")],
    ),
    "a change that no revision counts": (
        "revisions do not count the changes",
        [
            START,
            call("Renew", 2, replace(RENEWED, revision=None), metadata="m1"),
            call("GetRecord", 3, State(30, metadata="m1", revision=2)),
        ],
    ),
    "a stale read": ("a state went back", [*LIFE, call("Get", 2.6, RUNNING)]),
    "a read that misses what another read saw": (
        "a state went back",
        [
            START,
            unknown("Renew", 2, metadata="m1"),
            call("Get", 3, RENEWED),
            call("Wait", 4, RUNNING),
        ],
    ),
    "a read that misses what a stream saw that then broke": (
        "a state went back",
        [
            START,
            unknown("Renew", 2, metadata="m1"),
            watch(2, RENEWED, answer="unknown"),
            call("Get", 4.5, RUNNING),
        ],
    ),
    "a stale write": (
        "a state went back",
        [*LIFE, call("Cancel", 4, CANCELLING, attempts=(CANCELLED,))],
    ),
    "a stream that begins stale": ("a state went back", [*LIFE, watch(4, RUNNING, ENDED)]),
    "a stream that goes back": (
        "a stream went back",
        [*LIFE, watch(1.6, RENEWED, RUNNING, ENDED)],
    ),
    "a stream that repeats its end": ("a stream went back", [*LIFE, watch(5, ENDED, ENDED)]),
    "a stream that ends too soon": (
        "a stream ended before the operation",
        [START, watch(2, RUNNING)],
    ),
    "a stream of nothing": ("a stream ended before the operation", [START, watch(2)]),
    "two results": (
        "two terminal results",
        [
            *LIFE,
            call("Fail", 3, replace(OTHER_END, modified_at=31), attempts=("r2",), lasts=2),
        ],
    ),
    "a change after the end": (
        "it changed after it was done",
        [*LIFE, call("Get", 4, replace(ENDED, modified_at=31, revision=4))],
    ),
    "an end that is taken back": (
        "it was running after it was done",
        [*LIFE, call("Get", 4, State(31, result="r1", metadata="m1"))],
    ),
    "a refusal of a writer while it runs": (
        "a writer was refused as if it were done",
        [START, RENEW, refused("Complete", 2.6, attempts=("r1",)), call("Get", 4, RENEWED)],
    ),
    "a Complete that answers with another's result": (
        "an acknowledged result is not the result",
        [*LIFE, call("Complete", 4, ENDED, attempts=("r2",))],
    ),
    "a Complete that leaves it running": (
        "an acknowledged result is not the result",
        [START, call("Complete", 2, RUNNING, attempts=("r1",))],
    ),
    "a Complete that is lost": (
        "a state went back",
        [*LIFE, call("Get", 4, RENEWED)],
    ),
    "a Cancel that leaves it running": (
        "an acknowledged Cancel did nothing",
        [START, call("Cancel", 2, CANCELLING, attempts=(CANCELLED,), ends=True)],
    ),
    "a Cancel that is not even noted": (
        "an acknowledged Cancel did nothing",
        [START, call("Cancel", 2, RUNNING, attempts=(CANCELLED,))],
    ),
    "a Cancel that is forgotten": (
        "a cancellation was forgotten",
        [
            START,
            call("Cancel", 2, CANCELLING, attempts=(CANCELLED,)),
            call("Renew", 3, State(30, metadata="m1", revision=3), metadata="m1"),
        ],
    ),
    "a Renew that changes nothing": (
        "an acknowledged Renew made no version",
        [START, call("Renew", 2, RUNNING)],
    ),
    "two Renews at once that make one version": (
        "two acknowledged Renews made one version",
        [START, RENEW, replace(RENEW, client="c2")],
    ),
    "a Renew that shows another's metadata": (
        "an acknowledged Renew is not what it answered",
        [START, RENEW, call("Renew", 3, State(30, metadata="m1", revision=3), metadata="m2")],
    ),
    "a Renew that is overwritten by an older one": (
        "the metadata of an acknowledged write was lost",
        [START, RENEW, call("Get", 3, State(30, metadata="m0"))],
    ),
    "metadata out of nowhere": (
        "metadata that nobody wrote",
        [START, call("Get", 2, State(20, metadata="m9"))],
    ),
    "a result out of nowhere": (
        "a result that nobody asked for",
        [*LIFE[:2], call("Get", 3, ENDED)],
    ),
    "the result of the loser": (
        "the result of a call that was refused",
        [*LIFE[:2], refused("Complete", 3, attempts=("r1",)), call("Get", 4, ENDED)],
    ),
    "the result of the loser, who had tried before": (
        "the result of a call that was refused",
        [
            *LIFE[:2],
            unknown("Complete", 2.6, attempts=("r1",)),
            refused("Complete", 4, attempts=("r1",)),
            call("Get", 5, ENDED),
        ],
    ),
    "a result from the future": (
        "a result before anybody asked for it",
        [*LIFE[:2], call("Get", 2.6, ENDED, lasts=0.1), COMPLETE],
    ),
    "a writer who is refused too soon": (
        "refused before anybody could have ended it",
        [START, refused("Fail", 2, attempts=("r2",)), COMPLETE],
    ),
    "an operation that vanishes": (
        "an operation that was there is not found",
        [START, refused("Get", 2, NOT_FOUND)],
    ),
    "a Get that is refused": (
        "a refusal for which there is no reason",
        [START, refused("Get", 2, "INTERNAL")],
    ),
    "a Cancel that is refused as done": (
        "a refusal for which there is no reason",
        [*LIFE, refused("Cancel", 4)],
    ),
    "one key and two operations": (
        "one key made two operations",
        [START, replace(START, operation_id="ops2", token="t2", owned=False)],
    ),
    "two owners": (
        "an operation has two owners, or none",
        [START, replace(START, token="t2")],
    ),
    "an owner who is told that they are none": (
        "an operation has two owners, or none",
        [START, replace(START, owned=False)],
    ),
    "an operation that was deleted and is back": (
        "an operation was there after it was deleted",
        [*LIFE, DELETE, call("Get", 5, ENDED)],
    ),
    "an operation that memory keeps too long": (
        "an operation was there after it was deleted",
        [UNKEYED, RENEW, COMPLETE, DELETE, call("Get", 11, ENDED)],
    ),
    "an operation that google.longrunning keeps too long": (
        "an operation was there after it was deleted",
        [
            *[UNKEYED, RENEW, COMPLETE, DELETE],
            call("LongrunningGet", 11, glimpse=State(0, done=True, result="r1")),
        ],
    ),
    "a list of what was deleted": (
        "an operation was there after it was deleted",
        [UNKEYED, RENEW, COMPLETE, DELETE, call("List", 5, ENDED)],
    ),
    "a Start that leads to what was deleted": (
        "an operation was there after it was deleted",
        [*LIFE, DELETE, call("Start", 5, ENDED, key="k", token="t2")],
    ),
    "the first life after the second": (
        "an operation was there after it was deleted",
        [*LIFE, DELETE, RESTART, call("GetRecord", 7, ENDED)],
    ),
    "a stale read of the second life": (
        "a state went back",
        [
            *[*LIFE, DELETE, RESTART],
            call("Get", 7, replace(REBORN, modified_at=70, done=True, result="r2")),
            unknown("Complete", 6.6, attempts=("r2",)),
            call("Get", 8, REBORN),
        ],
    ),
    "a Delete that is refused though it was done": (
        "a Delete was refused after it was done",
        [UNKEYED, RENEW, COMPLETE, refused("Delete", 4, REFUSED_RUNNING)],
    ),
    "a wrong token that was right": (
        "a refusal for which there is no reason",
        [START, refused("Renew", 2, WRONG_TOKEN)],
    ),
    "google.longrunning is stale": (
        "a state went back",
        [*LIFE, call("LongrunningGet", 4, glimpse=State(0, metadata="m1"))],
    ),
    "google.longrunning has another result": (
        "two terminal results",
        [*LIFE, call("LongrunningWait", 4, glimpse=State(0, done=True, result="r2"))],
    ),
    "google.longrunning sees an end that was none": (
        "it was running after it was done",
        [
            START,
            call("LongrunningGet", 2, glimpse=State(0, done=True, result="r1")),
            call("GetRecord", 3, RUNNING),
        ],
    ),
    "two owners of the second life": (
        "an operation has two owners, or none",
        [*LIFE, DELETE, RESTART, replace(RESTART, token="t3")],
    ),
    "no owner": ("an operation has no owner", [replace(START, owned=False)]),
}


@pytest.mark.parametrize(("message", "history"), BAD.values(), ids=BAD)
def test_a_bad_history_is_found(message: str, history: list[Event]) -> None:
    assert message in {violation.message for violation in check(history)}


IT = ("ops1", 0)
LISTINGS: dict[str, tuple[str, list[Event], Listing]] = {
    "it holds what was there": ("", LIFE, Listing(4, 5, (IT,), since=-1)),
    "it lacks what was there": ("lacks", LIFE, Listing(4, 5, (), since=-1)),
    "it lacks what came meanwhile": ("", LIFE, Listing(1.2, 5, (), since=-1)),
    "it lacks what was deleted meanwhile": ("", [*LIFE, DELETE], Listing(3.6, 5, (), since=-1)),
    "it lacks what was deleted later": ("lacks", [*LIFE, DELETE], Listing(3.6, 3.8, (), since=-1)),
    "it lacks what is older than asked for": ("", LIFE, Listing(4, 5, (), since=10)),
    "it lacks what is done": ("lacks", LIFE, Listing(4, 5, (), since=-1, done=True)),
    "it lacks what is running no more": ("", LIFE, Listing(4, 5, (), since=-1, done=False)),
    "it lacks what was running throughout": (
        "lacks",
        [START, RENEW],
        Listing(1.6, 1.9, (), since=-1, done=False),
    ),
    "it lacks what was not done from the beginning": (
        "",
        LIFE,
        Listing(3.1, 5, (), since=-1, done=True),
    ),
    "it has it twice": ("twice", LIFE, Listing(4, 5, (IT, IT), since=-1)),
}


@pytest.mark.parametrize(("message", "history", "listing"), LISTINGS.values(), ids=LISTINGS)
def test_a_list_holds_what_was_there_throughout(
    message: str, history: list[Event], listing: Listing
) -> None:
    found = check_listings(history, [listing])

    assert [message in each.message for each in found] == [True] * bool(message)


def test_a_violation_shows_the_calls_that_contradict_each_other() -> None:
    stale = call("Get", 4, RENEWED, client="c7")

    (violation,) = check([*LIFE, stale])

    assert violation.events == (COMPLETE, stale)
    assert str(violation) == (
        "a state went back\n"
        "    3.000000..3.500000 c Complete(r1) ops1: ok 3.500000[30 revision 3 done r1 m1]\n"
        "    4.000000..4.500000 c7 Get() ops1: ok 4.500000[20 revision 2 running - m1]"
    )
