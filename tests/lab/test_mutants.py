"""Each mutant is killed by the detectors that it names, and the unchanged module passes.

By default each mutant is tried once, on its first backend.  With --all it is tried ten times on
each of its backends, unless an earlier run tried it with the same module, guest and suite.
``-k NAME`` runs one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kbuild.lab import campaign, mutants
from kbuild.lab.campaign import Campaign
from kbuild.lab.mutation import Case
from kbuild.lab.setup import Lab
from tests.lab.conftest import TRIALS_KEY

PROJECT = Path(__file__).resolve().parents[2]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        every = mutants.read_all(PROJECT / mutants.PATCHES)
        cases = campaign.cases(every, whole=bool(metafunc.config.getoption("all")))
        metafunc.parametrize("case", cases, ids=lambda case: case.name)


@pytest.fixture(scope="session")
def running(request: pytest.FixtureRequest, lab: Lab, whole: bool) -> Iterator[Campaign]:
    """The trials of all selected cases, which run ahead of the tests."""
    selected = {item.name for item in request.session.items}
    every = mutants.read_all(PROJECT / mutants.PATCHES)
    cases = campaign.cases(every, whole=whole)
    wanted = [case for case in cases if f"{test_mutant.__name__}[{case.name}]" in selected]
    with campaign.begin(lab, wanted, whole=whole) as begun:
        yield begun


def test_mutant(
    case: Case,
    running: Campaign,
    record_property: Callable[[str, object], None],
    pytestconfig: pytest.Config,
) -> None:
    result = running.result(case)
    pytestconfig.stash.setdefault(TRIALS_KEY, []).append(result.trial)
    # The time of the test is that of waiting for the trial.
    record_property("trial_seconds", result.trial.seconds)
    assert result.trial.passed, result.explanation
