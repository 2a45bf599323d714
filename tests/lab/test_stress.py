"""Stress: a short run passes, and each fault that a long run looks for is found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kbuild.core.errors import BuildError
from kbuild.core.model import MODULE, PROCFILE, Settings
from kbuild.core.run import run
from kbuild.core.variants import variant
from kbuild.guest import programs
from kbuild.guest.guest import Guest
from kbuild.guest.outcome import Outcome
from kbuild.guest.programs import PLACE
from kbuild.guest.spec import MISBEHAVE
from kbuild.lab import checks, probing, setup, stress, stress_summary, workloads
from kbuild.lab.checks import Check
from kbuild.lab.setup import Lab
from kbuild.lab.stress_summary import StressFailedError, Summary
from tests import programs as test_programs
from tests.lab.conftest import MODULE_FILE

PROGRAMS = (*stress.PROGRAMS, "topology")
CORPUS = Path(__file__).resolve().parents[1] / "unit" / "data" / "procfile"


def test_a_short_run_passes(lab: Lab, built: Path, whole: bool) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rounds = workloads.plan(workloads.choose(()), 300 if whole else 30, seed)
    compiled = test_programs.compile_programs(lab.settings, lab.target.suite, stress.PROGRAMS)
    workdir = setup.logs(lab, "test_stress", "run")
    summary = stress.stress_guest(
        setup.open_guest(lab, workdir=workdir),
        built,
        compiled,
        rounds=rounds,
        parameters=[],
        seed=seed,
        fragments=variant(lab.target.variant).fragments,
    )
    print(stress_summary.render(summary))
    assert summary.outcome is Outcome.PASSED
    assert all(summary.operations.values())
    assert summary.unloadings > 0


def test_what_is_left_over_is_found(guest: Guest, lab: Lab) -> None:
    fragments = variant(lab.target.variant).fragments

    def bad(checks: tuple[Check, ...]) -> set[str]:
        return {check.name for check in checks if check.outcome not in (None, Outcome.PASSED)}

    before, processes = probing.count(guest), probing.processes(guest)
    assert not bad(probing.leak_checks(guest, before, fragments))
    holder = guest.start([f"{PLACE}/topology", "many-files", "500"], cwd="/tmp")
    while holder.read_line(60) != b"ready\n":
        pass
    assert bad(probing.leak_checks(guest, before, fragments)) == {"counts"}
    left = checks.check_processes(processes, probing.processes(guest))
    assert left.outcome is Outcome.LEAKED
    assert "topology" in left.found
    holder.close_stdin()
    holder.wait(60)
    assert not bad(probing.leak_checks(guest, before, fragments))
    assert checks.check_processes(processes, probing.processes(guest)).passed


_WHEN_LOADED = f"while ! [ -e /sys/module/{MODULE} ]; do sleep 1; done; sleep 2; "
_DO = "echo {deed} >/sys/module/misbehave/parameters/what; "


def stress_spoiled(lab: Lab, built: Path, script: str, name: str) -> Summary:
    """Stress a guest while ``script`` runs in it, and return the summary of the failure."""
    compiled = test_programs.compile_programs(lab.settings, lab.target.suite, PROGRAMS)
    workdir = setup.logs(lab, "test_stress", name)
    with (
        setup.open_guest(lab, workdir=workdir) as guest,
        pytest.raises(StressFailedError) as failed,
    ):
        guest.run(["insmod", MISBEHAVE.format(release=guest.release)], timeout_s=20, check=True)
        guest.start(["sh", "-c", _WHEN_LOADED + script])
        stress.stress_guest(
            guest,
            built,
            compiled,
            rounds=workloads.plan(workloads.choose(["churn"]), 10, 1),
            parameters=[],
            seed=1,
            fragments=variant(lab.target.variant).fragments,
        )
    print(failed.value)
    return failed.value.summary


def test_what_comes_of_a_run_is_found(lab: Lab, built: Path) -> None:
    """Leaked files and memory, a process left over, and a foreign taint are found."""
    script = f"echo 64 >/proc/sys/kernel/tainted; {_DO.format(deed='leak')}"
    script += f"exec {PLACE}/topology many-files 500"
    summary = stress_spoiled(lab, built, script, "spoiled")
    bad = {check.name for check in summary.checks if check.outcome is Outcome.LEAKED}
    expected = {"processes", "counts"}
    if "kmemleak.config" in variant(lab.target.variant).fragments:
        expected.add("kmemleak")
    assert bad == expected
    assert any("tainted (U)" in reason for reason in summary.verdict.reasons)


def test_a_report_ends_a_run(lab: Lab, built: Path) -> None:
    summary = stress_spoiled(lab, built, _DO.format(deed="warn"), "report")
    assert summary.outcome is Outcome.WARNED
    assert "misbehave_warn" in summary.verdict.reasons[0]
    assert summary.checks == ()


def test_a_race_ends_a_run(lab: Lab, built: Path) -> None:
    """KCSAN watches the functions of every module, without being told their names."""
    if "kcsan.config" not in variant(lab.target.variant).fragments:
        pytest.skip(f"the variant {lab.target.variant} has no KCSAN")
    summary = stress_spoiled(lab, built, _DO.format(deed="race"), "race")
    assert summary.outcome is Outcome.REPORTED
    assert "KCSAN" in summary.verdict.reasons[0]
    assert "misbehave_racer" in summary.verdict.reasons[0]


def test_a_guest_that_hangs_ends_a_run(lab: Lab, built: Path) -> None:
    script = f"echo 1 >/proc/sys/kernel/watchdog_thresh; {_DO.format(deed='lockup')}"
    summary = stress_spoiled(lab, built, script, "hang")
    assert summary.outcome is Outcome.HUNG
    assert any("soft lockup" in reason for reason in summary.verdict.reasons)


def test_a_detector_that_is_off_is_found(lab: Lab) -> None:
    fragments = variant(lab.target.variant).fragments
    ways = {
        "lockdep.config": ("lockdep", f"insmod $1; {_DO.format(deed='kept_lock')}"),
        "kmemleak.config": ("kmemleak", "echo off >/sys/kernel/debug/kmemleak"),
        "kcsan.config": ("kcsan", "echo off >/sys/kernel/debug/kcsan"),
    }
    there = [ways[name] for name in fragments if name in ways]
    if not there:
        pytest.skip(f"the variant {lab.target.variant} has no detector that can be asked")
    compiled = test_programs.compile_programs(lab.settings, lab.target.suite, PROGRAMS)
    workdir = setup.logs(lab, "test_stress", "off")
    guest = setup.open_guest(lab, workdir=workdir)
    try:
        programs.install(guest, compiled)
        before = probing.count(guest)
        for _, script in there:
            module = MISBEHAVE.format(release=guest.release)
            guest.run(["sh", "-c", script, "sh", module], timeout_s=20, check=True)
        checks = probing.leak_checks(guest, before, fragments)
    finally:
        guest.abandon()
    failed = {check.name for check in checks if check.outcome is Outcome.FAILED}
    assert failed == {name for name, _ in there}


def test_readers_notice_what_they_must_not_see(guest: Guest) -> None:
    """For readers that expect no unloading, an unloading is an error."""
    guest.run(["insmod", MODULE_FILE], timeout_s=20, check=True)
    storm = guest.start([f"{PLACE}/reader", "storm", PROCFILE, "60", "1", "still"])
    storm.read_line(60)
    guest.run(["rmmod", MODULE], timeout_s=20, check=True)
    result = storm.wait(60)
    assert result.status == 1
    assert b"a reader saw what it must not see: " in result.stderr
    # readers that found no file have tested nothing
    result = guest.run([f"{PLACE}/reader", "storm", PROCFILE, "2", "1", "reloaded"], timeout_s=90)
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
    # there is no room for a process that could be OOM-killed
    result = guest.run([f"{PLACE}/load", "oom", "1", "1", "2", "64"], timeout_s=90)
    assert result.status == 1
    assert b"oom has done nothing" in result.stderr


@pytest.fixture(scope="session")
def reader(settings: Settings, suite: str) -> Path:
    """The program of the readers; it is static, so it runs on the host too."""
    return test_programs.compile_programs(settings, suite, ["reader"])["reader"]


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.procfile")), ids=lambda one: one.stem)
def test_the_readers_grammar_takes_what_the_parser_takes(reader: Path, path: Path) -> None:
    assert int(run([reader, "check", path], timeout_s=20).stdout) >= 0


@pytest.mark.parametrize(
    "path", sorted((CORPUS / "refused").glob("*.procfile")), ids=lambda one: one.stem
)
def test_the_readers_grammar_refuses_what_the_parser_refuses(reader: Path, path: Path) -> None:
    with pytest.raises(BuildError, match="exit status 1"):
        run([reader, "check", path], timeout_s=20, error=BuildError)
