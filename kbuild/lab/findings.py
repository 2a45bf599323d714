"""The result of the quick suite: the names of its detectors, its findings and its steps."""

from __future__ import annotations

from dataclasses import dataclass

from kbuild.guest import triage
from kbuild.lab import traces

# Detectors of the suite itself.  The kernel's detectors have the names in triage.PATTERNS.
LEAKS = (
    "leak of struct file",
    "leak of struct files_struct",
    "leak of struct task_struct",
    "leak of struct pid",
    "leak of struct pid_namespace",
    "leak of struct seq_file",
    "leak of kmalloc-cg",
    "leak of kmalloc",
    "leak of open files",
)
OWN_DETECTORS = (
    "load",  # insmod failed
    "unload",  # rmmod failed
    "reading",  # a read failed, or a reader did not end
    "grammar",  # the text does not follow the format
    "oracle",  # the text differs from /proc and kcmp(2)
    "ways of reading",  # small reads give other bytes than large ones
    "invariants",  # under churn, the text shows a state that never existed
    "ids",  # ids repeat after a reload, or an id is used again
    "parent",  # a process is shown with a parent that it never had
    *(f"trace {case}" for case in traces.ROUNDS),  # a reader was noticed, or held up
    "privacy",  # a container could open the file
    "many",  # a long list is not complete
    "kmemleak",
    *LEAKS,
    "lockdep off",  # lockdep has turned itself off, so its silence means nothing
    "kcsan off",  # KCSAN is off
    "taint",
    "hang",  # a step exceeded its deadline
    "guest lost",  # the guest is dead
    "workload",  # a program of ours failed; the module is not known to be at fault
)
DETECTORS = frozenset(OWN_DETECTORS) | {pattern.name for pattern in triage.PATTERNS}


@dataclass(frozen=True)
class Finding:
    """One fault that a detector reported."""

    detector: str  # one of DETECTORS
    message: str
    at_s: float  # seconds on the host since the suite began


@dataclass(frozen=True)
class Step:
    """A part of the suite that ended, and what it saw."""

    name: str
    at_s: float  # its beginning, in seconds on the host since the suite began
    seconds: float
    seen: str


@dataclass(frozen=True)
class QuickResult:
    """The findings of a run; without findings, ``passed`` tells that every step was done."""

    findings: tuple[Finding, ...]
    steps: tuple[Step, ...]
    reads: int  # whole listings that were read and checked
    records: int  # processes in them
    armed: frozenset[str]  # of "kmemleak", "slab counts" and detectors.SAYS_SO, those asked
    complete: bool  # no step was left out
    seconds: float

    @property
    def passed(self) -> bool:
        """Tell whether every step was done without a finding."""
        return self.complete and not self.findings
