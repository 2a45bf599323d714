"""Try mutants in guests of the lab and judge which detector noticed each."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kbuild.core import fs, stamp
from kbuild.core.model import MODULE, Target
from kbuild.guest import triage
from kbuild.kernel import module
from kbuild.lab import lab, quick
from kbuild.lab.lab import Lab
from kbuild.lab.mutants import CONTROL, REPORT, WINDOW_US, Detectors, Mutant, apply
from kbuild.lab.quick import Finding, QuickResult

# Of the host, for one run; a mutant's own time is part of its header.
_DEADLINE_S = 600.0
# Longer than for a quick look: as long as the races have been seen to take.
_CHURN_OF_CONTROL_S = 12.0


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


def _name(mutant: Mutant | None) -> str:
    return CONTROL if mutant is None else mutant.name


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
            window_us=WINDOW_US if mutant is None else mutant.window_us,
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
        modules={MODULE: built},
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
