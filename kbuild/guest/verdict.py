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
    """The outcome, and each missing piece of evidence, the decisive one first."""

    outcome: Outcome
    reasons: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True if no evidence is missing."""
        return self.outcome is Outcome.PASSED

    def __str__(self) -> str:
        return "\n".join([self.outcome.label, *(f"  - {reason}" for reason in self.reasons)])


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The evidence of one guest.  The defaults are the worst, so that unset evidence is missing."""

    hello: bool = False  # the agent spoke on its own channel
    banner: bool = False  # the console has the kernel's first line; if restored, a mark after it
    answered: bool = False  # every request was answered in time
    garbled: str = ""  # the description of a frame that our agent never sends
    flooded: bool = False  # the console is over its limit
    unchecked: str = ""  # the agent's reason for not making the checks at the end
    reports: tuple[Report, ...] = ()  # the console's reports
    checkers: frozenset[str] = frozenset()  # those of lockdep, kmemleak, kcsan that must be alive
    # The state of detectors at the end; one that is missing or unknown has no entry.
    alive: Mapping[str, bool] = field(default_factory=dict)
    leaks: tuple[Report, ...] = ()  # those in kmemleak's list at the end
    farewell: int | None = None  # the agent's errno from making the disk read-only; 0 is good
    power_off_event: bool = False  # QEMU reported that the guest itself powered off
    qemu_status: int | None = None  # negative for a signal; None while it runs
    ended_by_us: bool = False  # QEMU had to be stopped
    taint: int | None = None  # /proc/sys/kernel/tainted, from the last result frame
    allowed_taint: int = 0  # mask of the bits that may be set
    status: int | None = None  # of the judged command; 0 when only the guest is judged
    faults: tuple[str, ...] = ()  # what else was wrong in the guest: a service that failed


def judge(seen: Evidence) -> Verdict:
    """Return the verdict: PASSED if no evidence is missing, else the first missing piece decides.

    The kernel's reports come first, in the order of their appearance.  A missing power-off or a
    taint after a report is its consequence.
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
        "the kernel wrote nothing to the console since the start, so its silence proves nothing",
    )
    require(
        not seen.ended_by_us,
        Outcome.HUNG,
        f"the guest {'did not answer' if seen.hello else 'never said hello'} or did not end in"
        " time, and QEMU was stopped",
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
    require(seen.answered, Outcome.NO_POWER_OFF, "a request got no answer")
    require(
        not seen.unchecked, Outcome.BLIND, f"the checks at the end were not made: {seen.unchecked}"
    )
    for checker in sorted(seen.checkers | set(seen.alive)):
        require(
            checker in seen.alive,
            Outcome.BLIND,
            f"this kernel must have {checker}, which was not found at the end",
        )
        require(
            seen.alive.get(checker, True),
            Outcome.BLIND,
            f"{checker} was off at the end, so its silence proves nothing",
        )
    require(seen.taint is not None, Outcome.TAINTED, "the taint at the end is unknown")
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
        "the command's status is unknown"
        if seen.status is None
        else f"the command ended with {describe_status(seen.status)}",
    )
    missing += [(Outcome.FAILED, fault) for fault in seen.faults]
    if not missing:
        return Verdict(Outcome.PASSED)
    return Verdict(missing[0][0], tuple(reason for _, reason in missing))
