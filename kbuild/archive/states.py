"""Define the states of a release and all transitions between them, in one pure function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from kbuild.archive.release import VISIBLE, Change, Record, State
from kbuild.core.errors import EvidenceError, UserError

PERCENTS = (10, 50, 100)


class Event(StrEnum):
    """The events in the life of a release."""

    JUDGED = "judged"  # by the gate: the evidence says how
    STAGED = "staged"
    PROMOTED = "promoted"
    SUPERSEDED = "superseded"  # a newer release reached every server
    RESTORED = "restored"  # what superseded it was withdrawn
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class Happening:
    """An event with its circumstances."""

    event: Event
    when: str  # UTC, ISO 8601
    commit: str = ""
    reason: str = ""
    percent: int = 0  # of a promotion


# Event -> states in which it changes nothing, because it or a later one has happened already.
_PAST = {
    Event.STAGED: set(VISIBLE),
    Event.SUPERSEDED: {State.SUPERSEDED},
    Event.RESTORED: {State.PROMOTED},
    Event.WITHDRAWN: {State.WITHDRAWN},
}
_SOURCES = {
    Event.JUDGED: {State.BUILT, State.GATED, State.REFUSED},
    Event.STAGED: {State.GATED},
    Event.PROMOTED: {State.STAGED, State.PROMOTED},
    Event.SUPERSEDED: {State.PROMOTED},
    Event.RESTORED: {State.SUPERSEDED},
    Event.WITHDRAWN: set(State) - {State.WITHDRAWN},
}
_NEEDS_EVIDENCE = {Event.STAGED, Event.PROMOTED}
_RESULT = {
    Event.STAGED: State.STAGED,
    Event.PROMOTED: State.PROMOTED,
    Event.SUPERSEDED: State.SUPERSEDED,
    Event.RESTORED: State.PROMOTED,
    Event.WITHDRAWN: State.WITHDRAWN,
}
_ADVICE = {
    State.BUILT: "stage it first, with './inv release'",
    State.GATED: "stage it first, with './inv release'",
    State.REFUSED: "the gate refused it: see gate.json next to its record",
    State.SUPERSEDED: "a newer release of that kernel is promoted",
    State.WITHDRAWN: "its version is used up: raise 'revision', and release again",
}


def next_state(record: Record, happening: Happening, evidence: Sequence[str]) -> Record:
    """Return the record after an event; the same record if the event changes nothing.

    ``evidence`` has the complaints of :func:`kbuild.archive.evidence.complaints`; none means that
    the evidence is complete.  Raises EvidenceError if the event needs evidence and there are
    complaints.  Raises UserError if the event is not allowed in this state, and for a percentage
    below the present one.
    """
    event, state = happening.event, record.state
    if event in _NEEDS_EVIDENCE and evidence and state is not State.WITHDRAWN:
        raise EvidenceError(
            f"{record.id} is not {event.value}, because the evidence is incomplete",
            expected="a verdict of the gate that passed for these packages",
            found="\n".join(evidence),
            hint=f"'./inv gate {record.id}' judges it again; for other packages, raise 'revision'"
            if record.published
            else "repair it, and run './inv release' again",
        )
    if state in _PAST.get(event, ()):
        return record
    if state not in _SOURCES[event]:
        raise UserError(
            f"{record.id} is {state.value}, so it cannot be {event.value}",
            expected=" or ".join(sorted(one.value for one in _SOURCES[event])),
            found=state.value,
            hint=_ADVICE.get(state),
        )
    percent = record.percent
    if event is Event.JUDGED:
        after = State.REFUSED if evidence else State.GATED
    else:
        after = _RESULT[event]
    if event is Event.PROMOTED:
        percent = _percent(record, happening.percent)
    if (after, percent) == (state, record.percent):
        return record
    reason = happening.reason or ("; ".join(evidence) if event is Event.JUDGED else "")
    change = Change(
        event=event.value,
        when=happening.when,
        commit=happening.commit,
        state=after,
        percent=percent,
        reason=reason,
    )
    return replace(record, state=after, percent=percent, history=(*record.history, change))


def _percent(record: Record, percent: int) -> int:
    if percent not in PERCENTS:
        raise UserError(
            "a release is promoted in steps",
            expected=", ".join(map(str, PERCENTS)),
            found=str(percent),
        )
    if percent < record.percent:
        raise UserError(
            f"{record.id} is already promoted to {record.percent} %",
            expected=f"{record.percent} or more",
            found=str(percent),
            hint=f"to take it back: './inv rollback {record.id}'",
        )
    return percent
