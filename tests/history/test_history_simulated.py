"""The checker, against whatever histories a server makes that is correct but for one thing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from support.history import DONE, Call, Event, Sight, State, check

CANCELLED = "CANCELLED"
FIRST = State(10, metadata="m0", revision=1)
START = Event(
    client="c0",
    call="Start",
    operation_id="ops1",
    invoked_at=-9,
    returned_at=-8,
    seen=(Sight(-8, FIRST),),
    metadata="m0",
)


@dataclass(frozen=True)
class Step:
    """A call, and how long before and after its moment it was invoked and returned."""

    call: Call
    before: float
    after: float
    ticks: int
    """By how much the clock goes on before it."""
    public: bool
    """It shows the operation, not the record."""
    immediate: bool
    unanswered: bool
    unheard: bool


class Simulation:
    """A correct server that has one operation. Call number n takes effect at the moment n."""

    def __init__(self, steps: list[Step]) -> None:
        self.events = [START]
        self.states = [FIRST]
        self._since = [0]
        """The moment from which on each state was there."""
        for moment, step in enumerate(steps, 1):
            self._take(step, moment)

    @property
    def state(self) -> State:
        return self.states[-1]

    @property
    def over(self) -> float:
        """By then all calls have returned."""
        return max(event.returned_at for event in self.events) + 1

    def last_read(self, state: State | None = None) -> Event:
        """By somebody who asks when all is over."""
        over = self.over
        sight = Sight(over + 1, state or self.state)
        return self.event("Get", over, over + 1, seen=(sight,))

    def event(self, call: Call, invoked_at: float, returned_at: float, **more: Any) -> Event:
        return Event(
            client=f"c{len(self.events)}",
            call=call,
            operation_id="ops1",
            invoked_at=invoked_at,
            returned_at=returned_at,
            **more,
        )

    def watch(self, moment: int, lags: list[float]) -> Event:
        """A stream that begins at this moment, each of its messages late by one of the lags."""
        first = max(n for n, since in enumerate(self._since) if since <= moment)
        seen: list[Sight] = []
        for state, since, lag in zip(self.states[first:], self._since[first:], lags, strict=False):
            at = max(moment, since, seen[-1].at if seen else 0) + lag
            seen.append(Sight(at, state))
            if not state.done:  # as when it is quiet: sent once more
                seen.append(Sight(at + lag, state))
        ended = bool(seen) and seen[-1].state.done
        returned_at = seen[-1].at if seen else moment
        answer = "ok" if ended else "unknown"
        return self.event("Watch", moment - 0.5, returned_at, seen=tuple(seen), answer=answer)

    def _take(self, step: Step, moment: int) -> None:
        before = self.state
        writes: dict[str, Any] = {}
        after = before
        if step.call == "Renew":
            writes = {"metadata": f"m{moment}"}
            after = replace(before, metadata=f"m{moment}")
        elif step.call == "Complete":
            writes = {"attempts": (f"r{moment}",)}
            after = replace(before, done=True, result=f"r{moment}")
        elif step.call == "Cancel":
            writes = {"attempts": (CANCELLED,), "ends": step.immediate}
            after = replace(before, done=step.immediate, result=CANCELLED)
            if before.result is not None:  # a second Cancel changes nothing
                writes["ends"], after = False, before
        refused = before.done and step.call in ("Renew", "Complete")
        if after != before and not before.done and not step.unheard:
            self._change(after, step.ticks, moment)
        if step.unanswered or step.unheard:
            told: dict[str, Any] = {"answer": "unknown"}
        elif refused:
            told = {"answer": "refused", "refusal": DONE}
        else:
            shown = replace(self.state, revision=None) if step.public else self.state
            told = {"seen": (Sight(moment + step.after, shown),)}
        event = self.event(step.call, moment - step.before, moment + step.after, **writes, **told)
        self.events.append(event)

    def _change(self, after: State, ticks: int, moment: int) -> None:
        revision = len(self.states) + 1
        modified_at = self.state.modified_at + ticks
        self.states.append(replace(after, revision=revision, modified_at=modified_at))
        self._since.append(moment)


durations = st.floats(0.01, 6)
seldom = st.sampled_from([False, False, False, True])
steps = st.builds(
    Step,
    call=st.sampled_from(["Get", "Get", "Renew", "Renew", "Cancel", "Complete"]),
    before=durations,
    after=durations,
    ticks=st.integers(1, 3),
    public=st.booleans(),
    immediate=st.booleans(),
    unanswered=seldom,
    unheard=seldom,
)


@st.composite
def simulations(draw: st.DrawFn) -> Simulation:
    simulation = Simulation(draw(st.lists(steps, min_size=1, max_size=25)))
    watches = st.tuples(st.integers(0, 25), st.lists(durations, max_size=8))
    simulation.events += [simulation.watch(*watch) for watch in draw(st.lists(watches, max_size=2))]
    return simulation


@given(simulations())
def test_whatever_a_correct_server_answers_passes(simulation: Simulation) -> None:
    history = [*simulation.events, simulation.last_read()]

    assert [str(each) for each in check(history)] == []


@given(simulations(), st.data())
def test_a_stale_read_is_found_in_any_history(simulation: Simulation, data: st.DataObject) -> None:
    told = max(sight.state.modified_at for event in simulation.events for sight in event.seen)
    older = [state for state in simulation.states if state.modified_at < told]
    assume(older)
    stale = simulation.last_read(data.draw(st.sampled_from(older)))

    assert "a state went back" in {each.message for each in check([*simulation.events, stale])}


@given(simulations(), st.data())
def test_a_second_terminal_result_is_found_in_any_history(
    simulation: Simulation, data: st.DataObject
) -> None:
    who = [
        n for n, event in enumerate(simulation.events) if event.seen and event.seen[-1].state.done
    ]
    assume(who)
    index = data.draw(st.sampled_from(who))
    event = simulation.events[index]
    later = data.draw(st.integers(0, 3))
    second = replace(
        simulation.state, result="r0", modified_at=simulation.state.modified_at + later
    )
    told = replace(event, seen=(*event.seen[:-1], Sight(event.returned_at, second)))
    lying = [told if each is event else each for each in simulation.events]
    asked = simulation.event("Complete", -5, 0, attempts=("r0",), answer="unknown")

    found = check([*lying, asked, simulation.last_read()])

    assert "two terminal results" in {each.message for each in found}


@given(simulations(), st.data())
def test_an_acknowledged_write_that_is_lost_is_found_in_any_history(
    simulation: Simulation, data: st.DataObject
) -> None:
    """The server forgets it after it has answered, and goes on from the state before."""
    before, over = simulation.state, simulation.over
    assume(not before.done)
    next_revision = len(simulation.states) + 1
    told = replace(before, modified_at=before.modified_at + 1, revision=next_revision)
    writes: dict[str, Any] = {"metadata": "lost"}
    if data.draw(st.booleans()):
        told = replace(told, done=True, result="lost")
        writes["attempts"] = ("lost",)
    told = replace(told, metadata="lost")
    kind: Call = "Complete" if told.done else "Renew"
    lost = simulation.event(kind, over, over + 1, seen=(Sight(over + 1, told),), **writes)
    # What is read then is the state before, or what another write made of that.
    later = data.draw(st.integers(0, 3))
    made = replace(before, modified_at=told.modified_at + later, revision=next_revision)
    others = [before, replace(made, metadata="later")]
    again = simulation.event("Renew", over + 1.5, over + 8, metadata="later", answer="unknown")
    read_at = over + 9
    seen = data.draw(st.sampled_from(others))
    read = simulation.event("GetRecord", read_at, read_at + 1, seen=(Sight(read_at + 1, seen),))

    assert check([*simulation.events, lost, again, read])
