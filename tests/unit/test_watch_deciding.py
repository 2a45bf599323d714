"""The decisions of a round, as pure functions: no clock is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbuild.archive.release import Change, Record, State
from kbuild.core import errors
from kbuild.watch import deciding
from kbuild.watch.deciding import FIRST_WAIT, LONGEST_WAIT, PATIENCE
from kbuild.watch.state import Attempt, Cause, Failure, Journal, Outcome, Step

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
NAME = "bookworm-lab"

OF_A_MACHINE = Failure("infrastructure", "no answer", 69)
VERDICT = Failure("guest", "the guest crashed", 21)
FULL = Failure("full disk", "no room", 69)
KEYS = Failure("signing", "expired", 42)
EXPIRED = Failure("expired", "the index was refused", 65)
DAMAGED = Failure("trust", "the index was refused", 65)
CLOCK = Failure("clock", "the clock is wrong", 69)

# Every status that an error of ours can have, and those of guests.
STATUSES = sorted(
    {
        one.exit_status
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, errors.KbuildError)
    }
    | {*range(20, 34)}
)


def attempt(journal: Journal, failure: Failure | None, now: datetime, inputs: str = "a") -> Attempt:
    begun = deciding.begin(journal, Step.RELEASE, NAME, inputs, now)
    return deciding.end(begun, now, failure)


def after(failures: Sequence[Failure | None], inputs: str = "a") -> Journal:
    """Return the journal after attempts, each as soon as it may be."""
    journal, now = Journal(), NOW
    for failure in failures:
        made = attempt(journal, failure, now, inputs)
        journal = journal.with_attempt(made)
        if made.not_before:
            now = datetime.fromisoformat(made.not_before)
    return journal


def last(journal: Journal) -> Attempt:
    (one,) = journal.attempts
    return one


# Attempts.


@given(st.integers(1, 100_000))
def test_a_wait_doubles_up_to_the_longest(tries: int) -> None:
    this, following = deciding.wait(tries), deciding.wait(tries + 1)
    assert FIRST_WAIT <= this <= following <= LONGEST_WAIT
    assert following in (2 * this, LONGEST_WAIT)


@given(st.lists(st.sampled_from([OF_A_MACHINE, FULL]), min_size=1, max_size=20))
def test_a_machines_failures_are_tried_again_after_ever_longer_waits(
    failures: list[Failure],
) -> None:
    one = last(after(failures))
    assert (one.outcome, one.tries) == (Outcome.UNAVAILABLE, len(failures))
    begin, later = map(datetime.fromisoformat, (one.ended, one.not_before))
    assert later - begin == deciding.wait(len(failures))
    assert deciding.obstacle(one, "a", later - timedelta(seconds=1))
    assert deciding.obstacle(one, "a", later) is None


@pytest.mark.parametrize("status", sorted({1, 3, *range(20, 34), 40, 41, 43, 70}))
@given(years=st.integers(0, 50), other=st.text())
def test_a_verdict_is_never_asked_for_again_with_the_same_inputs(
    status: int, years: int, other: str
) -> None:
    one = last(after([Failure("guest", "no", status)]))
    assert one.outcome is Outcome.REFUSED
    assert deciding.obstacle(one, "a", NOW + timedelta(days=365 * years))
    assert (deciding.obstacle(one, other, NOW) is None) is (other != "a")


@pytest.mark.parametrize("status", [2, 42, 65, 69])
def test_keys_mirrors_and_machines_may_recover_by_themselves(status: int) -> None:
    assert last(after([Failure("x", "no", status)])).outcome is Outcome.UNAVAILABLE


def test_keys_are_tried_in_each_round() -> None:
    one = last(after([Failure("signing", "expired", 42)] * 3))
    assert (one.tries, deciding.obstacle(one, "a", NOW)) == (3, None)
    begun = deciding.begin(Journal(), Step.SIGN, "archive", "", NOW)
    for failure in (VERDICT, OF_A_MACHINE):
        assert deciding.obstacle(deciding.end(begun, NOW, failure), "", NOW) is None


def test_each_status_is_one_or_the_other() -> None:
    for status in STATUSES:
        outcome = deciding.outcome_of(Step.RELEASE, Failure("x", "no", status))
        assert (outcome is Outcome.UNAVAILABLE) is (status in (2, 42, 65, 69)), status


def test_inputs_that_were_refused_stay_so_until_a_success() -> None:
    journal = Journal()
    for number in range(2 * deciding._REFUSED):
        for failure in (OF_A_MACHINE, VERDICT):
            journal = journal.with_attempt(attempt(journal, failure, NOW, str(number)))
    refused = [
        number
        for number in range(2 * deciding._REFUSED)
        if deciding.obstacle(last(journal), str(number), NOW)
    ]
    assert refused == [*range(deciding._REFUSED - 1, 2 * deciding._REFUSED)]
    assert deciding.obstacle(last(journal), "new", NOW) is None
    journal = journal.with_attempt(attempt(journal, None, NOW, "new"))
    assert last(journal).refused == ()


def test_other_inputs_begin_to_count_anew() -> None:
    journal = after([OF_A_MACHINE] * 5)
    assert deciding.begin(journal, Step.RELEASE, NAME, "b", NOW).tries == 1
    assert deciding.begin(journal, Step.RELEASE, NAME, "a", NOW).tries == 6


def test_a_success_ends_the_count() -> None:
    assert last(after([OF_A_MACHINE, OF_A_MACHINE, None])).tries == 1
    assert last(after([OF_A_MACHINE, None, OF_A_MACHINE])).tries == 1
    assert deciding.obstacle(last(after([None])), "a", NOW) is None


def test_a_mirror_is_asked_again_whatever_it_said() -> None:
    begun = deciding.begin(Journal(), Step.CHECK, NAME, "", NOW)
    for failure in (VERDICT, Failure("usage", "no such suite", 2)):
        ended = deciding.end(begun, NOW, failure)
        assert deciding.obstacle(ended, "", NOW + LONGEST_WAIT) is None
        assert deciding.obstacle(ended, "", NOW)


def test_a_bad_report_does_not_keep_from_asking_again() -> None:
    begun = deciding.begin(Journal(), Step.HEALTH, "id", "", NOW)
    assert deciding.obstacle(deciding.end(begun, NOW, VERDICT), "", NOW) is None


def test_an_interrupted_attempt_goes_on_at_once_but_not_for_ever() -> None:
    journal = Journal()
    waits = []
    for _ in range(5):
        begun = deciding.begin(journal, Step.RELEASE, NAME, "a", NOW)
        journal = deciding.interrupted(journal.with_attempt(begun), NOW)
        assert last(journal).outcome is Outcome.INTERRUPTED
        waits.append(deciding.obstacle(last(journal), "a", NOW) is not None)
    # A machine that dies of each attempt must not do so all day.
    assert waits == [False, False, True, True, True]


def test_a_wait_that_a_wrong_clock_wrote_is_no_wait() -> None:
    made = last(after([OF_A_MACHINE]))
    assert deciding.obstacle(made, "a", NOW) is not None
    assert deciding.obstacle(made, "a", NOW - 40 * 24 * HOUR) is None


def test_what_had_ended_is_not_interrupted() -> None:
    journal = after([VERDICT])
    assert deciding.interrupted(journal, NOW) == journal


# Releases.


def record(
    base: str, state: State = State.PROMOTED, percent: int = 100, *, when: datetime = NOW
) -> Record:
    changes = [Change("staged", when.isoformat(), "", State.STAGED)]
    if state is not State.STAGED:
        changes.append(Change(state.value, when.isoformat(), "", state, percent))
    return Record(
        suite="bookworm",
        flavour="lab",
        variant="release",
        kernel=base,
        version=f"{base}+cplayground1",
        packages=(),
        state=state,
        percent=0 if state is State.STAGED else percent,
        history=tuple(changes),
    )


def test_a_version_above_all_published_ones_is_released() -> None:
    assert deciding.wanted([], "6.1.10-1+cplayground1").due
    known = [record("6.1.9-1"), record("6.1.8-1", State.SUPERSEDED)]
    # As Debian compares versions, not as texts.
    assert deciding.wanted(known, "6.1.10-1+cplayground1").due
    assert deciding.wanted(known, "6.1.9-1+cplayground2").due
    assert not deciding.wanted(known, "6.1.9-1+cplayground1").due
    assert not deciding.wanted(known, "6.1.8-2+cplayground1").due


def test_a_refused_release_is_not_published_so_its_inputs_decide() -> None:
    refused = dataclasses.replace(
        record("6.1.9-1"), state=State.REFUSED, history=(Change("judged", "", "", State.REFUSED),)
    )
    assert deciding.wanted([refused], "6.1.9-1+cplayground1").due


def test_a_withdrawn_version_waits_for_a_person() -> None:
    known = [record("6.1.9-1", State.WITHDRAWN), record("6.1.8-1")]
    found = deciding.wanted(known, "6.1.9-1+cplayground1")
    assert not found.due
    assert "revision" in found.blocked
    assert deciding.wanted(known, "6.1.9-1+cplayground2") == deciding.Wanted(
        "6.1.9-1+cplayground2", True
    )


# Promotions.

STEPS = ((10, 24), (50, 12), (100, 48))


def steps(known: Sequence[Record], journal: Journal | None = None) -> list[tuple[str, int, float]]:
    found = deciding.promotions(known, STEPS, journal or Journal())
    return [(one.record.kernel, one.percent, (one.at - NOW) / HOUR) for one in found]


def test_each_step_follows_from_the_percentage_and_its_hours() -> None:
    assert steps([record("6.1.9-1", State.STAGED)]) == [("6.1.9-1", 10, 24)]
    assert steps([record("6.1.9-1", percent=10)]) == [("6.1.9-1", 50, 12)]
    assert steps([record("6.1.9-1", percent=50)]) == [("6.1.9-1", 100, 48)]
    assert steps([record("6.1.9-1")]) == []


def test_without_a_policy_nothing_is_promoted() -> None:
    assert deciding.promotions([record("6.1.9-1", State.STAGED)], (), Journal()) == ()


def test_a_percentage_that_a_person_chose_goes_on_with_the_next_step() -> None:
    assert deciding.promotions([record("6.1.9-1", percent=10)], ((100, 1),), Journal())[
        0
    ].percent == (100)


def test_an_older_release_goes_on_while_a_newer_one_waits() -> None:
    # Else a distro with an update each day would never reach a server.
    known = [record("6.1.9-1", percent=50), record("6.1.10-1", State.STAGED)]
    assert steps(known) == [("6.1.10-1", 10, 24), ("6.1.9-1", 100, 48)]


def test_nothing_below_the_release_of_every_server_is_promoted() -> None:
    assert steps([record("6.1.9-1", State.STAGED), record("6.1.10-1")]) == []


def test_nothing_below_a_withdrawn_release_of_servers_is_promoted() -> None:
    known = [record("6.1.9-1", State.STAGED), record("6.1.10-1", State.WITHDRAWN, 10)]
    assert steps(known) == []
    # It was in staging only.
    known[1] = record("6.1.10-1", State.WITHDRAWN, 0)
    assert steps(known) == [("6.1.9-1", 10, 24)]


def reported(known: Record, answers: Sequence[tuple[float, Outcome]]) -> Journal:
    """Return the journal after reports, each after so many hours."""
    journal = Journal()
    for hours, outcome in answers:
        now = NOW + hours * HOUR
        before = journal.attempt(Step.HEALTH, known.id)
        begun = deciding.begin(journal, Step.HEALTH, known.id, "", now)
        since = deciding.good_since(before, outcome, NOW, now)
        ended = dataclasses.replace(begun, outcome=outcome, good_since=since)
        journal = journal.with_attempt(ended)
    return journal


GOOD, BAD, NONE = Outcome.DONE, Outcome.REFUSED, Outcome.UNAVAILABLE


@pytest.mark.parametrize(
    ("answers", "hours"),
    [
        ([], 24),
        ([(20, GOOD)], 24),
        ([(1, GOOD), (5, BAD), (6, BAD), (7, GOOD), (8, GOOD)], 31),
        # That the command did not run is no bad report, and no good one.
        ([(1, GOOD), (5, NONE), (6, GOOD)], 24),
        ([(1, NONE), (6, GOOD)], 24),
        ([(5, BAD), (6, NONE), (7, GOOD)], 31),
    ],
)
def test_the_hours_count_from_the_last_bad_report(
    answers: list[tuple[float, Outcome]], hours: float
) -> None:
    known = record("6.1.9-1", State.STAGED)
    assert steps([known], reported(known, answers)) == [("6.1.9-1", 10, hours)]


def test_the_hours_count_from_the_last_step() -> None:
    known = record("6.1.9-1", State.STAGED)
    journal = reported(known, [(1, GOOD)])
    promoted = record("6.1.9-1", percent=10, when=NOW + 30 * HOUR)
    assert steps([promoted], journal) == [("6.1.9-1", 50, 42)]


def test_a_report_that_was_killed_forgets_no_good_one() -> None:
    known = record("6.1.9-1", State.STAGED)
    journal = reported(known, [(1, GOOD)])
    begun = deciding.begin(journal, Step.HEALTH, known.id, "", NOW + HOUR)
    journal = deciding.interrupted(journal.with_attempt(begun), NOW + 2 * HOUR)
    again = deciding.good_since(last(journal), GOOD, NOW, NOW + 3 * HOUR)
    assert again == NOW.isoformat()


def test_a_release_whose_packages_are_gone_is_not_promoted() -> None:
    assert steps([dataclasses.replace(record("6.1.9-1", State.STAGED), pruned=True)]) == []


@given(st.lists(st.tuples(st.floats(0, 5), st.sampled_from([GOOD, BAD, NONE]))))
def test_a_report_only_ever_delays(gaps: list[tuple[float, Outcome]]) -> None:
    known, now, answers = record("6.1.9-1", State.STAGED), 0.0, []
    for gap, outcome in gaps:
        now += gap
        answers.append((now, outcome))
    ((_, percent, at),) = steps([known], reported(known, answers))
    assert percent == 10
    bad = [index for index, (_, outcome) in enumerate(answers) if outcome is BAD]
    good = [when for when, outcome in answers[bad[-1] :] if outcome is GOOD] if bad else [0.0]
    # Not yet good again: the release is not promoted, whatever the time.
    assert not good or at == pytest.approx(24 + good[0], abs=1e-6)


# Causes.


def causes(journal: Journal) -> tuple[Cause, ...]:
    return deciding.causes(journal.attempts, NOW)


def test_a_verdict_is_told_at_once_and_names_its_error() -> None:
    (one,) = causes(after([VERDICT]))
    assert (one.subject, one.what, one.error) == (f"release {NAME}", VERDICT.what, VERDICT)


@pytest.mark.parametrize("failure", [OF_A_MACHINE, EXPIRED])
def test_a_machine_is_given_time(failure: Failure) -> None:
    for tries in range(1, PATIENCE + 2):
        assert bool(causes(after([failure] * tries))) is (tries >= PATIENCE)


@pytest.mark.parametrize("failure", [FULL, CLOCK, DAMAGED, KEYS, VERDICT])
def test_what_does_not_pass_by_itself_is_told_at_once(failure: Failure) -> None:
    assert causes(after([failure]))


def test_a_machine_that_dies_of_an_attempt_is_told() -> None:
    journal = Journal()
    for tries in range(1, 4):
        begun = deciding.begin(journal, Step.RELEASE, NAME, "a", NOW)
        journal = deciding.interrupted(journal.with_attempt(begun), NOW)
        assert bool(causes(journal)) is (tries >= PATIENCE)


def told(found: Sequence[Cause]) -> tuple[Cause, ...]:
    """Return the causes after everybody was told."""
    knows = ("command",)
    return tuple(
        dataclasses.replace(one, told=knows, alarmed=knows) for one in found if not one.over
    )


def test_a_cause_is_told_once_until_it_changes() -> None:
    first = deciding.compare((), causes(after([VERDICT])), NOW)
    assert [one.told for one in first] == [()]
    again = deciding.compare(told(first), causes(after([VERDICT])), NOW + HOUR)
    assert again == told(first)
    other = deciding.compare(told(first), causes(after([VERDICT], "b")), NOW + HOUR)
    assert [(one.told, one.since) for one in other] == [((), NOW.isoformat())]


def test_another_sentence_about_the_same_machine_is_no_other_cause() -> None:
    first = deciding.compare((), causes(after([OF_A_MACHINE] * 3)), NOW)
    slow = Failure("infrastructure", "too slow", 69)
    (one,) = deciding.compare(told(first), causes(after([OF_A_MACHINE] * 3 + [slow])), NOW + HOUR)
    assert (one.told, one.what) == (("command",), "too slow")


def test_a_failure_that_may_pass_is_no_end() -> None:
    known = told(deciding.compare((), causes(after([FULL])), NOW))
    now = deciding.causes(after([FULL, OF_A_MACHINE]).attempts, NOW, known)
    assert deciding.compare(known, now, NOW) == known
    assert deciding.causes(after([FULL, None]).attempts, NOW, known) == ()
    # An end that some do not know of yet is one.
    (over,) = deciding.compare(known, (), NOW)
    assert deciding.causes(after([OF_A_MACHINE]).attempts, NOW, [over]) == ()


def test_the_end_is_told_once_to_those_who_know_of_the_beginning() -> None:
    first = told(deciding.compare((), causes(after([VERDICT])), NOW))
    (over,) = deciding.compare(first, (), NOW + HOUR)
    assert (over.over, over.told) == ((NOW + HOUR).isoformat(), ())
    # Not told yet, so it is kept as it is.
    assert deciding.compare([over], (), NOW + 2 * HOUR) == (over,)
    assert deciding.compare(told([over]), (), NOW + 2 * HOUR) == ()
    # Nobody knew.
    assert deciding.compare(deciding.compare((), causes(after([VERDICT])), NOW), (), NOW) == ()


def test_who_knows_of_one_cause_is_told_of_the_end_of_the_next() -> None:
    first = told(deciding.compare((), causes(after([VERDICT])), NOW))
    # Nobody can be told of the next one.
    (second,) = deciding.compare(first, causes(after([VERDICT], "b")), NOW + HOUR)
    assert (second.told, second.alarmed) == ((), ("command",))
    (over,) = deciding.compare([second], (), NOW + 2 * HOUR)
    assert (over.over, over.alarmed) == ((NOW + 2 * HOUR).isoformat(), ("command",))


def test_a_cause_that_comes_back_before_its_end_was_told_is_told_again() -> None:
    first = told(deciding.compare((), causes(after([VERDICT])), NOW))
    over = deciding.compare(first, (), NOW + HOUR)
    (again,) = deciding.compare(over, causes(after([VERDICT])), NOW + 2 * HOUR)
    assert (again.over, again.told) == ("", ())


@given(st.lists(st.sampled_from([None, VERDICT, FULL]), max_size=30))
def test_a_notification_follows_each_change_and_nothing_else(rounds: list[Failure | None]) -> None:
    """Told at each round, the notifications are the changes of what is the matter."""
    known: tuple[Cause, ...] = ()
    sent: list[str] = []
    expected: list[str] = []
    before: Failure | None = None
    journal = Journal()
    for number, failure in enumerate(rounds):
        now = NOW + number * HOUR
        journal = journal.with_attempt(attempt(journal, failure, now))
        known = deciding.compare(known, deciding.causes(journal.attempts, now), now)
        sent += ["over" if one.over else one.what for one in known if not one.told]
        known = told(known)
        if failure != before:
            expected.append(failure.what if failure else "over")
        before = failure
    assert sent == expected


# The journal's end.


def test_attempts_that_concern_nothing_any_more_are_forgotten() -> None:
    new, old = record("6.1.192-3", State.STAGED), record("6.1.192-2")
    then = NOW.isoformat()
    made = [
        Attempt(Step.SIGN, "archive", "", then),
        Attempt(Step.CHECK, "bookworm-lab", "", then),
        # A round with other targets wrote this one.
        Attempt(Step.RELEASE, "trixie-lab", "", then, outcome=Outcome.REFUSED),
        Attempt(Step.RELEASE, "bookworm-lab", "", then, outcome=Outcome.REFUSED),
        Attempt(Step.HEALTH, old.id, "", then),
        Attempt(Step.HEALTH, new.id, "", then),
    ]

    def left(due: dict[str, bool], records: list[Record] | None, days: int = 29) -> list[str]:
        now = NOW + timedelta(days=days)
        found = deciding.relevant(Journal(tuple(made)), {"bookworm-lab"}, due, records, now)
        return [one.key for one in found.attempts]

    always, theirs = ["sign archive", "check bookworm-lab"], "release trixie-lab"
    failed, waits = "release bookworm-lab", f"health {new.id}"
    both = [old, new]
    assert left({"bookworm-lab": True}, both) == [*always, theirs, failed, waits]
    assert left({"bookworm-lab": True}, both, days=31) == [*always, failed, waits]
    # A person has released it.
    assert left({"bookworm-lab": False}, both) == [*always, theirs, waits]
    # The mirror did not answer, and the archive could not be read.
    assert left({}, None) == [*always, theirs, failed, f"health {old.id}", waits]
