"""The states of a release: all transitions, as properties of every history."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbuild.archive import states
from kbuild.archive.release import Record, State
from kbuild.archive.states import Event, Happening, next_state
from kbuild.core.errors import EvidenceError, UserError

NEW = Record("bookworm", "cloud-amd64", "release", "6.1.0-57-x", "6.1.192-3+cplayground1", ())
BAD = ("the gate did not pass",)
happenings = st.builds(
    Happening,
    st.sampled_from(Event),
    st.just("2026-11-30T12:00:00+00:00"),
    st.just("c0ffee"),
    st.text(max_size=3),
    st.sampled_from((0, 10, 50, 100, 101)),
)
steps = st.lists(st.tuples(happenings, st.sampled_from(((), BAD))), max_size=20)


def after(
    event: Event, record: Record = NEW, evidence: tuple[str, ...] = (), percent: int = 10
) -> Record:
    return next_state(record, Happening(event, "now", percent=percent), evidence)


@given(steps)
def test_every_history_keeps_the_rules(history: list[tuple[Happening, tuple[str, ...]]]) -> None:
    record = NEW
    for happening, evidence in history:
        before = record
        try:
            record = next_state(before, happening, evidence)
        except (EvidenceError, UserError):
            continue
        if record is before:
            continue
        # Each change is in the history, with the state and the percentage that it led to.
        *earlier, last = record.history
        assert tuple(earlier) == before.history
        assert (last.event, last.state, last.percent) == (
            happening.event.value,
            record.state,
            record.percent,
        )
        assert record.percent >= before.percent
        assert before.state is not State.WITHDRAWN
        if happening.event in (Event.STAGED, Event.PROMOTED):
            assert not evidence
        if record.state in (State.PROMOTED, State.SUPERSEDED):
            assert record.percent in states.PERCENTS
            assert record.published
        if record.state in (State.BUILT, State.GATED, State.REFUSED):
            assert not record.published
        # The same again changes nothing.
        if happening.event is not Event.JUDGED or record.state is not State.REFUSED:
            assert next_state(record, happening, evidence) is record


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_only_these_events_change_a_state(state: State, event: Event) -> None:
    allowed = {
        Event.JUDGED: "built gated refused",
        Event.STAGED: "gated",
        Event.PROMOTED: "staged promoted",
        Event.SUPERSEDED: "promoted",
        Event.RESTORED: "superseded",
        Event.WITHDRAWN: "built gated refused staged promoted superseded",
    }
    idle = {
        Event.JUDGED: "gated",
        Event.STAGED: "staged promoted superseded",
        Event.SUPERSEDED: "superseded",
        Event.RESTORED: "promoted",
        Event.WITHDRAWN: "withdrawn",
    }
    record = dataclasses.replace(NEW, state=state, percent=10 * (state is State.PROMOTED))
    if state in idle.get(event, "").split():
        assert after(event, record) is record
    elif state in allowed[event].split():
        assert after(event, record, percent=50).state is not None
        assert len(after(event, record, percent=50).history) == 1
    else:
        with pytest.raises(UserError, match=f"is {state.value}, so it cannot be"):
            after(event, record)


def test_a_verdict_decides_and_may_be_repeated() -> None:
    refused = after(Event.JUDGED, evidence=BAD)
    assert refused.state is State.REFUSED
    assert refused.history[-1].reason == BAD[0]
    with pytest.raises((EvidenceError, UserError)):
        after(Event.STAGED, refused)
    assert after(Event.STAGED, after(Event.JUDGED, refused)).state is State.STAGED


@pytest.mark.parametrize("event", [Event.STAGED, Event.PROMOTED])
def test_evidence_is_needed_again_at_each_step(event: Event) -> None:
    record = after(Event.JUDGED)
    for last in (Event.STAGED, Event.PROMOTED)[: 1 + (event is Event.PROMOTED)]:
        with pytest.raises(EvidenceError) as caught:
            after(last, record, BAD)
        assert caught.value.found == BAD[0]
        record = after(last, record)
