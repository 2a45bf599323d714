"""Say in words what a round's status means: the state of each kernel, and what needs a person.

The page and the metrics share these answers.  All are pure functions of the status, so the end of
the round is "now".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from kbuild.archive.contents import ALL
from kbuild.archive.release import State
from kbuild.core.errors import InfrastructureError, TrustError
from kbuild.core.model import Target
from kbuild.watch.deciding import JOURNAL, KEY, LASTING, MOK, ROUND
from kbuild.watch.state import Against, Attempt, Failure, Listed, Ours, Outcome, Status, Step

# A round must end in this time after the one before, else nobody keeps the kernels current.
VALID = timedelta(hours=24)
# A machine or mirror that failed for so long does not come back by itself.
PATIENCE = timedelta(hours=24)
# The watch signs again when less than 10 days are left; with less than this, it did not.
SIGNED = timedelta(days=5)

_PASSING = (TrustError.exit_status, InfrastructureError.exit_status)

_NAMES = {
    KEY: "the key of the archive",
    MOK: "the key for Secure Boot",
    ROUND: "the round",
    JOURNAL: "the journal",
}
_DOING = {
    Step.CHECK: "asking Debian's archive",
    Step.RELEASE: "building, testing and judging a release",
    Step.JUDGE: "judging a release again",
    Step.HEALTH: "asking about the servers that have it",
    Step.PROMOTE: "promoting it",
    Step.SIGN: "signing the indexes",
}


class Condition(StrEnum):
    """How far servers are behind the distro's kernel, and what is being done about it."""

    CURRENT = "current"
    ROLLING = "rolling out"  # some servers get the newest version
    STAGED = "in staging"  # the newest version waits there
    WORKING = "being built"
    DUE = "update due"  # the next round builds it
    BLOCKED = "blocked"  # a person must help
    WITHDRAWN = "withdrawn"  # the newest version, by a person: the next one is released
    UNKNOWN = "not known"  # the mirror could not be asked


# A list of kernels begins with those that a reader looks for.
_URGENT = (
    *(Condition.BLOCKED, Condition.WITHDRAWN, Condition.UNKNOWN, Condition.DUE),
    *(Condition.WORKING, Condition.STAGED, Condition.ROLLING, Condition.CURRENT),
)


class Tone(StrEnum):
    """The action that the headline asks of its reader."""

    GOOD = "good"  # nothing
    BUSY = "busy"  # nothing: the pipeline is at work
    UNSURE = "unsure"  # to come back: something is tried again, or waits for a decision
    BAD = "bad"  # to act


@dataclass(frozen=True)
class Problem:
    """Something that went wrong and is not over."""

    key: str  # that of the attempt: "release bookworm-lab"
    subject: str  # what it is about: a target, a release, or the archive
    doing: str  # while it happened
    what: str  # one sentence
    since: str
    person: bool  # a person must help; else it is tried again by itself
    target: Target | None = None  # None for the whole archive
    error: Failure | None = None
    attempt: Attempt | None = None
    untold: Mapping[str, str] = field(default_factory=dict)  # channel -> why nobody was told


@dataclass(frozen=True)
class Kernel:
    """One target against the distro, with its state in a word."""

    against: Against
    condition: Condition
    note: str  # one sentence; empty if the condition says it all
    waits: bool = False  # for a person, who gives it to more servers


@dataclass(frozen=True)
class Summary:
    """The answers for one status."""

    headline: str
    tone: Tone
    kernels: tuple[Kernel, ...]  # those that are not current first
    problems: tuple[Problem, ...]  # those for a person first
    until: str  # the status is older than it should be after this time

    @property
    def persons(self) -> tuple[Problem, ...]:
        """Return the problems that a person must solve."""
        return tuple(one for one in self.problems if one.person)

    @property
    def waiting(self) -> tuple[Kernel, ...]:
        """Return the kernels that a person may give to more servers."""
        return tuple(one for one in self.kernels if one.waits)

    @property
    def retried(self) -> tuple[Problem, ...]:
        """Return the problems that the next rounds try to solve."""
        return tuple(one for one in self.problems if not one.person)


def summarize(status: Status) -> Summary:
    """Answer every question about a status."""
    now = moment(written(status))
    problems = sorted(_problems(status, now), key=lambda one: not one.person)
    found = (_kernel(status, one, problems, now) for one in status.targets)
    kernels = tuple(sorted(found, key=lambda one: _URGENT.index(one.condition)))
    headline, tone = _headline(kernels, problems)
    return Summary(headline, tone, kernels, tuple(problems), (now + VALID).isoformat())


def written(status: Status) -> str:
    """Return the time that a status describes: the end of its round, or its begin without one."""
    return status.ended or status.began


def moment(text: str) -> datetime:
    """Return a time of a status; an aware one in UTC."""
    return datetime.fromisoformat(text).astimezone(UTC)


def when(text: str) -> str:
    """Return a time of a status for people."""
    return f"{moment(text):%Y-%m-%d %H:%M} UTC" if text else "never"


def span(seconds: float) -> str:
    """Return a length of time in the two largest units that it has: 3 days 4 h, 2 h 05 min."""
    minutes = round(abs(seconds) / 60)
    hours, days = minutes // 60, minutes // 1440
    if days:
        rest = hours % 24
        return f"{days} day{'s' if days > 1 else ''}" + (f" {rest} h" if rest else "")
    if hours:
        return f"{hours} h" + (f" {minutes % 60:02d} min" if minutes % 60 else "")
    return f"{minutes} min"


def targets(status: Status) -> Mapping[str, Target]:
    """Return the target of each subject that an attempt may have: targets' and releases' names."""
    found = {f"{one.suite}-{one.target.name}": one.target for one in status.targets}
    for listed in status.releases:
        found[listed.id] = Target(listed.suite, listed.flavour, listed.variant)
    return found


def judged(status: Status) -> tuple[Listed, ...]:
    """Return the newest release of each target that the gate has judged."""
    newest: dict[tuple[str, str, str], Listed] = {}
    for one in status.releases:
        if one.gate:
            newest.setdefault((one.suite, one.flavour, one.variant), one)
    return tuple(newest.values())


def _problems(status: Status, now: datetime) -> Iterator[Problem]:
    of = targets(status)
    attempts = {one.key: one for one in status.attempts}
    causes = {one.subject: one for one in status.causes if not one.over}
    seen = set()
    if status.error is not None and ROUND not in causes:
        yield Problem(
            *(ROUND, "the round", "", status.error.what, written(status), True),
            error=status.error,
        )
    for key, cause in causes.items():
        seen.add(key)
        attempt = attempts.get(key)
        subject = key.partition(" ")[2]
        error = cause.error or (attempt.error if attempt else None)
        yield Problem(
            key,
            *_about(key),
            cause.what,
            cause.since,
            _needs_person(error, attempt, cause.since, now),
            of.get(subject),
            error,
            attempt,
            cause.untold,
        )
    for key, attempt in attempts.items():
        if attempt.failed and key not in seen and _matters(status, attempt, of):
            seen.add(key)
            what = attempt.error.what if attempt.error else f"it ended with status {attempt.status}"
            since = attempt.ended or attempt.began
            person = _needs_person(attempt.error, attempt, since, now)
            target = of.get(attempt.subject)
            yield Problem(key, *_about(key), what, since, person, target, attempt.error, attempt)
    for one in status.targets:
        key = f"{Step.CHECK} {one.suite}-{one.target.name}"
        if one.error is not None and key not in seen:
            person = _needs_person(one.error, None, one.asked, now)
            what = one.error.what
            yield Problem(key, *_about(key), what, one.asked, person, one.target, one.error)
    yield from _signatures(status, now)


def _matters(status: Status, attempt: Attempt, of: Mapping[str, Target]) -> bool:
    """Return whether a failure is about something that servers still wait for."""
    if attempt.step is Step.SIGN:
        return True
    if attempt.step in (Step.JUDGE, Step.HEALTH, Step.PROMOTE):
        waiting = (one for target in status.targets for one in (target.staged, target.promoted))
        return any(one is not None and one.id == attempt.subject for one in waiting)
    target = of.get(attempt.subject)
    against = next((one for one in status.targets if one.target == target), None)
    if against is None or target is None:
        return False
    if attempt.step is Step.CHECK:
        return against.error is not None
    return against.due and attempt.base in ("", against.newest)


def _needs_person(
    error: Failure | None, attempt: Attempt | None, since: str, now: datetime
) -> bool:
    """Return whether a problem stays until a person acts.

    A network, a mirror and a machine come back by themselves, but not after a day.
    """
    if now - moment(since) >= PATIENCE or (attempt and attempt.outcome is Outcome.REFUSED):
        return True
    if attempt is not None and attempt.outcome is Outcome.INTERRUPTED:
        # A round that is cut off again and again.
        return True
    return error is None or error.status not in _PASSING or error.kind in LASTING


def _signatures(status: Status, now: datetime) -> Iterator[Problem]:
    for name, until in sorted(status.valid_until.items()):
        left = moment(until) - now
        if left >= SIGNED:
            continue
        gone = left <= timedelta()
        what = (
            "servers refuse its indexes, because the signature has expired"
            if gone
            else "the signature ends soon, and no round has signed it again"
        )
        error = Failure(
            kind="signing",
            what=what,
            status=0,
            expected="a signature that is valid for 10 days or more",
            found=f"valid until {when(until)}",
            do="run './inv sign-archive', and find out why the rounds do not",
        )
        since = until if gone else written(status)
        yield Problem(f"{Step.SIGN} {name}", name, "", what, since, True, error=error)


def _about(key: str) -> tuple[str, str]:
    """Return the subject of an attempt's key, and what was being done."""
    if key in _NAMES:
        return _NAMES[key], ""
    step, _, subject = key.partition(" ")
    return subject or key, _DOING[Step(step)] if step in set(Step) else ""


def _kernel(status: Status, against: Against, problems: Sequence[Problem], now: datetime) -> Kernel:
    mine = [one for one in problems if one.target == against.target]
    running = [
        one
        for one in status.attempts
        if one.outcome is Outcome.RUNNING
        and one.step is Step.RELEASE
        and one.subject == f"{against.suite}-{against.target.name}"
    ]
    newest = against.newest
    promoted, staged = against.promoted, against.staged
    if any(one.person for one in mine):
        return Kernel(against, Condition.BLOCKED, "needs a person: see above")
    if against.error is not None or not newest:
        last = f"this was so on {when(against.asked)}" if newest else "it is asked again"
        return Kernel(against, Condition.UNKNOWN, last)
    if promoted is not None and not against.behind:
        if promoted.percent < ALL:
            note, waits = _promotion(status, promoted, now)
            note = f"{promoted.percent} % of the servers get it; {note}"
            return Kernel(against, Condition.ROLLING, note, waits)
        return Kernel(against, Condition.CURRENT, "")
    if staged is not None and not against.due:
        return Kernel(against, Condition.STAGED, *_promotion(status, staged, now))
    if running:
        return Kernel(against, Condition.WORKING, f"since {when(running[0].began)}")
    if any(_withdrawn(one, against) for one in status.releases):
        note = "waits for Debian's next version, or for a higher revision"
        return Kernel(against, Condition.WITHDRAWN, note)
    if mine:
        again = next((one.attempt.not_before for one in mine if one.attempt), "")
        return Kernel(against, Condition.DUE, f"tried again after {when(again)}" if again else "")
    return Kernel(against, Condition.DUE, "the next round builds it")


def _promotion(status: Status, ours: Ours, now: datetime) -> tuple[str, bool]:
    """Return how a release comes to more servers, and whether it waits for a person."""
    for one in status.promotions:
        if one.id == ours.id and one.at:
            when_ = f"not before {when(one.at)}" if moment(one.at) > now else "in the next round"
            return f"goes to {one.percent} % {when_}", False
        if one.id == ours.id:
            return f"waits for a person: ./inv promote {ours.id}", True
    return "stays there, because servers may have a newer release", False


def _withdrawn(listed: Listed, against: Against) -> bool:
    same = (listed.suite, listed.flavour, listed.variant) == (
        *(against.suite, against.flavour, against.variant),
    )
    return same and listed.base == against.newest and listed.state == State.WITHDRAWN


def _headline(kernels: Sequence[Kernel], problems: Sequence[Problem]) -> tuple[str, Tone]:
    """Return the page's first line: that all is well, or what is not."""
    every = len(kernels)
    persons = sum(one.person for one in problems)
    if persons:
        return ("One thing needs", f"{persons} things need")[persons > 1] + " a person", Tone.BAD
    if not kernels:
        return "No kernel is watched", Tone.UNSURE
    counts = {one: sum(kernel.condition is one for kernel in kernels) for one in Condition}
    if counts[Condition.UNKNOWN]:
        unknown = counts[Condition.UNKNOWN]
        return f"{unknown} of {_kernels(every)} could not be checked", Tone.UNSURE
    tone = Tone.UNSURE if problems else Tone.GOOD
    if counts[Condition.CURRENT] == every:
        return ("The kernel is current" if every == 1 else f"All {every} kernels are current"), tone
    if gone := counts[Condition.WITHDRAWN]:
        has = "has" if gone == 1 else "have"
        return f"{gone} of {_kernels(every)} {has} only a withdrawn update", Tone.UNSURE
    if waits := sum(kernel.waits for kernel in kernels):
        verb = "waits" if waits == 1 else "wait"
        return f"{waits} of {_kernels(every)} {verb} for a person's promotion", Tone.UNSURE
    if not any(kernel.against.promoted for kernel in kernels):
        return "No kernel is published yet", tone if problems else Tone.BUSY
    waiting = every - counts[Condition.CURRENT]
    verb = "has" if waiting == 1 else "have"
    return (
        f"{waiting} of {_kernels(every)} {verb} an update on the way",
        tone if problems else Tone.BUSY,
    )


def _kernels(number: int) -> str:
    return "1 kernel" if number == 1 else f"{number} kernels"
