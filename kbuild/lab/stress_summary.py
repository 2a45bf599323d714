"""The summary of a stress run, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import progress
from kbuild.core.errors import KbuildError
from kbuild.guest.outcome import Outcome, taint_letters
from kbuild.guest.verdict import Verdict
from kbuild.lab.checks import Check, Figures, System
from kbuild.lab.workloads import WORKLOADS


@dataclass(frozen=True)
class Summary:
    """A whole run: the work that was done, and the results of the checks."""

    release: str
    backend: str
    seed: int
    seconds: float
    figures: Figures
    operations: Mapping[str, int]  # by workload; 0 for one that was not run
    oom_kills: int
    unloadings: int
    samples: int  # listings that the host parsed
    worst_answer_s: float
    checks: tuple[Check, ...]
    verdict: Verdict
    console: Path

    @property
    def outcome(self) -> Outcome:
        """Passed, or the first failure; a verdict about the kernel comes before the checks."""
        if not self.verdict.passed:
            return self.verdict.outcome
        bad = (check.outcome for check in self.checks if check.outcome and not check.passed)
        return next(bad, Outcome.PASSED)


class StressFailedError(KbuildError):
    """The run failed."""

    kind = "stress"

    def __init__(self, outcome: Outcome, what: str, summary: Summary, reports: str = "") -> None:
        self.summary = summary
        self.exit_status = outcome.exit_status
        found = "\n\n".join(part for part in (reports, render(summary)) if part)
        super().__init__(what, found=found, log=summary.console)


def describe(now: Figures, before: Figures, seconds: float, system: System) -> str:
    """Return one line with the progress of the readers and the state of the system."""
    rate = 1 / max(seconds, 0.001)
    letters = taint_letters(system.taint) or "none"
    return (
        f"{(now.reads - before.reads) * rate:.0f} reads/s,"
        f" {(now.listings - before.listings) * rate:.1f} listings/s,"
        f" {(now.records - before.records) * rate:.0f} records/s,"
        f" worst read {now.worst_ns / 1e6:.0f} ms,"
        f" slab {system.slab_kib / 1024:.1f} MiB,"
        f" other pages {system.unaccounted_kib // 4},"
        f" {system.open_files} files, {system.tasks} tasks, taint {letters}"
    )


def render(summary: Summary) -> str:
    """Render a summary."""
    figures = summary.figures
    done = [
        f"{name} {number}" if number else f"{name} not completed"
        for name, number in summary.operations.items()
    ]
    never = [name for name in WORKLOADS if name not in summary.operations]
    lines = [
        f"{summary.release}, backend {summary.backend}, seed {summary.seed},"
        f" {progress.duration(summary.seconds)}",
        f"read      {figures.reads} reads, {figures.listings} listings, {figures.records} records,"
        f" {progress.size(figures.bytes)}; worst read {figures.worst_ns / 1e6:.0f} ms",
        f"          {summary.samples} listings through the strict parser,"
        f" {figures.killed} readers killed",
        f"reloads   {summary.unloadings}; {figures.cut} reads cut off,"
        f" {figures.absent} opens while it was unloaded",
        f"loads     {', '.join(done)}; {summary.oom_kills} OOM kills",
        f"not run   {', '.join(never) or 'none'}",
        f"answers   within {summary.worst_answer_s:.1f} s all the time",
    ]
    for check in summary.checks:
        said = check.outcome.label if check.outcome else "not checked"
        lines.append(f"{check.name:<10}{said}: {check.found}")
    lines.append(f"guest     {summary.verdict}")
    return "\n".join(lines)
