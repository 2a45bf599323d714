"""The detectors in a guest's kernel, and how each one is asked whether it still works."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from kbuild.guest import triage
from kbuild.guest.outcome import Outcome
from kbuild.guest.triage import Report

logger = logging.getLogger(__name__)

# Detectors that can turn themselves off silently: the file with each one's state, and the text
# there when it is on.  KCSAN's counters (kernel/kcsan/debugfs.c) show that it has watched.
SAYS_SO: Mapping[str, tuple[str, re.Pattern[str]]] = {
    "lockdep": ("/proc/lockdep_stats", re.compile(r"^ *debug_locks: +1$", re.MULTILINE)),
    "kcsan": (
        "/sys/kernel/debug/kcsan",
        re.compile(r"^enabled: 1$(?s:.*)^setup_watchpoints: [1-9]\d*$", re.MULTILINE),
    ),
}
KMEMLEAK = "/sys/kernel/debug/kmemleak"

# kmemleak ignores younger objects (MSECS_MIN_AGE in mm/kmemleak.c).
MIN_AGE_S = 5
_LEVEL = "/proc/sys/kernel/printk"
# An object from before the first program.  It was made by the task that becomes the idle task
# (pid 0) or by the one that becomes init (kernel_init() in init/main.c) and is renamed then.
_OF_THE_BOOT = re.compile(r'^  comm "swapper/\d+", pid [01], ', re.MULTILINE)


@dataclass(frozen=True)
class Checked:
    """The detectors at a guest's end."""

    # By name; a detector that the kernel lacks, or that was not asked, has no entry.
    alive: Mapping[str, bool] = field(default_factory=dict)
    leaks: tuple[Report, ...] = ()  # without those from before the first program


def two_scans(pause_s: int = 0) -> str:
    """Return shell commands for two scans by kmemleak; their status is not 0 if kmemleak is off.

    kmemleak's file lists only objects that both scans found.  Its message with their number stays
    off the console, which is judged: it has level 6, and counts the kernel's own (see leaks()).
    """
    scan = f"echo scan >{KMEMLEAK}"
    # The sleep is for a kernel whose console is written by a thread: the thread reads the level.
    return (
        f"level=$(cut -f1 {_LEVEL}) && echo 6 >{_LEVEL} && {scan} && sleep {pause_s} && {scan} "
        f"&& sleep 1 && echo $level >{_LEVEL}"
    )


def leaks(listed: str) -> tuple[Report, ...]:
    """Return the leaks in the text of kmemleak's file, without those of the kernel's own boot.

    The latter are only logged, because no module can have made them.  Linux 7.3, for example,
    loses eight bytes for its rootfs (ramfs_init_fs_context).  Text without a known form counts as
    a leak.
    """
    found = triage.scan(listed)
    if listed.strip() and not found:
        title = listed.strip().splitlines()[0]
        found = (Report(Outcome.LEAKED, "kmemleak", title, 1, listed, True),)
    own = [report for report in found if _OF_THE_BOOT.search(report.excerpt)]
    for report in own:
        logger.warning("kmemleak found a leak of the kernel's own boot:\n%s", report.excerpt)
    return tuple(report for report in found if report not in own)


def alive(name: str, said: str) -> bool:
    """Return whether the text of a detector's file says that it is on; False if it says nothing."""
    return SAYS_SO[name][1].search(said) is not None
