"""Mutants: our module with one bug each, by which the suite's own worth is measured.

A mutant is a patch on kmod/ with a header that says what the bug is, why somebody would
write it, and which detectors must catch it.  It is killed when all of these have reported
in its time, or one of several where it is chance which comes first; anything else is a hole
in the suite, or a bug that is none.
"""

from __future__ import annotations

import enum
import logging
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from debian.deb822 import Deb822

from kbuild import fs, lab, module, quick, stamp, suites
from kbuild.errors import BuildError, UserError
from kbuild.lab import Lab
from kbuild.model import Target
from kbuild.quick import Finding, QuickResult
from kbuild.run import run
from kbuild.vm import triage

logger = logging.getLogger(__name__)

BACKENDS = ("stock", "export")
# The module as it is, which must pass wherever a mutant is killed.
CONTROL = "unmutated"

# In the repository.
PATCHES = Path("tests/lab/mutants")
# Of one trial, beside its console.log.
REPORT = "report.txt"
# In the repository: the kill matrix of one kernel, PAGE_OF's, as a page.
PAGE = Path("docs/kill-matrix.md")
PAGE_OF = Target(suites.USUAL_SUITE, "lab", "debug")

_REQUIRED = ("Bug", "Why", "Backends", "Detectors", "Within")
_OPTIONAL = ("Window", "Many", "Churn")
# Of the host, for one run; a mutant's own time is part of its header.
_DEADLINE_S = 600.0
# Longer than for a quick look: as long as the races have been seen to take.
_CHURN_OF_CONTROL_S = 12.0
_PATCH_TIMEOUT_S = 60.0
_WINDOW_US = 300


# Of quick.DETECTORS: one of each of these must report.
Detectors = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Mutant:
    """One bug, and what must find it."""

    name: str
    patch: Path
    bug: str
    why: str
    backends: tuple[str, ...]  # on which the bug makes sense
    detectors: Detectors
    within_s: float  # of the host, from the suite's beginning
    window_us: int = _WINDOW_US
    many: int = 0  # processes and descriptors that it takes to see it
    churn_s: float = quick.CHURN_S  # of the host, of churn at most


def read(patch: Path) -> Mutant:
    """Read a mutant's header; raises UserError when it is not complete."""
    text = patch.read_text()
    header, found, _ = text.partition("\n--- ")
    fields = Deb822(header)
    missing = [name for name in _REQUIRED if not fields.get(name)]
    unknown = [name for name in fields if name not in _REQUIRED + _OPTIONAL]
    if missing or unknown or not found:
        raise UserError(
            f"{patch} is not a mutant",
            expected=f"the fields {', '.join(_REQUIRED)}, then a unified diff",
            found=", ".join([f"no {name}" for name in missing] + unknown) or "no diff",
        )
    backends = tuple(fields["Backends"].split())
    detectors = tuple(
        tuple(_line(name) for name in one.split(" or "))
        for one in _line(fields["Detectors"]).split(",")
    )
    named = {name for names in detectors for name in names}
    strange = sorted({*backends} - {*BACKENDS} | named - quick.DETECTORS)
    if strange:
        raise UserError(
            f"{patch} names what does not exist",
            expected=f"backends {', '.join(BACKENDS)}; detectors of quick.DETECTORS",
            found=", ".join(strange),
        )
    try:
        return Mutant(
            name=patch.stem,
            patch=patch,
            bug=_line(fields["Bug"]),
            why=_line(fields["Why"]),
            backends=backends,
            detectors=detectors,
            within_s=float(fields["Within"]),
            window_us=int(fields.get("Window", _WINDOW_US)),
            many=int(fields.get("Many", 0)),
            churn_s=float(fields.get("Churn", quick.CHURN_S)),
        )
    except ValueError as error:
        raise UserError(f"{patch}: a number was expected: {error}") from error


def _line(text: str) -> str:
    return " ".join(text.split())


def read_all(directory: Path) -> tuple[Mutant, ...]:
    """Read every mutant of a directory, by name; raises UserError for none."""
    found = tuple(read(path) for path in sorted(directory.glob("*.patch")))
    if not found:
        raise UserError(f"there are no mutants in {directory}")
    return found


def apply(mutant: Mutant, kmod: Path, target: Path, *, fuzz: int = 0) -> None:
    """Make ``target`` a copy of the module's sources with the bug; raises BuildError."""
    module.copy_sources(kmod, target)
    completed = run(
        [
            "patch",
            "-p2",
            f"--fuzz={fuzz}",
            "--batch",
            "--forward",
            "--no-backup-if-mismatch",
            "--reject-file=-",
            "-i",
            mutant.patch.resolve(),
        ],
        cwd=target,
        timeout_s=_PATCH_TIMEOUT_S,
        check=False,
    )
    if completed.returncode != 0:
        raise BuildError(
            f"the mutant {mutant.name} does not apply to {kmod}",
            expected="every hunk in its place, with no fuzz" if not fuzz else "every hunk",
            found=(completed.stdout + completed.stderr).strip(),
            hint="'./inv mutants --refresh' where only its surroundings have changed",
        )


_OFFSET = re.compile(r"^(---|\+\+\+) ([ab])/(?:\S*/)?(\S+)$", re.MULTILINE)


def refresh(mutant: Mutant, kmod: Path) -> bool:
    """Write a mutant's patch anew for the sources as they are; says whether it changed.

    Raises BuildError when it does not apply even with fuzz: then it is for a person.
    """
    with tempfile.TemporaryDirectory(prefix="cplayground-") as scratch:
        before, after = Path(scratch, "a", "kmod"), Path(scratch, "b", "kmod")
        module.copy_sources(kmod, before)
        apply(mutant, kmod, after, fuzz=2)
        names = sorted(path.relative_to(after) for path in after.rglob("*.[ch]"))
        diff = "".join(
            run(
                ["diff", "-u", *_labels(name), f"a/kmod/{name}", f"b/kmod/{name}"],
                cwd=Path(scratch),
                timeout_s=_PATCH_TIMEOUT_S,
                check=False,
            ).stdout
            for name in names
        )
    text = mutant.patch.read_text()
    fresh = text.partition("\n--- ")[0] + "\n" + diff
    if fresh == text:
        return False
    fs.write_atomic(mutant.patch, fresh)
    return True


def _labels(name: Path) -> list[str]:
    return [word for side in "ab" for word in ("--label", f"{side}/kmod/{name}")]


# --- running them -------------------------------------------------------------------------


class Fate(enum.Enum):
    """What became of a mutant in one run."""

    KILLED = "killed"
    LATE = "killed too late"
    BY_ANOTHER = "killed by another detector"
    SURVIVED = "survived"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class Trial:
    """One run of the quick suite on one mutant, or on the module as it is (CONTROL)."""

    mutant: str
    backend: str
    release: str
    expected: Detectors
    found: Mapping[str, float]  # detector → seconds until its first report
    fate: str  # of Fate; for the control, killed is a false alarm
    seconds: float
    number: int = 1  # of the repetition, which is the seed of what is random in it
    inputs: str = ""  # digest of all that decides what comes of it


# Findings that say nothing about the module.
_NO_EVIDENCE = frozenset({"workload"})


def judge(expected: Detectors, within_s: float, result: QuickResult) -> Fate:
    """Say what became of a mutant that one of each of ``expected`` must kill in ``within_s``."""
    found = first_reports(result.findings)
    if not expected:
        # The control: whatever was said about it is a false alarm.
        if found:
            return Fate.BY_ANOTHER
        return Fate.SURVIVED if result.complete else Fate.NOT_JUDGED
    if all(found.keys() & {*names} for names in expected):
        first = [min(found[name] for name in names if name in found) for names in expected]
        return Fate.KILLED if max(first) <= within_s else Fate.LATE
    if found.keys() - _NO_EVIDENCE:
        return Fate.BY_ANOTHER
    return Fate.SURVIVED if result.complete else Fate.NOT_JUDGED


def written(detectors: Detectors) -> str:
    """Return detectors as a mutant's header has them."""
    return ", ".join(" or ".join(names) for names in detectors)


def first_reports(findings: Iterable[Finding]) -> dict[str, float]:
    """Return when each detector reported first."""
    found: dict[str, float] = {}
    for finding in findings:
        found.setdefault(finding.detector, round(finding.at_s, 1))
    return found


class Workshop:
    """Builds the modules that will be asked for, ahead of time: one while a guest runs another.

    A context manager; made for one lab.
    """

    def __init__(self, where: Lab, directory: Path, wanted: Iterable[Mutant | None]) -> None:
        self._lab = where
        self._directory = directory
        self._pool = ThreadPoolExecutor(1, "mutants")
        self._built: dict[str, Future[Path]] = {}
        for one in dict.fromkeys(wanted):
            self._built[_name(one)] = self._pool.submit(self._build, one)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def module(self, mutant: Mutant | None) -> Path:
        """Return the module of a mutant, or of the control; raises BuildError."""
        return self._built[_name(mutant)].result()

    def _build(self, mutant: Mutant | None) -> Path:
        kmod = self._lab.settings.project / "kmod"
        place = self._directory / _name(mutant)
        source = place / "source"
        fs.remove_tree(source)
        if mutant is None:
            module.copy_sources(kmod, source)
        else:
            apply(mutant, kmod, source)
        return lab.build_module(self._lab, source, out=place / "module").path


def _name(mutant: Mutant | None) -> str:
    return CONTROL if mutant is None else mutant.name


def inputs(where: Lab, mutant: Mutant | None, built: Path) -> str:
    """Return a digest of what a trial depends on: guest, module, mutant's header and suite."""
    return stamp.digest(
        {
            "guest": where.snapshot.home.name if where.snapshot else repr(where.spec),
            "module": fs.sha256_file(built),
            "mutant": fs.sha256_file(mutant.patch) if mutant else "",
            "suite": fs.sha256_file(Path(quick.__file__)),
            "runner": fs.sha256_file(Path(__file__)),
        }
    )


def run_trial(
    where: Lab,
    mutant: Mutant | None,
    built: Path,
    compiled: Mapping[str, Path],
    *,
    backend: str,
    workdir: Path,
    number: int = 1,
    kmemleak: bool = False,
) -> tuple[Trial, QuickResult]:
    """Try one mutant, or the control, in a guest of its own, which is thrown away.

    ``number`` is that of the repetition; ``workdir`` receives the guest's logs, and as REPORT
    what triage makes of its console.
    ``kmemleak`` is for the end, which no mutant reaches.
    """
    expected = () if mutant is None else mutant.detectors
    with lab.open_guest(where, workdir=workdir) as guest:
        result = quick.run(
            guest,
            lambda: built,
            compiled,
            backend=backend,
            window_us=_WINDOW_US if mutant is None else mutant.window_us,
            deadline_s=_DEADLINE_S,
            churn_s=_CHURN_OF_CONTROL_S if mutant is None else mutant.churn_s,
            expect=expected,
            many=0 if mutant is None else mutant.many,
            seed=number,
            kmemleak=kmemleak,
            thorough=mutant is None,
        )
        reports = guest.reports()
        guest.abandon()
    shown = triage.render(
        reports,
        modules={quick.MODULE: built},
        again=f"./inv mutants {where.target.options('suite', 'version')} -k {_name(mutant)}",
        console=workdir / "console.log",
    )
    fs.write_atomic(workdir / REPORT, shown or "The kernel has reported nothing.\n")
    fate = judge(expected, _DEADLINE_S if mutant is None else mutant.within_s, result)
    trial = Trial(
        mutant=_name(mutant),
        backend=backend,
        release=where.release,
        expected=expected,
        found=first_reports(result.findings),
        fate=fate.value,
        seconds=round(result.seconds, 1),
        number=number,
        inputs=inputs(where, mutant, built),
    )
    return trial, result


def explain(trial: Trial, mutant: Mutant | None, result: QuickResult, logs: Path) -> str:
    """Say what was expected of a trial, and what came."""
    lines = [f"{trial.mutant} on the backend {trial.backend}: {trial.fate}"]
    if mutant is not None:
        lines += [
            f"  bug:      {mutant.bug}",
            f"  expected: {written(mutant.detectors)} within {mutant.within_s:g} s",
        ]
    lines += [f"  {one.at_s:6.1f} s  {one.detector}: {one.message}" for one in result.findings]
    lines += [f"  {one.seconds:6.1f} s  {one.name}: {one.seen}" for one in result.steps]
    lines += [
        f"  complete: {result.complete}, armed: {', '.join(sorted(result.armed)) or 'nothing'}",
        f"  report:   {logs / REPORT}",
        f"  console:  {logs / 'console.log'}",
    ]
    return "\n".join(lines)


# --- the kill matrix ----------------------------------------------------------------------


def kept(build: Path, target: Target) -> Path:
    """Return the file that holds what the mutants came to on a target's kernel."""
    return build / "test" / f"kill-matrix-{target.suite}-{target.name}.json"


def save(path: Path, trials: Sequence[Trial]) -> None:
    """Write trials as JSON."""
    fs.write_json(path, [asdict(one) for one in trials])


def load(path: Path) -> tuple[Trial, ...]:
    """Read what :func:`save` wrote; nothing when there is no such file, or it is damaged."""
    return fs.read_json(path, _trials) or ()


def _trials(raw: list[dict[str, Any]]) -> tuple[Trial, ...]:
    return tuple(
        Trial(**{**one, "expected": tuple(tuple(names) for names in one["expected"])})
        for one in raw
    )


def merge(before: Iterable[Trial], after: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return the last trials of each mutant: those of ``after`` stand for earlier ones.

    Earlier repetitions stay beside them where nothing has changed that they depend on.
    Trials on another kernel than the last one's are dropped.
    """
    anew = {(one.mutant, one.backend): one.inputs for one in after}
    numbers = {(one.mutant, one.backend, one.number) for one in after}

    def stays(one: Trial) -> bool:
        if one.release != after[-1].release:
            return False
        if (one.mutant, one.backend) not in anew:
            return True
        same = one.inputs == anew[one.mutant, one.backend] != ""
        return same and (one.mutant, one.backend, one.number) not in numbers

    return (*(one for one in before if after and stays(one)), *after)


def seen(
    before: Iterable[Trial], mutant: Mutant | None, backend: str, number: int, digest: str
) -> Trial | None:
    """Return the trial that an earlier run made of this case, if nothing has changed since."""
    for one in before:
        case = one.mutant, one.backend, one.number, one.inputs
        if case == (_name(mutant), backend, number, digest):
            return one
    return None


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
        "Written by `./inv mutants`; [lab.md](lab.md) says what a mutant is and how to add one.",
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
