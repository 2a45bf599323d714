"""The kill matrix: which detector caught which mutant, as a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from kbuild.core import suites
from kbuild.core.model import Target
from kbuild.lab.mutants import CONTROL, Mutant
from kbuild.lab.mutation import Fate, Trial, written

# In the repository: the kill matrix of one kernel, PAGE_OF's, as a page.
PAGE = Path("docs/results/kill-matrix.md")
PAGE_OF = Target(suites.USUAL_SUITE, "lab", "debug")


def matrix(trials: Sequence[Trial]) -> str:
    """Render trials as a Markdown table: mutant, backend, runs, and seconds by detector.

    Of several runs the slowest is shown; what the mutant's header names is in bold.
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
        good = Fate.SURVIVED if name == CONTROL else Fate.KILLED
        count = sum(one.fate == good.value for one in runs)
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
    """Return the first detector of each of those that had to report in a run and did not."""
    return {names[0] for one in runs for names in one.expected if not one.found.keys() & {*names}}


def page(trials: Sequence[Trial], mutants: Sequence[Mutant], *, conditions: str) -> str:
    """Render the page of docs/: what each mutant is, how it was killed, and which was not tried."""
    untried = sorted({CONTROL, *(one.name for one in mutants)} - {one.mutant for one in trials})
    lines = [
        "# The kill matrix",
        "",
        "Written by `./inv lab.mutants`; see [the lab](../reference/lab.md#labmutants).",
        "",
        conditions,
        "",
        "The last run of each. Seconds from the beginning of the quick suite, in a guest just",
        "restored, to the first report of each detector; of several runs the slowest. In bold:",
        "those that the mutant's header names. A run ends when they have reported, so that others",
        "may not have had their turn.",
        "",
        matrix(trials),
        *([f"**Not tried:** {', '.join(untried)}.", ""] if untried else []),
        "## What each of them is",
        "",
    ]
    for one in mutants:
        lines += [
            f"- **{one.name}** ({', '.join(one.backends)}): {one.bug} *{one.why}* To be found by:"
            f" {written(one.detectors)}."
        ]
    return "\n".join(lines) + "\n"
