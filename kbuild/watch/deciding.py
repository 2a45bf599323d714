"""Decide what a round does, as pure functions of the records, the journal, the policy and a time.

Nothing here reads a clock, a file or the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from debian.debian_support import Version

from kbuild.archive import contents
from kbuild.archive.release import Record, State
from kbuild.core.errors import (
    ClockError,
    ExpiredError,
    FullDiskError,
    InfrastructureError,
    SigningError,
    TrustError,
    UserError,
)
from kbuild.ship import mok, signing
from kbuild.watch.state import Attempt, Cause, Failure, Journal, Next, Outcome, Step

# The first wait after a failure of a machine, which doubles with each further one up to the second.
FIRST_WAIT, LONGEST_WAIT = timedelta(minutes=15), timedelta(hours=4)
# A mirror that is away for a moment is nobody's concern: so many failures in a row are told.
PATIENCE = 3
# The subjects of the causes of keys that expire, which are told once more in their last days: the
# archive's, and the one for Secure Boot.
KEY, MOK = "key archive", "key secure-boot"
LAST_DAYS = timedelta(days=14)
# The subjects of the causes that belong to no attempt: the round's own error, and its memory.
ROUND, JOURNAL = "round", "journal"
# A failure for a kernel that this round does not keep current matters for so long.
FORGOTTEN = timedelta(days=30)
# So many inputs are remembered as refused, for each step: checkouts that take turns have few.
_REFUSED = 20
# So many interruptions in a row are continued at once; then each waits, for the machine may die
# of the attempt itself.
_INTERRUPTIONS = 2
# Kinds of failures of a machine that only a person ends.
LASTING = (FullDiskError.kind, ClockError.kind)
# Failures that are no verdict on the inputs.
_UNAVAILABLE = {one.exit_status for one in (TrustError, InfrastructureError, SigningError)}
# Steps that cost seconds, and whose inputs are outside of this machine.
_ALWAYS = (Step.CHECK, Step.HEALTH, Step.SIGN)


def wait(tries: int) -> timedelta:
    """Return how long the next attempt waits after so many failures in a row."""
    # More doublings would leave the range of a timedelta.
    return min(FIRST_WAIT * (1 << min(tries - 1, 10)), LONGEST_WAIT)


# Attempts.


def begin(
    journal: Journal,
    step: Step,
    subject: str,
    inputs: str,
    now: datetime,
    *,
    base: str = "",
    release: str = "",
    commit: str = "",
) -> Attempt:
    """Return a new attempt, which counts those before it that failed with the same inputs."""
    last = journal.attempt(step, subject)
    again = last is not None and last.inputs == inputs and last.outcome is not Outcome.DONE
    tries = last.tries + 1 if last is not None and again else 1
    refused = () if last is None else last.refused
    if last is not None and last.outcome is Outcome.REFUSED and not again:
        refused = (*refused, last.inputs)[-_REFUSED:]
    return Attempt(
        step,
        subject,
        inputs,
        began=now.isoformat(),
        base=base,
        release=release,
        commit=commit,
        tries=tries,
        good_since=last.good_since if last else "",
        refused=refused,
    )


def end(attempt: Attempt, now: datetime, failure: Failure | None) -> Attempt:
    """Return an attempt that has ended, with its outcome and the time of the next one."""
    outcome = Outcome.DONE if failure is None else outcome_of(attempt.step, failure)
    # Keys fail within seconds, disturb nobody, and are mended by a person.
    cheap = attempt.step is Step.SIGN or (failure and failure.status == SigningError.exit_status)
    waits = outcome is Outcome.UNAVAILABLE and not cheap
    later = now + wait(attempt.tries) if waits else None
    return dataclasses.replace(
        attempt,
        ended=now.isoformat(),
        outcome=outcome,
        status=failure.status if failure else 0,
        error=failure,
        not_before=later.isoformat() if later else "",
        tries=attempt.tries if failure else 1,
        refused=attempt.refused if failure else (),
        seconds=(now - datetime.fromisoformat(attempt.began)).total_seconds(),
    )


def outcome_of(step: Step, failure: Failure) -> Outcome:
    """Return the outcome of a failed attempt.

    A failure of the machine, the mirror or the keys is tried again later, and so is a release or a
    judgement that the configuration forbids.  Any other is a verdict on the inputs, which only
    others can change.
    """
    wrong = step in (Step.RELEASE, Step.JUDGE) and failure.status == UserError.exit_status
    if step in (Step.CHECK, Step.SIGN) or wrong or failure.status in _UNAVAILABLE:
        return Outcome.UNAVAILABLE
    return Outcome.REFUSED


def interrupted(journal: Journal, now: datetime) -> Journal:
    """Return the journal of a killed round; no other round runs."""
    attempts = []
    for one in journal.attempts:
        if one.outcome is Outcome.RUNNING:
            extra = one.tries - _INTERRUPTIONS
            later = (now + wait(extra)).isoformat() if extra > 0 else ""
            one = dataclasses.replace(one, outcome=Outcome.INTERRUPTED, not_before=later)
        attempts.append(one)
    return dataclasses.replace(journal, attempts=tuple(attempts))


def obstacle(attempt: Attempt | None, inputs: str, now: datetime) -> str | None:
    """Return why a step is not tried now, after its last attempt; None if it may be."""
    if attempt is None or attempt.outcome is Outcome.DONE:
        return None
    if attempt.inputs != inputs:
        if inputs in attempt.refused:
            return "refused before, and what it depends on is again the same"
        return None
    if attempt.outcome is Outcome.REFUSED:
        if attempt.step in _ALWAYS:
            return None
        return f"refused on {attempt.ended}, and nothing has changed since"
    later = datetime.fromisoformat(attempt.not_before) if attempt.not_before else now
    # A time that is further away was written with a wrong clock.
    if timedelta() < later - now <= LONGEST_WAIT:
        return f"not before {attempt.not_before}, after {attempt.tries} failures"
    return None


# Releases.


@dataclass(frozen=True)
class Wanted:
    """The need to release a version; with ``blocked``, only a person can decide."""

    version: str  # of our packages
    due: bool
    blocked: str = ""  # why not


def wanted(records: Iterable[Record], version: str) -> Wanted:
    """Say if a version of our packages must be released; ``records`` are those of its target."""
    published = [one for one in records if one.published]
    last = max(published, key=lambda one: one.order, default=None)
    if last is None or last.order < Version(version):
        return Wanted(version, True)
    if last.state is State.WITHDRAWN:
        why = f"{last.id} is withdrawn: raise 'revision', or wait for the distro's next version"
        return Wanted(version, False, why)
    return Wanted(version, False)


@dataclass(frozen=True)
class Promotion:
    """The next step of a release that not every server gets yet."""

    record: Record
    percent: int
    since: datetime  # of the release's state
    at: datetime  # the time of the step, if no bad report comes

    @property
    def inputs(self) -> dict[str, str]:
        """Return the inputs of the step: of the release, its percentage and its evidence."""
        return {"percent": f"{self.record.percent} {self.percent}", **self.record.evidence}


def promotions(
    records: Sequence[Record], steps: Sequence[tuple[int, int]], journal: Journal
) -> tuple[Promotion, ...]:
    """Return the next step of each release of a target that waits for one, the newest first.

    ``records`` are those of one target.  A release below a withdrawn one that servers have had
    waits for ever, because apt would not go back to it.
    """
    floor = [one.order for one in contents.reached(records)[:1]]
    floor += [one.order for one in contents.withdrawn(contents.public(records))[:1]]
    found = []
    for one in sorted(records, key=lambda one: one.order, reverse=True):
        if one.state not in (State.STAGED, State.PROMOTED) or one.pruned:
            continue
        following = [step for step in steps if step[0] > one.percent]
        if following and all(one.order > least for least in floor):
            percent, hours = following[0]
            since = datetime.fromisoformat(one.history[-1].when)
            health = journal.attempt(Step.HEALTH, one.id)
            good = (
                datetime.fromisoformat(health.good_since) if health and health.good_since else since
            )
            at = max(since, good) + timedelta(hours=hours)
            found.append(Promotion(one, percent, since, at))
    return tuple(found)


def next_steps(
    records: Sequence[Record], steps: Sequence[tuple[int, int]], journal: Journal
) -> tuple[Next, ...]:
    """Return what comes next for each release of a target that can go to more servers."""
    known = {one.record.id: one for one in promotions(records, steps, journal)}
    able = (one.record.id for one in promotions(records, ((contents.ALL, 0),), journal))
    return tuple(
        Next(id, known[id].percent, known[id].at.isoformat()) if id in known else Next(id, 0)
        for id in able
    )


def good_since(last: Attempt | None, outcome: Outcome, since: datetime, now: datetime) -> str:
    """Return since when no report about a release was bad, after one more; "" if that one is.

    ``last`` is the attempt before it, ``since`` the beginning of the release's state.  A report
    that could not be had changes nothing.
    """
    if outcome is Outcome.REFUSED:
        return ""
    if last is None:
        return since.isoformat()
    return last.good_since or (now.isoformat() if outcome is Outcome.DONE else "")


# Notifications.


def relevant(
    journal: Journal,
    targets: Collection[str],
    due: Mapping[str, bool],
    records: Collection[Record] | None,
    now: datetime,
) -> Journal:
    """Return the journal without attempts that concern nothing any more.

    ``targets`` are the names of the kernels kept current.  ``due`` has those whose mirror was
    asked, and whether they must be released.  ``records`` are those of the archive, or None if
    they are not known.  A round with other targets or another policy has its memory here too.
    """
    known = records if records is not None else ()
    of: dict[str, list[Record]] = {}
    for record in known:
        of.setdefault(f"{record.suite}-{record.target.name}", []).append(record)
    waiting = {
        one.record.id
        for mine in of.values()
        for one in promotions(mine, ((contents.ALL, 0),), journal)
    }

    def concerns(one: Attempt) -> bool:
        if one.step is Step.SIGN:
            return True
        if one.step in (Step.CHECK, Step.RELEASE):
            if one.subject not in targets:
                since = datetime.fromisoformat(one.began)
                return since <= now < since + FORGOTTEN
            # A person may have released it meanwhile.
            over = one.outcome is not Outcome.DONE and not due.get(one.subject, True)
            return one.step is Step.CHECK or not over
        return records is None or one.subject in waiting

    return dataclasses.replace(journal, attempts=tuple(filter(concerns, journal.attempts)))


def causes(
    attempts: Iterable[Attempt], now: datetime, before: Iterable[Cause] = ()
) -> tuple[Cause, ...]:
    """Return the reasons to tell somebody, of the last attempts and the causes ``before`` them.

    Only a success ends a cause: one that lasts stays while the step fails in a way that may pass.
    """
    known = {one.subject: one for one in before if not one.over}
    found = []
    for one in sorted(attempts, key=lambda one: one.key):
        if one.outcome is Outcome.INTERRUPTED and one.tries >= PATIENCE:
            what = f"{one.key} was interrupted again and again"
            found.append(Cause(one.key, what, now.isoformat(), mark=one.outcome.value))
        elif one.error is not None and one.failed and _passing(one):
            found += [known[one.key]] if one.key in known else []
        elif one.error is not None and one.failed:
            # How a machine or mirror fails may change from round to round.
            told = f"{one.inputs} {one.error.what}" if one.outcome is Outcome.REFUSED else ""
            found.append(
                Cause(
                    one.key,
                    one.error.what,
                    now.isoformat(),
                    mark=f"{one.outcome.value} {told}".strip(),
                    error=one.error,
                )
            )
    return tuple(found)


def of_key(expires: datetime | None, now: datetime) -> tuple[Cause, ...]:
    """Return the reason to tell somebody of a key that expires soon."""
    if expires is None or expires - now >= signing.NOTICE:
        return ()
    return _expiring(
        *(KEY, f"the key that signs the archive expires on {expires:%Y-%m-%d}", expires, now),
        expected=f"a key that is valid for {signing.NOTICE.days} days or more, because servers"
        " must know the next one before that",
        do="./inv keys.rotate; with sign_command, make the new key where that command signs",
    )


def of_mok(expires: datetime | None, error: Failure | None, now: datetime) -> tuple[Cause, ...]:
    """Return the reason to tell somebody of the key for Secure Boot: its end, or its error."""
    if error is not None:
        return (Cause(MOK, error.what, now.isoformat(), mark=error.what, error=error),)
    if expires is None or expires - now >= mok.NOTICE:
        return ()
    return _expiring(
        *(MOK, f"the certificate for Secure Boot expires on {expires:%Y-%m-%d}", expires, now),
        expected=f"one that is valid for {mok.NOTICE.days} days or more, because each server must"
        " enroll the next one at its console before that",
        do="change the key as docs/howto/secure-boot.md says; without it, releases end on that day",
    )


def _expiring(
    subject: str, what: str, expires: datetime, now: datetime, *, expected: str, do: str
) -> tuple[Cause, ...]:
    failure = Failure(SigningError.kind, what, 0, expected=expected, do=do)
    mark = "last days" if expires - now < LAST_DAYS else ""
    return (Cause(subject, what, now.isoformat(), mark=mark, error=failure),)


def of_round(error: Failure | None, now: datetime) -> tuple[Cause, ...]:
    """Return the reason to tell somebody of an error of the round itself."""
    if error is None:
        return ()
    return (Cause(ROUND, error.what, now.isoformat(), mark=error.kind, error=error),)


def of_journal(damaged: Path, now: datetime) -> tuple[Cause, ...]:
    """Return the reason to tell somebody of a journal that was damaged; a person removes it."""
    failure = Failure(
        kind=TrustError.kind,
        what="the journal was damaged, so the rounds began a new one",
        status=0,
        expected="the last attempts and causes: what had failed may be tried and told again",
        found=str(damaged),
        do="find out what damaged it, such as a failing disk, and remove it",
    )
    return (Cause(JOURNAL, failure.what, now.isoformat(), error=failure),)


def _passing(attempt: Attempt) -> bool:
    assert attempt.error is not None
    status, kind = attempt.error.status, attempt.error.kind
    machine = status == InfrastructureError.exit_status and kind not in LASTING
    return (machine or kind == ExpiredError.kind) and attempt.tries < PATIENCE


def compare(before: Iterable[Cause], now: Iterable[Cause], when: datetime) -> tuple[Cause, ...]:
    """Return the causes to remember: known ones with who knows of them, new ones, and ended ones.

    A channel that was told of one cause is told of the end of the next one for the same subject,
    even if it was not told of that one.  An ended cause that concerns no channel is forgotten.
    """
    known = {one.subject: one for one in before}
    found = {}
    for one in now:
        old = known.get(one.subject)
        if old is not None and old.mark == one.mark and not old.over:
            one = dataclasses.replace(old, what=one.what, error=one.error)
        elif old is not None:
            one = dataclasses.replace(one, alarmed=old.alarmed)
        found[one.subject] = one
    for one in known.values():
        if one.subject not in found and one.alarmed:
            if not one.over:
                one = dataclasses.replace(one, over=when.isoformat(), told=(), untold={})
            found[one.subject] = one
    return tuple(found[subject] for subject in sorted(found))
