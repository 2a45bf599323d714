"""Try one mutant in a guest of the lab, and judge which detectors reported it."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import fs, recipe, stamp
from kbuild.core.model import MODULE
from kbuild.guest import detectors, triage
from kbuild.guest.guest import Guest
from kbuild.lab import (
    counts,
    findings,
    oracle,
    procfile,
    quick,
    readying,
    traces,
    watching,
)
from kbuild.lab.findings import Finding, QuickResult
from kbuild.lab.mutants import CONTROL, REPORT, WINDOW_US, Detectors, Mutant
from kbuild.lab.setup import Lab

# Seconds on the host for one run.  A mutant's header has its own, shorter limit.  The control runs
# all rounds of every case, next to another guest, on a machine that may be loaded.
_DEADLINE_S = 600.0
_DEADLINE_OF_CONTROL_S = 1200.0
# The longest time that a race has taken to show.
_CHURN_OF_CONTROL_S = 12.0
# Findings that tell nothing about the module.
_NO_EVIDENCE = frozenset({"workload"})
# Sources that decide how a trial ends.  The guest programs are part of the snapshot's digest.
_DECIDING = (
    counts,
    detectors,
    findings,
    oracle,
    procfile,
    quick,
    readying,
    traces,
    triage,
    watching,
)


class Fate(enum.Enum):
    """The end of a mutant in one run."""

    KILLED = "killed"
    LATE = "killed too late"
    BY_ANOTHER = "killed by another detector"
    SURVIVED = "survived"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class Case:
    """One run to make: a mutant, or with None the unchanged module (the control), on a backend."""

    mutant: Mutant | None
    backend: str
    number: int = 1  # of the repetition, and the seed of its random choices
    kmemleak: bool = False  # let kmemleak scan at the end, which only the control reaches

    @property
    def subject(self) -> str:
        """The mutant's name, or CONTROL."""
        return CONTROL if self.mutant is None else self.mutant.name

    @property
    def name(self) -> str:
        """A unique name, usable as a file name."""
        return f"{self.subject}-{self.backend}-{self.number}"


@dataclass(frozen=True)
class Trial:
    """The result of one case."""

    mutant: str  # its name, or CONTROL
    backend: str
    release: str
    expected: Detectors
    found: Mapping[str, float]  # detector → seconds until its first report
    fate: str  # value of a Fate
    seconds: float
    number: int = 1  # of the repetition
    inputs: str = ""  # digest of everything that decides the result

    @property
    def passed(self) -> bool:
        """Tell whether the mutant was killed as demanded, or the control had no finding."""
        wanted = Fate.SURVIVED if self.mutant == CONTROL else Fate.KILLED
        return Fate(self.fate) is wanted


def judge(expected: Detectors, within_s: float, result: QuickResult) -> Fate:
    """Return a mutant's fate: one detector of each of ``expected`` must report in ``within_s``.

    The control expects nothing; any finding about it is a false alarm.
    """
    found = first_reports(result.findings)
    if not expected:
        if found:
            return Fate.BY_ANOTHER
        return Fate.SURVIVED if result.complete else Fate.NOT_JUDGED
    if all(found.keys() & {*names} for names in expected):
        first = [min(found[name] for name in names if name in found) for names in expected]
        return Fate.KILLED if max(first) <= within_s else Fate.LATE
    if found.keys() - _NO_EVIDENCE:
        return Fate.BY_ANOTHER
    return Fate.SURVIVED if result.complete else Fate.NOT_JUDGED


def first_reports(found: Iterable[Finding]) -> dict[str, float]:
    """Return the time of each detector's first report."""
    first: dict[str, float] = {}
    for finding in found:
        first.setdefault(finding.detector, round(finding.at_s, 1))
    return first


def unarmed(lab: Lab, case: Case, result: QuickResult) -> frozenset[str]:
    """Return the detectors that a control on the debug variant must have asked, and has not."""
    if case.mutant is not None or lab.target.variant != "debug":
        return frozenset()
    asked = {"slab counts", *lab.spec.checkers} - (set() if case.kmemleak else {"kmemleak"})
    return frozenset(asked - result.armed)


def suite() -> str:
    """Return a digest of the code that decides a trial; for the main thread.

    Python 3.11 cannot parse sources in two threads at once (SystemError).
    """
    sources = [Path(str(module.__file__)) for module in _DECIDING]
    return recipe.digest(*sources, Path(__file__))


def inputs(lab: Lab, case: Case, built: Path, *, suite: str) -> str:
    """Return a digest of everything that decides a trial: guest, module, header and suite."""
    return stamp.digest(
        {
            "guest": lab.snapshot.home.name if lab.snapshot else repr(lab.spec),
            "module": fs.sha256_file(built),
            "mutant": str(case.mutant.deciding) if case.mutant else "",
            "suite": suite,
        }
    )


def run_trial(
    lab: Lab, case: Case, built: Path, guest: Guest, *, workdir: Path, inputs: str
) -> tuple[Trial, QuickResult]:
    """Try a case in a guest that has just been opened, and abandon the guest.

    ``built`` is the module.  ``workdir`` has the guest's console; the kernel's reports, rendered
    by triage, are written there to the file REPORT.  ``inputs`` is the trial's digest.
    """
    mutant = case.mutant
    expected = () if mutant is None else mutant.detectors
    result = quick.run(
        guest,
        lambda: built,
        lab.programs,
        backend=case.backend,
        window_us=WINDOW_US if mutant is None else mutant.window_us,
        deadline_s=_DEADLINE_OF_CONTROL_S if mutant is None else _DEADLINE_S,
        churn_s=_CHURN_OF_CONTROL_S if mutant is None else mutant.churn_s,
        expect=expected,
        many=0 if mutant is None else mutant.many,
        seed=case.number,
        kmemleak=case.kmemleak,
        thorough=mutant is None,
    )
    reports = guest.reports()
    guest.abandon()
    shown = triage.render(
        reports,
        modules={MODULE: built},
        again=f"./inv lab.mutants {lab.target.options('suite', 'version')} -k {case.subject}",
        console=workdir / "console.log",
    )
    fs.write_atomic(workdir / REPORT, shown or "The kernel has reported nothing.\n")
    fate = judge(expected, math.inf if mutant is None else mutant.within_s, result)
    if fate is Fate.SURVIVED and unarmed(lab, case, result):
        fate = Fate.NOT_JUDGED
    trial = Trial(
        mutant=case.subject,
        backend=case.backend,
        release=lab.release,
        expected=expected,
        found=first_reports(result.findings),
        fate=fate.value,
        seconds=round(result.seconds, 1),
        number=case.number,
        inputs=inputs,
    )
    return trial, result
