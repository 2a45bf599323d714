"""The verdict on a guest: a conjunction of positive evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kbuild.core.progress import size
from kbuild.core.run import describe_status
from kbuild.guest.console import LIMIT
from kbuild.guest.outcome import Outcome, taint_letters
from kbuild.guest.triage import Report


@dataclass(frozen=True)
class Verdict:
    """The outcome, and every piece of evidence that is missing, the decisive one first."""

    outcome: Outcome
    reasons: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every piece of evidence was there."""
        return self.outcome is Outcome.PASSED

    def __str__(self) -> str:
        return "\n".join([self.outcome.label, *(f"  - {reason}" for reason in self.reasons)])


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was seen of one guest.  The defaults are the worst: what is not shown is missing."""

    hello: bool = False  # the agent spoke on its own channel
    banner: bool = False  # the kernel's first line is on the console; if restored, a mark since
    answered: bool = False  # no request was left without an answer in its time
    garbled: str = ""  # a frame that makes no sense, in words
    flooded: bool = False  # the console is over its limit
    unchecked: str = ""  # why the checks at the end were not made, in the agent's words
    reports: tuple[Report, ...] = ()  # what triage found on the console
    checkers: frozenset[str] = frozenset()  # what the kernel must have of lockdep, kmemleak, kcsan
    # whether they were alive at the end; none for one that is not there, or not known
    alive: Mapping[str, bool] = field(default_factory=dict)
    leaks: tuple[Report, ...] = ()  # what kmemleak then listed
    farewell: int | None = None  # the agent's errno when it made the disk read-only; 0 is good
    power_off_event: bool = False  # QEMU says that the guest itself powered off
    qemu_status: int | None = None  # negative for a signal; None while it runs
    ended_by_us: bool = False  # QEMU had to be stopped
    taint: int | None = None  # the last result frame: /proc/sys/kernel/tainted
    allowed_taint: int = 0  # mask of the bits that may be set
    status: int | None = None  # of the command that was judged; 0 when only the guest was


def judge(seen: Evidence) -> Verdict:
    """Give the verdict: PASSED only if nothing is missing; otherwise the first thing decides.

    The kernel's own reports come first, in the order in which they appeared, because what
    follows a report (no power-off, taint) is its consequence.
    """
    missing: list[tuple[Outcome, str]] = [
        (report.outcome, f"console line {report.line}: {report.name}: {report.title}")
        for report in seen.reports
    ]

    def require(condition: bool, outcome: Outcome, reason: str) -> None:
        if not condition:
            missing.append((outcome, reason))

    missing += [(leak.outcome, f"{leak.name}: {leak.title}") for leak in seen.leaks]
    require(not seen.flooded, Outcome.FLOODED, f"the console is over {size(LIMIT)}")
    signalled = seen.qemu_status is not None and seen.qemu_status < 0
    require(
        not signalled or seen.ended_by_us,
        Outcome.KILLED,
        f"QEMU was ended from outside: {describe_status(seen.qemu_status or 0)}",
    )
    require(not seen.garbled, Outcome.GARBLED, f"the agent sent {seen.garbled}")
    require(
        seen.banner,
        Outcome.NO_OUTPUT,
        "no kernel has spoken on the console since it began, so its silence proves nothing",
    )
    require(
        not seen.ended_by_us,
        Outcome.HUNG,
        f"the guest {'did not answer' if seen.hello else 'never said hello'} or did not end in"
        " its time, and QEMU was stopped",
    )
    require(seen.hello, Outcome.NO_OUTPUT, "the agent never said hello")
    require(
        seen.qemu_status is not None and seen.qemu_status == 0,
        Outcome.NO_POWER_OFF,
        "QEMU still runs"
        if seen.qemu_status is None
        else f"QEMU ended with {describe_status(seen.qemu_status)}",
    )
    require(seen.farewell is not None, Outcome.NO_POWER_OFF, "the agent did not say farewell")
    require(
        not seen.farewell,
        Outcome.NO_POWER_OFF,
        f"the disk could not be made read-only at the end: errno {seen.farewell}",
    )
    require(
        seen.power_off_event, Outcome.NO_POWER_OFF, "the guest did not power itself off in order"
    )
    require(seen.answered, Outcome.NO_POWER_OFF, "a request was left without an answer")
    require(
        not seen.unchecked, Outcome.BLIND, f"the check at the end was not made: {seen.unchecked}"
    )
    for checker in sorted(seen.checkers | set(seen.alive)):
        require(
            checker in seen.alive,
            Outcome.BLIND,
            f"this kernel has to have {checker}, which was not seen at the end",
        )
        require(
            seen.alive.get(checker, True),
            Outcome.BLIND,
            f"{checker} was off at the end, so that its silence proves nothing",
        )
    require(seen.taint is not None, Outcome.TAINTED, "the taint at the end is not known")
    extra = (seen.taint or 0) & ~seen.allowed_taint
    require(
        extra == 0,
        Outcome.TAINTED,
        f"the kernel is tainted ({taint_letters(extra)}) beyond"
        f" ({taint_letters(seen.allowed_taint)})",
    )
    require(
        seen.status == 0,
        Outcome.FAILED,
        "no command's status is known"
        if seen.status is None
        else f"the command ended with {describe_status(seen.status)}",
    )
    if not missing:
        return Verdict(Outcome.PASSED)
    return Verdict(missing[0][0], tuple(reason for _, reason in missing))
