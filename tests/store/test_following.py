"""What is still to be told to one who follows many operations."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from opservice.domain.errors import ServerBusy, ServerStopping
from opservice.domain.operation import Change, Record, Removed
from opservice.store import following
from opservice.store.following import MAX_KNOWN, PENDING_BYTES, Follower, ResumePoint, Room
from store.conftest import EPOCH
from store.test_listing import TEMPLATE


def record(id_: str, revision: int = 1, **fields: Any) -> Record:
    return replace(TEMPLATE, id=id_, revision=revision, modified_at=EPOCH + revision, **fields)


def follower(*ids: str, resumed: ResumePoint | None = None) -> Follower:
    """Of these ids, or of all parents, of which it wants what is not done."""
    return Follower(
        ids or None, None, lambda _: True, lambda each: bool(ids) or not each.done, resumed
    )


def told(by: Follower, clock: int | None = None) -> list[Record | Removed]:
    """All that is to be told now."""
    news: list[Record | Removed] = []
    while (taken := by.take(clock)) is not None:
        assert taken[1] is not None
        each = by.told(taken[1])
        if each is not None:
            news.append(each)
    return news


def test_of_several_changes_of_an_operation_the_last_is_told() -> None:
    follows = follower()
    for revision in (1, 2, 3):
        follows.tell(record("a", revision))

    assert told(follows) == [record("a", 3)]


def test_nothing_older_is_told_than_was_told_already() -> None:
    follows = follower()
    follows.tell(record("a", 5))
    assert told(follows) == [record("a", 5)]

    follows.tell(record("a", 4))
    follows.tell(record("a", 5))

    assert told(follows) == []


def test_what_was_removed_does_not_come_back_by_an_older_record() -> None:
    follows = follower()
    follows.tell(record("a", 1))
    told(follows)
    follows.tell_gone(Change.end_of(record("a", 2)))

    follows.tell(record("a", 3))

    assert told(follows) == [Removed("a")]


def test_another_operation_by_the_same_id_is_told() -> None:
    follows = follower()
    follows.tell(record("a", 7))
    told(follows)
    follows.tell_gone(Change.end_of(record("a", 7)))
    again = record("a", 1, created_at=TEMPLATE.created_at + 1)

    follows.tell(again)

    assert told(follows) == [again]


def test_what_does_not_match_is_removed_only_when_it_was_told() -> None:
    follows = follower()
    follows.tell(record("shown"))
    told(follows)
    for id_ in ("shown", "never"):
        follows.tell(record(id_, 2, done=True))

    assert told(follows) == [Removed("shown")]


def test_whoever_continues_a_stream_is_told_of_all_that_does_not_match() -> None:
    follows = follower(resumed=ResumePoint(EPOCH))
    follows.tell(record("a", 2, done=True))

    assert told(follows) == [Removed("a")]


@pytest.mark.parametrize("is_told", [False, True])
def test_what_an_older_look_tells_a_stream_that_is_continued_is_not_the_last(
    *, is_told: bool
) -> None:
    first = follower()
    first.caught_up(EPOCH)
    first.tell(record("a", 3))
    told(first)
    again = follower(resumed=first.resume_point())

    again.tell(record("a", 2))  # read before the stream began
    if is_told:
        assert told(again) == [record("a", 2)]
    assert not again.was_told(record("a", 3), since=0)
    again.tell(record("a", 3))

    assert told(again) == [record("a", 3)]


def test_a_stream_that_begins_forgets_what_a_look_has_read_but_not_what_was_removed() -> None:
    """Else it would tell an older state than the stream has that it continues."""
    first = follower()
    first.caught_up(EPOCH)
    first.tell(record("a", 3))
    told(first)
    again = follower(resumed=first.resume_point())

    again.tell(record("a", 2))
    again.tell_gone(Change.end_of(record("b", 2)))
    again.begin()

    assert again.was_told(record("a", 3), since=0)
    assert told(again) == [Removed("b")]
    assert again.room.used == 0


def test_a_stream_that_is_continued_knows_what_was_told() -> None:
    first = follower()
    first.caught_up(EPOCH)
    first.tell(record("a", 3))
    told(first)
    point = first.resume_point()
    again = follower(resumed=point)

    assert again.was_told(record("a", 3), since=0)
    assert not again.was_told(record("a", 4), since=0)
    assert not again.was_told(record("b", 3), since=0)
    assert again.was_told(record("b", 3), since=EPOCH + 4)


def test_what_the_stream_before_has_told_is_not_told_again_by_the_feed() -> None:
    first = follower()
    first.caught_up(EPOCH)
    first.tell(record("a", 3))
    told(first)
    again = follower(resumed=first.resume_point())

    again.tell(record("a", 3))
    again.tell(record("b", 1))
    assert told(again) == [record("b", 1)]
    again.tell(record("a", 4))
    assert told(again) == [record("a", 4)]


def test_it_is_so_far_as_the_clock_was_once_all_was_told() -> None:
    follows = follower()
    follows.caught_up(EPOCH)
    for id_ in ("a", "b"):
        follows.tell(record(id_))
    clocks = []
    while (taken := follows.take(EPOCH + 9)) is not None:
        assert isinstance(taken[1], Record)
        follows.told(taken[1])
        point = follows.resume_point()
        assert point is not None
        clocks.append(point.clock)

    assert clocks == [EPOCH, EPOCH + 9]


LARGE = b"x" * (PENDING_BYTES // 4 - 2_000)


def test_large_payloads_are_not_kept_until_they_are_told() -> None:
    follows = follower()
    for number in range(10):
        follows.tell(record(f"{number}", metadata=LARGE))

    kept = [taken[1] is not None for _ in range(10) if (taken := follows.take(None))]

    assert kept == [True] * 4 + [False] * 6


def test_streams_that_read_nothing_keep_records_in_one_room() -> None:
    room = Room(PENDING_BYTES)

    def kept_by_another() -> int:
        follows = follower()
        follows.room = room
        for number in range(4):
            follows.tell(record(f"{number}", metadata=LARGE))
        kept = sum(taken[1] is not None for _ in range(3) if (taken := follows.take(None)))
        follows.end(ServerStopping())
        return kept

    first = follower()
    first.room = room
    for number in range(4):
        first.tell(record(f"{number}", metadata=LARGE))
    assert kept_by_another() == 0
    first.take(None)
    assert kept_by_another() == 1
    first.forget_records()
    assert kept_by_another() == 3
    assert room.used == 0


def test_records_without_payloads_take_room_too() -> None:
    room = Room(PENDING_BYTES)
    first = follower()
    first.room = room
    for number in range(MAX_KNOWN):
        first.tell(record(f"{number}"))
    kept = sum(taken[1] is not None for _ in range(MAX_KNOWN) if (taken := first.take(None)))

    assert 1_000 < kept < PENDING_BYTES // 1_000
    assert room.used == 0


def test_who_reads_at_once_is_told_without_another_read_whatever_others_keep() -> None:
    room = Room(PENDING_BYTES, used=PENDING_BYTES)
    follows = follower()
    follows.room = room

    follows.tell(record("a"))

    assert told(follows) == [record("a")]


def test_streams_remember_no_more_than_so_much_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "KNOWN_OF_ALL", 30)
    monkeypatch.setattr(following, "LEAST_KNOWN", 5)
    room = Room(PENDING_BYTES)
    streams = [follower() for _ in range(10)]
    for each in streams:
        each.room = room
        for number in range(20):
            each.tell(record(f"{number}"))
            told(each)

    assert room.known <= 30 + 10 * 5
    assert len(streams[-1].running()) == 5
    streams[-1].tell_gone(Change.end_of(record("0")))
    assert told(streams[-1]) == [Removed("0")], "which it told, though it does not remember"
    for each in streams:
        each.leave()
    assert room.known == 0


def test_whoever_is_ended_is_no_further_than_what_was_told() -> None:
    follows = follower()
    follows.caught_up(EPOCH)
    for number in range(2):
        follows.tell(record(f"{number}"))
    taken = follows.take(EPOCH + 9)
    assert taken is not None
    assert taken[1] is not None

    follows.end(ServerStopping())  # while a record is being read

    follows.told(taken[1])
    assert follows.point == ResumePoint(EPOCH)


def test_who_reads_too_slowly_is_ended_and_holds_nothing_any_more() -> None:
    follows = follower()
    for number in range(MAX_KNOWN + 10):
        follows.tell(record(f"{number}"))

    with pytest.raises(ServerBusy):
        asyncio.run(follows.sleep())
    assert follows.take(None) is None


def test_what_is_done_is_not_followed_by_its_id_any_more() -> None:
    follows = follower("a", "b")
    follows.tell(record("a", 2, done=True))
    follows.remove("b")

    assert told(follows) == [record("a", 2, done=True), Removed("b")]
    assert follows.ids == set()
