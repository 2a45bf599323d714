"""What a guest's detectors say of themselves before it is powered off."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from kbuild.guest import triage
from kbuild.guest.outcome import Outcome
from kbuild.guest.triage import Report

logger = logging.getLogger(__name__)

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

# kmemleak takes no notice of what is younger (MSECS_MIN_AGE of mm/kmemleak.c)
MIN_AGE_S = 5
_LEVEL = "/proc/sys/kernel/printk"
# Made before there was any program: by the task that becomes the idle one (pid 0), or by the
# one that becomes init (kernel_init() of init/main.c), which then takes that program's name.
_OF_THE_BOOT = re.compile(r'^  comm "swapper/\d+", pid [01], ', re.MULTILINE)


@dataclass(frozen=True)
class Checked:
    """The detectors at the end."""

    # by name; none for one that the kernel has not, or that was not asked
    alive: Mapping[str, bool] = field(default_factory=dict)
    leaks: tuple[Report, ...] = ()  # without what the kernel lost before there was any program


def two_scans(pause_s: int = 0) -> str:
    """Return shell commands that have kmemleak look twice; the status is not 0 if it is off.

    Only what two scans agree on is listed in its file.  The console, which is judged, does not
    get the number: it is of level 6, and counts the kernel's own (see leaks()).
    """
    scan = f"echo scan >{KMEMLEAK}"
    # A console may be written to by a thread, which asks for the level when it gets there.
    return (
        f"level=$(cut -f1 {_LEVEL}) && echo 6 >{_LEVEL} && {scan} && sleep {pause_s} && {scan} "
        f"&& sleep 1 && echo $level >{_LEVEL}"
    )


def leaks(listed: str) -> tuple[Report, ...]:
    """Return the leaks in the text of kmemleak's file, but for those of the kernel's own boot.

    No module can have made these, such as the eight bytes that Linux 7.3 loses for its rootfs
    (ramfs_init_fs_context); they are logged.  A text that is not understood is a leak.
    """
    found = triage.scan(listed)
    if listed.strip() and not found:
        title = listed.strip().splitlines()[0]
        found = (Report(Outcome.LEAKED, "kmemleak", title, 1, listed, True),)
    own = [report for report in found if _OF_THE_BOOT.search(report.excerpt)]
    for report in own:
        logger.warning("this kernel loses memory of its own, by kmemleak:\n%s", report.excerpt)
    return tuple(report for report in found if report not in own)


def alive(name: str, said: str) -> bool:
    """Return whether a detector's own file says that it is on; False too when it does not say."""
    return SAYS_SO[name][1].search(said) is not None
