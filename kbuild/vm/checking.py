"""What a guest's detectors say of themselves before it is powered off."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kbuild.vm import triage
from kbuild.vm.triage import Report

if TYPE_CHECKING:
    from kbuild.vm.guest import Guest

# Detectors that can be off without a word: the file in which each says how it is, and what it
# says there when it is on.  KCSAN's counters (kernel/kcsan/debugfs.c) show that it has watched.
SAYS_SO: Mapping[str, tuple[str, re.Pattern[str]]] = {
    "lockdep": ("/proc/lockdep_stats", re.compile(r"^ *debug_locks: +1$", re.MULTILINE)),
    "kcsan": (
        "/sys/kernel/debug/kcsan",
        re.compile(r"^enabled: 1$(?s:.*)^setup_watchpoints: [1-9]\d*$", re.MULTILINE),
    ),
}
KMEMLEAK = "/sys/kernel/debug/kmemleak"

_SCAN_S = 60.0
# kmemleak takes no notice of what is younger (MSECS_MIN_AGE of mm/kmemleak.c)
_MIN_AGE_S = 5
# A leak is listed when its content has not changed since a scan before.
_TWO_SCANS = f"echo scan > {KMEMLEAK} && sleep {_MIN_AGE_S} && echo scan > {KMEMLEAK}"


@dataclass(frozen=True)
class Checked:
    """The detectors at the end."""

    # by name; none for one that the kernel has not, or that was not asked
    alive: Mapping[str, bool] = field(default_factory=dict)
    leaks: tuple[Report, ...] = ()


def at_the_end(guest: Guest) -> Checked:
    """Ask the detectors whether they are alive, and let kmemleak look once more.

    Raises GuestLost when the guest does not answer.
    """
    states = {}
    for name, (path, _) in SAYS_SO.items():
        said = guest.run(["cat", path], timeout_s=20)
        if said.status == 0:
            states[name] = alive(name, said.text)
    if guest.run(["test", "-e", KMEMLEAK], timeout_s=5).status != 0:
        return Checked(states)
    states["kmemleak"] = guest.run(["sh", "-c", _TWO_SCANS], timeout_s=_SCAN_S).status == 0
    listed = guest.read(KMEMLEAK).decode(errors="replace")
    return Checked(states, triage.scan(listed))


def alive(name: str, said: str) -> bool:
    """Return whether a detector's own file says that it is on; False too when it does not say."""
    return SAYS_SO[name][1].search(said) is not None
