"""What a guest's detectors say of themselves before it is powered off."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kbuild.vm import triage
from kbuild.vm.triage import Report

if TYPE_CHECKING:
    from kbuild.vm.guest import Guest

LOCKDEP = "/proc/lockdep_stats"
KMEMLEAK = "/sys/kernel/debug/kmemleak"

_SCAN_S = 60.0
# kmemleak takes no notice of what is younger (MSECS_MIN_AGE of mm/kmemleak.c)
_MIN_AGE_S = 5
# A leak is listed when its content has not changed since a scan before.
_TWO_SCANS = f"echo scan > {KMEMLEAK} && sleep {_MIN_AGE_S} && echo scan > {KMEMLEAK}"
_DEBUG_LOCKS = re.compile(r"^ *debug_locks: +(\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Checked:
    """The detectors at the end; None for one that the kernel has not, or that was not asked."""

    lockdep: bool | None = None
    kmemleak: bool | None = None
    leaks: tuple[Report, ...] = ()


def at_the_end(guest: Guest) -> Checked:
    """Ask lockdep whether it is alive, and let kmemleak look once more.

    Raises GuestLost when the guest does not answer.
    """
    stats = guest.run(["cat", LOCKDEP], timeout_s=20)
    lockdep = debug_locks(stats.text) if stats.status == 0 else None
    if guest.run(["test", "-e", KMEMLEAK], timeout_s=5).status != 0:
        return Checked(lockdep)
    scanned = guest.run(["sh", "-c", _TWO_SCANS], timeout_s=_SCAN_S).status == 0
    listed = guest.read(KMEMLEAK).decode(errors="replace")
    return Checked(lockdep, scanned, triage.scan(listed))


def debug_locks(stats: str) -> bool:
    """Return what /proc/lockdep_stats says of lockdep; False too when it does not say."""
    found = _DEBUG_LOCKS.search(stats)
    return found is not None and found.group(1) == "1"
