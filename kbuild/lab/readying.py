"""Prepare a guest for the quick suite: install its programs and count the kernel's objects.

The preparation is part of the snapshot that guests are restored from, so its cost is paid once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from kbuild.guest import detectors, programs
from kbuild.guest.guest import Guest
from kbuild.guest.programs import PLACE
from kbuild.lab import counts, traces

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).with_name("programs")
# Programs of the quick suite.
PROGRAMS = (
    *("topology", "observe", "observe_reads", "recycle", "moment", "witness", "turmoil", "reader"),
    *("lives", traces.PROGRAM, counts.PROGRAM),
)
# In a guest: the counts that the suite expects to find again at its end.
COUNTED = "/tmp/counted"
# Cases of traces.c in a quick look, with their rounds.
FEW_TRACES = {"text": 4, "eof": 4, "fuse": 4}


def sources(names: Iterable[str]) -> list[Path]:
    """Return the C sources of guest programs of the lab."""
    return [_SOURCES / f"{name}.c" for name in names]


def prepare(guest: Guest, compiled: Mapping[str, Path]) -> None:
    """Install programs in a guest and clear what its detectors have found so far.

    The leaks that kmemleak finds here are the kernel's own.  They are logged, and kept off the
    console, because the console is judged.
    """
    programs.install(guest, dict(compiled))
    if guest.run(["test", "-e", detectors.KMEMLEAK], timeout_s=10).status == 0:
        guest.run(["sh", "-c", detectors.two_scans()], timeout_s=120, check=True)
        lost = guest.run(["@read", detectors.KMEMLEAK], timeout_s=20, check=True).text
        if lost.strip():
            logger.warning("kmemleak found leaks of the kernel itself:\n%s", lost.rstrip())
        guest.run(["sh", "-c", f"echo clear >{detectors.KMEMLEAK}"], timeout_s=60, check=True)


def make_ready(guest: Guest, compiled: Mapping[str, Path]) -> None:
    """Install PROGRAMS in a guest and store the counts that quick.run() compares at its end.

    Call it before the guest is saved, and do nothing else in the guest before quick.run().
    """
    prepare(guest, compiled)
    # A kernel keeps what it allocates for its first mount, namespace or FUSE request.
    for case in FEW_TRACES:
        argv = traces.argv(PLACE, "-", case, rounds=1, readers=0)
        guest.run(argv, timeout_s=60, cwd="/tmp", check=True)
    count = f"{PLACE}/{counts.PROGRAM} kmalloc >{COUNTED}"
    # The first count fills caches, so only the second one is comparable.
    guest.run(["sh", "-c", f"{count} && {count}"], timeout_s=60, check=True)
