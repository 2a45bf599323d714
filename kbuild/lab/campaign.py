"""Try mutants: choose the cases, build their modules and run their trials in parallel."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from kbuild.core import fs, recipe, stamp
from kbuild.core.errors import KbuildError, UserError
from kbuild.core.model import BACKENDS, Settings, Target
from kbuild.guest.guest import Guest
from kbuild.kernel import module
from kbuild.lab import kept_trials, kill_matrix, mutants, mutation, setup
from kbuild.lab.findings import QuickResult
from kbuild.lab.mutants import CONTROL, REPORT, Mutant
from kbuild.lab.mutation import Case, Trial
from kbuild.lab.setup import Lab

REPETITIONS = 10  # of each mutant on each backend, if everything is asked for

# The syntax of an expression that chooses cases.
_WORD = re.compile(r"[\w:.+\[\]-]+")
_EXPRESSION = (ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.Name, ast.Load)


class MutantsFailedError(KbuildError):
    """A mutant was not killed as its header demands, or the control had a finding."""

    kind = "mutants"


# --- which -----------------------------------------------------------------------------------


def cases(every: Iterable[Mutant], *, whole: bool = False) -> tuple[Case, ...]:
    """Return the cases of mutants, the control included.

    Each mutant is tried once, on its first backend; with ``whole`` REPETITIONS times on each of
    its backends.  The longest come first, so that no long trial is left over at the end.
    """
    ordered = sorted(every, key=lambda one: (-one.within_s, one.name))
    chosen: list[Case] = []
    # One repetition of all cases after the other: an interrupted run has tried each as often.
    for number in range(1, (REPETITIONS if whole else 1) + 1):
        # kmemleak's scans take longer than everything else, and counting finds leaks each time.
        chosen += [Case(None, backend, number, kmemleak=number == 1) for backend in BACKENDS]
        for mutant in ordered:
            backends = mutant.backends if whole else mutant.backends[:1]
            chosen += [Case(mutant, backend, number) for backend in backends]
    return tuple(chosen)


def select(every: Sequence[Case], expression: str) -> tuple[Case, ...]:
    """Return the cases whose name matches an expression as pytest's ``-k`` takes.

    The expression has parts of names, "and", "or", "not" and parentheses.  Raises UserError for
    an expression that is wrong, or that matches no case.
    """
    words: list[str] = []

    def place(match: re.Match[str]) -> str:
        if match[0] in ("and", "or", "not"):
            return match[0]
        words.append(match[0].lower())
        return f"_{len(words) - 1}"

    wrong = UserError(
        f"-k {expression} is not an expression",
        expected="parts of names, 'and', 'or', 'not' and parentheses",
    )
    try:
        tree = ast.parse(_WORD.sub(place, expression.strip()), mode="eval").body
    except SyntaxError:
        raise wrong from None
    if not all(isinstance(node, _EXPRESSION) for node in ast.walk(tree)):
        raise wrong

    def holds(node: ast.expr, name: str) -> bool:
        match node:
            case ast.BoolOp(op, values):
                each = (holds(value, name) for value in values)
                return all(each) if isinstance(op, ast.And) else any(each)
            case ast.UnaryOp(operand=operand):
                return not holds(operand, name)
            case ast.Name(id=word):
                return words[int(word[1:])] in name.lower()
        raise AssertionError(node)

    found = tuple(case for case in every if holds(tree, case.name))
    if not found:
        names = sorted({case.subject for case in every})
        raise UserError(f"no mutant matches -k {expression}", expected=", ".join(names))
    return found


# --- running ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrialResult:
    """A trial, and an explanation of it for a person."""

    trial: Trial
    explanation: str


class Campaign:
    """Trials in the background: modules are built ahead, and several guests run at once.

    A context manager.  Leaving it ends the guests that still run.  ``earlier`` are trials that
    need not be made again if their inputs are the same.
    """

    def __init__(
        self, lab: Lab, wanted: Sequence[Case], directory: Path, *, earlier: Iterable[Trial] = ()
    ) -> None:
        self._lab = lab
        self._directory = directory
        self._earlier = tuple(earlier)
        self._kept = kept_trials.path(lab.settings.build, lab.target)
        self._suite = mutation.suite()
        self._compiling = recipe.digest(Path(str(module.__file__)), Path(str(setup.__file__)))
        self._ended = False
        self._running: set[Guest] = set()
        self._builders = ThreadPoolExecutor(1, "mutants-build")
        self._guests = ThreadPoolExecutor(guests_at_once(lab), "mutants-try")
        self._modules: dict[str, Future[Path]] = {}
        for case in wanted:
            if case.subject not in self._modules:
                self._modules[case.subject] = self._builders.submit(self._build, case.mutant)
        self._results = {case.name: self._guests.submit(self._try, case) for case in wanted}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended = True
        # Without its QEMU a trial ends at once.
        for guest in list(self._running):
            guest.machine.stop()
        self._builders.shutdown(cancel_futures=True)
        self._guests.shutdown(cancel_futures=True)

    def result(self, case: Case) -> TrialResult:
        """Wait for the result of one of the wanted cases; raises what its trial raised."""
        return self._results[case.name].result()

    def _build(self, mutant: Mutant | None) -> Path:
        """Return the module of a mutant, compiled unless an earlier run did so."""
        kmod = self._lab.settings.project / "kmod"
        name = CONTROL if mutant is None else mutant.name
        home = self._directory / name
        source, mark = home / "source", home / "module.json"
        with fs.lock(self._directory / f".{name}.lock"):
            fs.remove_tree(source)
            if mutant is None:
                module.copy_sources(kmod, source)
            else:
                mutants.apply(mutant, kmod, source)
            inputs = {
                "packages": self._lab.packages,
                "root": self._lab.root.digest,
                "compiling": self._compiling,
                **{
                    path.relative_to(source).as_posix(): fs.sha256_file(path)
                    for path in sorted(source.rglob("*"))
                    if path.is_file()
                },
            }
            built = home / "module" / f"{module.NAME}.ko"
            if stamp.due(mark, inputs) is not None:
                mark.unlink(missing_ok=True)
                made = setup.build_module(self._lab, source, out=built.parent)
                stamp.write(mark, inputs, [made.path], made.seconds)
        return built

    def _try(self, case: Case) -> TrialResult:
        built = self._modules[case.subject].result()
        inputs = mutation.inputs(self._lab, case, built, suite=self._suite)
        known = kept_trials.seen(self._earlier, case, inputs)
        if known is not None:
            # A failed trial counts too: all ten repetitions must pass.
            return TrialResult(known, f"{known}\nwas made in an earlier run: {self._kept}")
        workdir = setup.logs(self._lab, "mutants", case.name)
        with setup.open_guest(self._lab, workdir=workdir) as guest:
            self._running.add(guest)
            try:
                self._check_wanted()
                trial, result = mutation.run_trial(
                    self._lab, case, built, guest, workdir=workdir, inputs=inputs
                )
            finally:
                self._running.discard(guest)
                if self._ended:
                    guest.abandon()
        self._check_wanted()
        # Saved each time, so that an interrupted run loses only its running trials.
        kept_trials.add(self._kept, [trial])
        return TrialResult(trial, explain(self._lab, case, trial, result, workdir))

    def _check_wanted(self) -> None:
        if self._ended:
            raise CancelledError


def explain(lab: Lab, case: Case, trial: Trial, result: QuickResult, workdir: Path) -> str:
    """Return what was expected of a trial, and what was found."""
    lines = [f"{trial.mutant} on the backend {trial.backend}: {trial.fate}"]
    if case.mutant is not None:
        lines += [
            f"  bug:      {case.mutant.bug}",
            f"  expected: {mutants.written(case.mutant.detectors)}"
            f" within {case.mutant.within_s:g} s",
        ]
    lines += [f"  {one.at_s:6.1f} s  {one.detector}: {one.message}" for one in result.findings]
    lines += [f"  {one.seconds:6.1f} s  {one.name}: {one.seen}" for one in result.steps]
    lines += [f"  not armed: {name}" for name in sorted(mutation.unarmed(lab, case, result))]
    lines += [
        f"  complete: {result.complete}, armed: {', '.join(sorted(result.armed)) or 'nothing'}",
        f"  report:   {workdir / REPORT}",
        f"  console:  {workdir / 'console.log'}",
    ]
    return "\n".join(lines)


@contextmanager
def begin(lab: Lab, wanted: Sequence[Case], *, whole: bool = False) -> Iterator[Campaign]:
    """Start a campaign; modules that an earlier one has compiled from the same sources are kept.

    With ``whole``, which takes hours, trials of earlier runs are not made again.
    """
    directory = lab.settings.build / lab.target.suite / lab.target.name / "mutants"
    directory.mkdir(parents=True, exist_ok=True)
    kept = kept_trials.path(lab.settings.build, lab.target)
    earlier = kept_trials.load(kept) if whole else ()
    with Campaign(lab, wanted, directory, earlier=earlier) as campaign:
        yield campaign


def run(
    settings: Settings,
    target: Target,
    *,
    keyword: str = "",
    whole: bool = False,
    accel: str | None = None,
    say: Callable[[str], None],
) -> None:
    """Try the mutants on a target of the flavour lab, and print the kill matrix.

    ``keyword`` chooses cases as :func:`select` does.  ``whole`` tries each mutant REPETITIONS
    times on each of its backends; trials that an earlier run made with the same module, guest
    and suite count.  ``say`` gets a line for each trial, the explanation of each that failed,
    and in the end the matrix, which shows the last trials of every mutant.  Raises UserError for
    a wrong ``keyword``, and MutantsFailedError when a trial failed.
    """
    every = mutants.read_all(settings.project / mutants.PATCHES)
    wanted = cases(every, whole=whole)
    if keyword:
        wanted = select(wanted, keyword)
    lab = setup.prepare(settings, target, accel=accel)
    failed = []
    with begin(lab, wanted, whole=whole) as campaign:
        for number, case in enumerate(wanted, 1):
            try:
                result = campaign.result(case)
            except KbuildError as error:
                failed.append(case.name)
                say(f"{number}/{len(wanted)} {case.name}: {error.kind} error: {error}")
                continue
            say(f"{number}/{len(wanted)} {summary(result.trial)}")
            if not result.trial.passed:
                failed.append(case.name)
                say(result.explanation)
    names = {CONTROL, *(one.name for one in every)}
    kept = kept_trials.load(kept_trials.path(settings.build, target))
    say("\n" + kill_matrix.matrix([one for one in kept if one.mutant in names]).rstrip("\n"))
    if failed:
        raise MutantsFailedError(
            f"{len(failed)} of {len(wanted)} trials failed: {', '.join(failed)}",
            log=setup.logs(lab, "mutants"),
            hint="'./inv lab.mutants -k NAME' repeats one of them",
        )


def summary(trial: Trial) -> str:
    """Return a trial in one line."""
    found = ", ".join(f"{name} {at_s:.1f} s" for name, at_s in trial.found.items())
    return (
        f"{trial.mutant} ({trial.backend}): {trial.fate}{' by ' * bool(found)}{found}"
        f" ({trial.seconds:.0f} s)"
    )


def guests_at_once(lab: Lab) -> int:
    """Return how many guests run trials at the same time.

    Two guests share two processors: the start of a trial, most commands and all grace periods
    leave half of the processors idle.
    """
    cores = len(os.sched_getaffinity(0))
    return max(min(2, cores), cores // lab.spec.cpus)
