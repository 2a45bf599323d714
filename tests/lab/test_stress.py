"""Stress: a short run passes, and what a long one is there to find is found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kbuild import lab, programs, stress
from kbuild.errors import BuildError
from kbuild.lab import Lab
from kbuild.model import Settings
from kbuild.programs import PLACE
from kbuild.quick import FILE, MODULE
from kbuild.run import run
from kbuild.stress import Check
from kbuild.variants import variant
from kbuild.vm.guest import Guest
from kbuild.vm.outcome import Outcome
from tests.lab.conftest import MODULE_FILE

PROGRAMS = (*stress.PROGRAMS, "topology")
CORPUS = Path(__file__).resolve().parents[1] / "unit" / "data" / "procfile"


def test_a_short_run_passes(place: Lab, built: Path, whole: bool) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rounds = stress.plan(stress.choose(()), 300 if whole else 30, seed)
    compiled = programs.compile_programs(place.settings, place.target.suite, stress.PROGRAMS)
    workdir = place.settings.build / "logs" / "lab" / "test_stress" / "run"
    summary = stress.stress_guest(
        lab.open_guest(place, workdir=workdir),
        built,
        compiled,
        rounds=rounds,
        parameters=[],
        seed=seed,
        fragments=variant(place.target.variant).fragments,
    )
    print(stress.render(summary))
    assert summary.outcome is Outcome.PASSED
    assert all(summary.operations.values())
    assert summary.unloadings > 0


def test_what_is_left_over_is_found(guest: Guest, place: Lab) -> None:
    fragments = variant(place.target.variant).fragments

    def bad(checks: tuple[Check, ...]) -> set[str]:
        return {check.name for check in checks if check.outcome not in (None, Outcome.PASSED)}

    before, processes = stress.count(guest), stress.processes(guest)
    assert not bad(stress.leak_checks(guest, before, fragments))
    holder = guest.start([f"{PLACE}/topology", "many-files", "500"], cwd="/tmp")
    while holder.read_line(60) != b"ready\n":
        pass
    assert bad(stress.leak_checks(guest, before, fragments)) == {"counts"}
    left = stress.check_processes(processes, stress.processes(guest))
    assert left.outcome is Outcome.LEAKED
    assert "topology" in left.found
    holder.close_stdin()
    holder.wait(60)
    assert not bad(stress.leak_checks(guest, before, fragments))
    assert stress.check_processes(processes, stress.processes(guest)).passed


def test_readers_notice_what_they_must_not_see(guest: Guest) -> None:
    """An unloading that nobody has told them of is an error for each kind of reader."""
    guest.run(["insmod", MODULE_FILE], timeout_s=20, check=True)
    storm = guest.start([f"{PLACE}/reader", "storm", FILE, "60", "1", "still"])
    storm.read_line(60)
    guest.run(["rmmod", MODULE], timeout_s=20, check=True)
    result = storm.wait(60)
    assert result.status == 1
    assert b"a reader saw what it must not see: " in result.stderr
    # and readers of nothing have not tested anything
    result = guest.run([f"{PLACE}/reader", "storm", FILE, "2", "1", "reloaded"], timeout_s=30)
    assert result.status == 1
    assert b"no whole reader has read anything" in result.stderr


def test_a_load_that_does_nothing_has_failed(guest: Guest) -> None:
    bounds = ["3", "1", "20", "64"]
    result = guest.run([f"{PLACE}/load", "run", *bounds, "false"], timeout_s=30)
    assert result.status == 1
    assert b"ended before its time" in result.stderr
    result = guest.run([f"{PLACE}/load", "run", *bounds, "sleep", "1000"], timeout_s=30)
    assert result.status == 1
    assert b"was not done in its time" in result.stderr
    # no memory is short, so nothing is killed for it
    result = guest.run([f"{PLACE}/load", "oom", "1", "1", "20", "100000"], timeout_s=30)
    assert result.status == 1
    assert b"oom has done nothing" in result.stderr


@pytest.fixture(scope="session")
def reader(settings: Settings, suite: str) -> Path:
    """The readers' program, which is static and so runs here too."""
    return programs.compile_programs(settings, suite, ["reader"])["reader"]


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.procfile")), ids=lambda one: one.stem)
def test_the_readers_grammar_takes_what_the_parser_takes(reader: Path, path: Path) -> None:
    assert int(run([reader, "check", path], timeout_s=20).stdout) >= 0


@pytest.mark.parametrize(
    "path", sorted((CORPUS / "refused").glob("*.procfile")), ids=lambda one: one.stem
)
def test_the_readers_grammar_refuses_what_the_parser_refuses(reader: Path, path: Path) -> None:
    with pytest.raises(BuildError, match="exit status 1"):
        run([reader, "check", path], timeout_s=20, error=BuildError)
