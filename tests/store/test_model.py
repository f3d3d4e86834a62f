"""The store against a model of it, in every order of commands, sweeps and clock that Hypothesis tries."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, select

from opservice.domain.operation import (
    SECOND,
    Cancel,
    CancelPolicy,
    Command,
    Complete,
    Delete,
    DeleteExpired,
    EndCancelGrace,
    Fail,
    Failure,
    LapseLeases,
    Outcome,
    Progress,
    ReachTimeouts,
    Record,
    Renew,
    Start,
    Sweep,
)
from opservice.store.schema import operations
from store.conftest import (
    ABORTED,
    CANCELLED,
    DEADLINE_EXCEEDED,
    EPOCH,
    INTERNAL,
    Clock,
    Ops,
)
from store.model import Model

GRACE = 20 * SECOND

# Few values of everything, so that commands meet.
IDS = ["opsa", "opsb", "opsc"]
ids = st.sampled_from(IDS)
tokens = st.sampled_from([None, b"token", b"another token"])
payloads = st.sampled_from([b"", b"one", b"two"])
durations = st.sampled_from([SECOND, 10 * SECOND, 30 * SECOND])
failures = st.sampled_from([INTERNAL, Failure(INTERNAL.code, b"otherwise")])
progresses = st.sampled_from([Progress(), Progress(1, 2, "layers", "pushing")])

starts = st.builds(
    Start,
    id=ids,
    retention=durations,
    metadata=st.none() | payloads,
    cancel_policy=st.sampled_from(CancelPolicy),
    lease=st.none() | durations,
    lease_token_hash=tokens,
    timeout=st.none() | durations,
    request_hash=st.sampled_from([None, b"request", b"another request"]),
)
others = st.one_of(
    st.builds(Renew, ids, tokens, st.none() | payloads, st.none() | progresses),
    st.builds(Complete, ids, payloads, tokens, st.none() | payloads),
    st.builds(Fail, ids, failures, tokens, st.none() | payloads),
    st.builds(Cancel, ids, st.just(CANCELLED)),
    st.builds(Delete, ids),
)
limits = st.integers(1, 3)
sweeps = st.one_of(
    st.builds(LapseLeases, st.just(ABORTED), limits),
    st.builds(ReachTimeouts, st.just(DEADLINE_EXCEEDED), limits),
    st.builds(EndCancelGrace, st.just(GRACE), limits),
    st.builds(DeleteExpired, limits),
)
steps = st.sampled_from([1, SECOND, 10 * SECOND, 30 * SECOND, -1, -SECOND, -10 * SECOND])


class StoreMachine(RuleBasedStateMachine):
    def __init__(self, ops: Ops, clock: Clock) -> None:
        super().__init__()
        ops.database.write(lambda connection: connection.execute(delete(operations)))
        clock.now = EPOCH
        self.ops = ops
        self.clock = clock
        self.model = Model(clock)
        self.before: dict[str, Record] = {}
        self.started: set[str] = set()
        """The operations that the last step created."""

    @rule(start=starts)
    def start(self, start: Start) -> None:
        self.apply([start])

    @rule(command=others)
    def command(self, command: Command) -> None:
        self.apply([command])

    @rule(command=others)
    def command_by_the_holder(self, command: Command) -> None:
        """With the right token, which would seldom be found by chance."""
        record = self.model.rows.get(command.id)
        if record is not None and isinstance(command, Renew | Complete | Fail):
            command = replace(command, lease_token_hash=record.lease_token_hash)
        self.apply([command])

    @rule(commands=st.lists(starts | others, min_size=2, max_size=6))
    def batch(self, commands: list[Command]) -> None:
        self.apply(commands)

    @rule(sweep=sweeps)
    def sweep(self, sweep: Sweep) -> None:
        due = self.model.due(sweep)

        swept = self.ops.sweep(sweep)

        assert len(set(swept)) == len(swept) == min(len(due), sweep.limit)
        assert set(swept) <= set(due)
        # Those that were due first.
        last = max((due[id_] for id_ in swept), default=0)
        assert all(due[id_] >= last for id_ in set(due) - set(swept))
        self.started = set()
        for id_ in swept:
            self.model.sweep(sweep, id_)

    @rule(step=steps)
    def move_clock(self, step: int) -> None:
        self.clock.advance(step)
        self.started = set()

    def apply(self, commands: list[Command]) -> None:
        outcomes = self.ops.batch(commands)
        self.started = {
            command.id
            for command, outcome in zip(commands, outcomes, strict=True)
            if isinstance(command, Start) and isinstance(outcome, Outcome) and outcome.changed
        }
        expected = [self.model.apply(command) for command in commands]
        assert [o if isinstance(o, Outcome) else type(o) for o in outcomes] == expected

    @invariant()
    def find_agrees_with_the_model(self) -> None:
        found = self.ops.database.read(lambda c: self.ops.repository.find(c, IDS))
        visible = {id_: self.model.find(id_) for id_ in self.model.rows}
        assert found == {id_: record for id_, record in visible.items() if record is not None}

    @invariant()
    def an_operation_only_goes_forward(self) -> None:
        """What must hold whatever the model says: done stays done, and changes can be counted."""
        rows = self.ops.database.read(lambda c: c.execute(select(operations)).all())
        after = {row.id: Record(*tuple(row)) for row in rows}
        for id_ in self.before.keys() & after.keys() - self.started:
            old, new = self.before[id_], after[id_]
            assert (
                old == new or not old.done or new.expires_at == -new.modified_at
            )  # only Delete changes a done one
            assert (old == new) == (old.revision == new.revision)
            assert new.revision >= old.revision
            assert (new.modified_at > old.modified_at) == (new.revision > old.revision)
        self.before = after


@pytest.mark.parametrize(
    ("examples", "steps"), [(8, 30), pytest.param(200, 60, marks=pytest.mark.slow)]
)
def test_the_store_does_what_the_model_does(
    ops: Ops, clock: Clock, examples: int, steps: int
) -> None:
    class Machine(StoreMachine):
        def __init__(self) -> None:
            super().__init__(ops, clock)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
