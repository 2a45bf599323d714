"""Each mutant is caught by the detectors that it names, and the module as it is by none.

By default each once, on its first backend; with --all on each of its backends, ten times,
and the module itself twenty times, but for those that an earlier run has tried with the same
module, guest and suite.  ``-k NAME`` runs one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbuild.core import fs
from kbuild.core.model import BACKENDS
from kbuild.lab import kill_matrix, mutants, mutation, quick
from kbuild.lab.lab import Lab
from kbuild.lab.mutants import CONTROL, Mutant
from kbuild.lab.mutation import Fate, Trial, Workshop
from tests import programs as test_programs
from tests.lab.conftest import logs

MUTANTS = Path(__file__).parents[2] / "kbuild/lab/bugs"
REPETITIONS = 10

Case = tuple[Mutant | None, str, int]


def cases(whole: bool) -> list[Case]:
    """Mutant (None: the control), backend, and number of the repetition."""
    every = mutants.read_all(MUTANTS)
    chosen: list[Case] = []
    # Round by round, so that a run which is interrupted has tried all of them as often.
    for number in range(REPETITIONS if whole else 1):
        chosen += [(None, backend, number) for backend in BACKENDS]
        for mutant in every:
            backends = mutant.backends if whole else mutant.backends[:1]
            chosen += [(mutant, backend, number) for backend in backends]
    return chosen


def name(case: Case) -> str:
    mutant, backend, number = case
    return f"{mutant.name if mutant else CONTROL}-{backend}-{number + 1}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases(bool(metafunc.config.getoption("all"))), ids=name)


@pytest.fixture(scope="session")
def trials() -> list[Trial]:
    """What the tests of this run have come to."""
    return []


@pytest.fixture(scope="session")
def earlier(place: Lab, whole: bool) -> tuple[Trial, ...]:
    """What --all, which takes hours, need not do again."""
    return mutation.load(mutation.kept(place.settings.build, place.target)) if whole else ()


@pytest.fixture(scope="session")
def compiled(place: Lab) -> dict[str, Path]:
    """The quick suite's programs."""
    return test_programs.compile_programs(place.settings, place.target.suite, quick.PROGRAMS)


@pytest.fixture(scope="session")
def workshop(request: pytest.FixtureRequest, place: Lab) -> Iterator[Workshop]:
    """The modules of all cases that this run has, compiled while guests run."""
    selected = {item.name for item in request.session.items}
    wanted = [
        case[0]
        for case in cases(bool(request.config.getoption("all")))
        if f"test_mutant[{name(case)}]" in selected
    ]
    home = place.settings.build / place.target.suite / place.target.name
    # One of its own, so that a mutant can be tried while all of them are.
    with (
        tempfile.TemporaryDirectory(dir=home, prefix="mutants.") as directory,
        Workshop(place, Path(directory), wanted) as shop,
    ):
        yield shop


def test_mutant(
    case: Case,
    place: Lab,
    workshop: Workshop,
    compiled: dict[str, Path],
    trials: list[Trial],
    earlier: tuple[Trial, ...],
) -> None:
    mutant, backend, number = case
    built = workshop.module(mutant)
    digest = mutation.inputs(place, mutant, built)
    kept = mutation.kept(place.settings.build, place.target)
    known = mutation.seen(earlier, mutant, backend, number + 1, digest)
    if known:
        # A failure too: of ten runs all ten count.
        trials.append(known)
        explained = f"{known}\nwas seen in an earlier run: {kept}"
    else:
        # kmemleak's scans take longer than all the rest; counting finds leaks each time.
        kmemleak = mutant is None and number == 0
        workdir = logs(place, "mutants", name(case))
        trial, result = mutation.run_trial(
            place,
            mutant,
            built,
            compiled,
            backend=backend,
            workdir=workdir,
            number=number + 1,
            kmemleak=kmemleak,
        )
        trials.append(trial)
        explained = mutation.explain(trial, mutant, result, workdir)
        if mutant is None:
            unasked = set() if kmemleak else {"kmemleak"}
            asked = {"slab counts", *place.spec.checkers} - unasked
            assert place.target.variant != "debug" or result.armed == asked, explained
    # Each time, so that a run which is interrupted has not been for nothing.
    with fs.lock(kept.with_name(f".{kept.name}.lock")):
        mutation.save(kept, mutation.merge(mutation.load(kept), trials))
    wanted = Fate.KILLED if mutant else Fate.SURVIVED
    assert trials[-1].fate == wanted.value, explained


def test_kill_matrix(trials: list[Trial], capsys: pytest.CaptureFixture[str]) -> None:
    """Runs last: shows what the others came to."""
    if not trials:
        pytest.skip("no mutant was tried in this run")
    with capsys.disabled():
        print("\n\n" + kill_matrix.matrix(trials))
