"""Render the kill matrix: the detectors that reported each mutant, as a page of docs/."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from kbuild.core import fs, suites
from kbuild.core.errors import UserError
from kbuild.core.model import Settings, Target
from kbuild.lab import kept_trials, mutants
from kbuild.lab.mutants import CONTROL, Mutant, written
from kbuild.lab.mutation import Trial

# In the repository: the page with the kill matrix of one kernel, that of PAGE_OF.
PAGE = Path("docs/results/kill-matrix.md")
PAGE_OF = Target(suites.USUAL_SUITE, "lab", "debug")


def matrix(trials: Sequence[Trial]) -> str:
    """Render trials as a Markdown table: mutant, backend, runs, and seconds by detector.

    The slowest of several trials is shown.  The detectors of the mutant's header are in bold.
    """
    if not trials:
        return "No mutant has been tried.\n"
    groups: dict[tuple[str, str], list[Trial]] = {}
    for one in trials:
        groups.setdefault((one.mutant, one.backend), []).append(one)
    columns = sorted({name for one in trials for name in one.found} | _silent(trials))
    lines = [
        "| mutant | backend | killed | " + " | ".join(columns) + " |",
        "| --- | --- | --- |" + " --- |" * len(columns),
    ]
    for (name, backend), runs in sorted(groups.items()):
        count = sum(one.passed for one in runs)
        word = "passed " if name == CONTROL else ""
        cells = []
        for column in columns:
            times = [one.found[column] for one in runs if column in one.found]
            text = f"{max(times):.1f}" if times else ""
            if times and any(column in names for names in runs[0].expected):
                text = f"**{text}**"
            cells.append(text or ("**silent**" if column in _silent(runs) else ""))
        lines.append(
            f"| {name} | {backend} | {word}{count}/{len(runs)} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines) + "\n"


def _silent(runs: Iterable[Trial]) -> set[str]:
    """Return the first name of each set of expected detectors that did not report in a run."""
    return {names[0] for one in runs for names in one.expected if not one.found.keys() & {*names}}


def write_page(settings: Settings, target: Target) -> Path:
    """Write PAGE from the last trials of every mutant on a target's kernel, and return its path.

    No mutant is tried: './inv lab.mutants' and './inv test' keep their trials.  Raises UserError
    if the page is about another kernel, or if a mutant has not been tried.
    """
    if (target.suite, target.name) != (PAGE_OF.suite, PAGE_OF.name):
        raise UserError(
            f"{PAGE} is not about this kernel",
            expected=f"{PAGE_OF.suite}'s {PAGE_OF.name}",
            found=f"{target.suite}'s {target.name}",
        )
    every = mutants.read_all(settings.project / mutants.PATCHES)
    names = {CONTROL, *(one.name for one in every)}
    kept = kept_trials.path(settings.build, target)
    trials = [one for one in kept_trials.load(kept) if one.mutant in names]
    untried = sorted(names - {one.mutant for one in trials})
    if untried:
        raise UserError(
            f"{PAGE} needs a trial of every mutant",
            expected=f"{len(names)} mutants in {kept}, the control included",
            found=f"no trial of {', '.join(untried)}",
            hint="run './inv lab.mutants' first",
        )
    day = datetime.datetime.fromtimestamp(kept.stat().st_mtime, datetime.UTC)
    conditions = (
        f"Seen on {day:%-d %B %Y} on {trials[-1].release}, the variant {target.variant}, with"
        f" {len(os.sched_getaffinity(0))} processors."
    )
    path = settings.project / PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    fs.write_atomic(path, page(trials, every, conditions=conditions))
    return path


def page(trials: Sequence[Trial], every: Sequence[Mutant], *, conditions: str) -> str:
    """Render the page: the matrix, and the description of each mutant."""
    lines = [
        "# The kill matrix",
        "",
        "Written by `./inv lab.mutants --page`; see [the lab](../reference/lab.md#labmutants).",
        "",
        conditions,
        "",
        "The table shows the last trials of each mutant.",
        "The numbers are seconds from the beginning of the quick suite, in a guest that has just",
        "been restored, to the first report of each detector; of several trials, the slowest.",
        "The detectors that the mutant's header names are in bold.",
        "A trial ends when they have reported, so other detectors may have had no turn.",
        "",
        matrix(trials),
        "## The mutants",
        "",
    ]
    lines += [
        f"- **{one.name}** ({', '.join(one.backends)}): {one.bug} *{one.why}* To be reported by:"
        f" {written(one.detectors)}."
        for one in every
    ]
    return "\n".join(lines) + "\n"
