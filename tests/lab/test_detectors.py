"""Each variant's kernel with a module that misbehaves: every detector must report.

A "KASAN" kernel without KASAN therefore fails.  After a report, a detector may stay silent
(lockdep) or not report again (KASAN), so each detector has a guest of its own.
"""

from __future__ import annotations

import fnmatch
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kbuild.core.variants import Detector, variant
from kbuild.guest import triage
from kbuild.guest.guest import Guest, GuestResult, check_detectors
from kbuild.guest.spec import MISBEHAVE
from kbuild.lab import setup
from kbuild.lab.setup import Lab

_WHAT = "/sys/module/misbehave/parameters/what"
_DEBUGFS = "/sys/kernel/debug"
# The lines of a report follow each other faster than this, even on a busy host.
_QUIET_S = 1.0

# Settings (file, value) that make a detector notice in time.  By default the watchdogs take
# minutes, and panic.  With less than 4 s, other tasks of a slow kernel would be reported.
_BEFORE = {
    "spin": (
        ("/proc/sys/kernel/softlockup_panic", "0"),
        ("/proc/sys/kernel/watchdog_thresh", "1"),
    ),
    "stuck": (("/proc/sys/kernel/hung_task_timeout_secs", "4"),),
}

_FAULT_KNOBS = (
    (f"{_DEBUGFS}/failslab/ignore-gfp-wait", "N"),
    (f"{_DEBUGFS}/fail_page_alloc/ignore-gfp-wait", "N"),
    (f"{_DEBUGFS}/fail_page_alloc/min-order", "0"),
)
_ROUNDS = 8
# Make the n-th operation that can fail do so, from the opening of the file on, for each n until
# there is no n-th.  Reading the rest of n may itself be the operation that fails.
_EACH_IN_TURN = """\
n=0
while n=$((n + 1)); [ $n -le 99 ]; do
	echo $n >/proc/self/fail-nth
	echo "$1" >"$2"
	left=0
	read left </proc/self/fail-nth
	echo 0 >/proc/self/fail-nth
	[ "$left" != 0 ] && exit 0
done
exit 1
"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = variant(metafunc.config.getoption("variant") or "release")
    if "fault" in metafunc.fixturenames:
        metafunc.parametrize("fault", chosen.faults)
    if "detector" in metafunc.fixturenames:
        detectors = chosen.detectors
        metafunc.parametrize("detector", detectors, ids=[one.deed for one in detectors])


@pytest.fixture
def workdir(request: pytest.FixtureRequest, lab: Lab) -> Path:
    """The directory for the console of this test's guest."""
    name = re.sub(r"\W+", "-", str(request.node.name)).strip("-")
    return setup.logs(lab, "test_detectors", name)


@contextmanager
def misbehaving(lab: Lab, workdir: Path) -> Iterator[Guest]:
    """A guest with the module misbehave loaded, without a report so far.

    It is ended without a verdict, because a guest is of no use after a report.
    """
    guest = setup.open_guest(lab, workdir=workdir)
    try:
        guest.run(["insmod", MISBEHAVE.format(release=guest.release)], timeout_s=20, check=True)
        assert guest.reports() == ()
        yield guest
    finally:
        guest.abandon()


def order(guest: Guest, deed: str) -> GuestResult:
    return guest.run(["sh", "-c", f"echo {deed} >{_WHAT}"], timeout_s=20)


def write(guest: Guest, path: str, value: str) -> None:
    guest.run(["sh", "-c", f"echo {shlex.quote(value)} >{path}"], timeout_s=5, check=True)


def console_after(guest: Guest, since: int) -> str:
    """Return the console from ``since`` on, once it is quiet."""
    deadline = time.monotonic() + guest.answer_s
    while True:
        text = guest.console(since)
        time.sleep(_QUIET_S)
        if guest.console(since) == text:
            return text
        assert time.monotonic() < deadline, "the console does not become quiet"


def test_a_detector_notices(lab: Lab, workdir: Path, detector: Detector) -> None:
    with misbehaving(lab, workdir) as guest:
        for path, value in _BEFORE.get(detector.deed, ()):
            write(guest, path, value)
        since = guest.machine.console.size()
        order(guest, detector.deed)
        reports = triage.scan(console_after(guest, since))
        if detector.kind == "kmemleak":
            reports += check_detectors(guest).leaks
        seen = {triage.fingerprint(report): report for report in reports}
        ours = [mark for mark in seen if detector.made(mark)]
        assert ours, f"expected {detector}, found {list(seen)}"
        # every other report is about that function too
        assert next(iter(seen)) == ours[0]
        assert all(f"misbehave_{detector.deed}" in mark for mark in seen), list(seen)
        module = workdir / "misbehave.ko"
        module.write_bytes(guest.read(MISBEHAVE.format(release=guest.release)))
        shown = triage.render(reports, modules={"misbehave": module})
        assert re.search(rf"misbehave_{detector.deed}\w*  misbehave\.c:\d+", shown), shown


def test_a_guest_in_which_nothing_was_tripped_is_clean(lab: Lab, workdir: Path) -> None:
    with misbehaving(lab, workdir) as guest:
        guest.run(["rmmod", "misbehave"], timeout_s=20, check=True)
        verdict = guest.shutdown()
    assert verdict.passed, verdict
    # and the verdict has asked the detectors that the kernel must have
    assert guest.spec.checkers == variant(lab.target.variant).checkers


def test_the_slabs_that_the_command_line_names_are_checked(lab: Lab, workdir: Path) -> None:
    given = [word.partition("=")[2] for word in lab.spec.append if word.startswith("slub_debug=")]
    # Documentation/mm/slub.rst: blocks of flags, with the names or globs that they apply to
    blocks = [block.split(",") for value in given for block in value.split(";")]
    if not blocks:
        pytest.skip(f"the variant {lab.target.variant} has no slub_debug parameter")
    with misbehaving(lab, workdir) as guest:
        slabs = guest.run(["ls", "/sys/kernel/slab"], timeout_s=20, check=True).text.split()
        for flags, *globs in blocks:
            for glob in globs:
                named = fnmatch.filter(slabs, glob)
                assert named, f"{glob}: none of {slabs}"
                for name in named:
                    assert _checks(guest, name) == set(flags), name


def _checks(guest: Guest, slab: str) -> set[str]:
    """Return the enabled checks of a slab, as the letters of slub_debug."""
    path = f"/sys/kernel/slab/{slab}"
    return {
        flag
        for flag, check in (("F", "sanity_checks"), ("Z", "red_zone"), ("P", "poison"))
        if guest.read(f"{path}/{check}").strip() == b"1"
    }


def test_a_failure_can_be_made(lab: Lab, workdir: Path, fault: str) -> None:
    with misbehaving(lab, workdir) as guest:
        for path, value in _FAULT_KNOBS:
            write(guest, path, value)
        forced: list[str] = []
        # An additional operation, such as filling an allocator's cache, moves all later ones by
        # one.  The next n then misses one that has moved back, so there are several rounds.
        for _ in range(_ROUNDS):
            since = guest.machine.console.size()
            done = guest.run(["sh", "-c", _EACH_IN_TURN, "sh", fault, _WHAT], timeout_s=60)
            text = console_after(guest, since)
            assert done.status == 0, f"the failures did not end: {done.stderr.decode()}"
            assert triage.scan(text) == ()
            forced += text.split("FAULT_INJECTION: forcing a failure")[1:]
            if any(f" misbehave_{fault}+0x" in one for one in forced):
                return
        pytest.fail(f"{len(forced)} failures were made, and none of them in misbehave_{fault}")
