"""How a guest's life can end, and the verdict: a conjunction of positive evidence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """What became of a guest; each has an exit status of its own."""

    PASSED = ("passed", 0)
    FAILED = ("failed", 20)  # a command ended with a status other than 0
    CRASHED = ("crashed", 21)  # oops, BUG or panic
    REPORTED = ("reported", 22)  # KASAN, lockdep, kmemleak...: a detector spoke
    WARNED = ("warned", 23)  # WARN, or a refcount warning
    HUNG = ("hung", 24)  # no answer, soft lockup, hung task, RCU stall
    KILLED = ("killed", 25)  # QEMU was ended from outside
    NO_OUTPUT = ("no output", 26)  # neither a hello nor a kernel's first line
    NO_POWER_OFF = ("no power-off", 27)  # gone, but not in order
    TAINTED = ("tainted", 28)  # a taint bit that was not expected
    LEAKED = ("leaked", 29)  # something was not given back

    def __init__(self, label: str, exit_status: int) -> None:
        self.label = label
        self.exit_status = exit_status


@dataclass(frozen=True)
class Verdict:
    """The outcome, and every piece of evidence that is missing, the decisive one first."""

    outcome: Outcome
    reasons: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every piece of evidence was there."""
        return self.outcome is Outcome.PASSED
