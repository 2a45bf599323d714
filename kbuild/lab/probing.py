"""Ask a guest's kernel about its state, and check that everything was given back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kbuild.core import variants
from kbuild.guest import detectors
from kbuild.guest.guest import Guest
from kbuild.guest.programs import PLACE
from kbuild.lab import counts
from kbuild.lab.checks import (
    Check,
    System,
    check_alive,
    check_counts,
    check_kmemleak,
    parse_processes,
    parse_system,
)
from kbuild.lab.counts import Counts

# In seconds of a fast machine; a guest multiplies them by its scale.
COMMAND_S = 30.0
_SCAN_S = 60.0
# Twice the age below which kmemleak ignores an object (MSECS_MIN_AGE).
_KMEMLEAK_AGE_S = "10"
# Stop waiting after this many guest milliseconds without a freed object.
_SETTLE_MS = 30_000
_LOOK = (
    "cat",
    "/proc/meminfo",
    "/proc/sys/fs/file-nr",
    "/proc/loadavg",
    "/proc/sys/kernel/tainted",
)


def look(guest: Guest) -> System:
    """Return the state of the guest's kernel."""
    result = guest.run(_LOOK, timeout_s=COMMAND_S, check=True)
    return parse_system(result.text, result.seconds)


def processes(guest: Guest) -> Counter[str]:
    """Count the processes of a guest by their command."""
    # sh and cat themselves are among the processes each time, so they cancel out
    result = guest.run(
        ["sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null; true"], timeout_s=COMMAND_S, check=True
    )
    return parse_processes(result.text)


def do(guest: Guest, *argv: str, timeout_s: float = COMMAND_S) -> str:
    """Run a command, which must succeed, and return its output."""
    return guest.run(argv, timeout_s=timeout_s, check=True).text


def count(guest: Guest, *arguments: str) -> Counts:
    """Count the objects of the guest's kernel; counts.c explains the arguments."""
    return counts.parse(do(guest, f"{PLACE}/{counts.PROGRAM}", *arguments, timeout_s=COMMAND_S))


def drop_caches(guest: Guest) -> None:
    """Make the kernel free its caches."""
    do(guest, "sh", "-c", "sync; echo 3 >/proc/sys/vm/drop_caches", timeout_s=COMMAND_S)


def settle(guest: Guest, before: Counts) -> None:
    """Wait for late frees (RCU callbacks, dying cgroups), before the checks."""
    limits = [f"{name}={most}" for name, most in counts.limits(before).items()]
    count(guest, str(_SETTLE_MS), *limits)
    drop_caches(guest)


def leak_checks(guest: Guest, before: Counts, fragments: Sequence[str]) -> tuple[Check, ...]:
    """Check for leaks and for detectors that are off; the module must be unloaded.

    A detector that ``fragments`` promise, and that is missing, is a failure.
    """
    limits = [f"{name}={most}" for name, most in counts.limits(before).items()]
    after = count(guest, str(_SETTLE_MS), *limits)
    required = {variants.CHECKERS.get(name) for name in fragments}
    return (
        check_counts(before, after, "kasan.config" in fragments),
        check_kmemleak(_kmemleak(guest), "kmemleak.config" in fragments),
        *(check_alive(name, _said(guest, name), name in required) for name in detectors.SAYS_SO),
    )


def _said(guest: Guest, detector: str) -> str | None:
    path, _ = detectors.SAYS_SO[detector]
    said = guest.run(["cat", path], timeout_s=COMMAND_S)
    return said.text if said.status == 0 else None


def _kmemleak(guest: Guest) -> str | None:
    if guest.run(["test", "-e", detectors.KMEMLEAK], timeout_s=COMMAND_S).status:
        return None
    do(guest, "sleep", _KMEMLEAK_AGE_S)
    scans = guest.run(["sh", "-c", detectors.two_scans()], timeout_s=2 * _SCAN_S)
    if scans.status:  # EPERM: kmemleak has run out of memory and turned itself off
        return None
    listed = guest.read(detectors.KMEMLEAK, timeout_s=COMMAND_S).decode(errors="replace")
    return "\n".join(report.excerpt for report in detectors.leaks(listed))
