"""A reader leaves no trace: no program in a container notices that it is read, none holds it up.

kbuild/lab/programs/traces.c has the cases: what a program may rely on once it has closed a file, or
once it has ended.  A module that takes references on open files breaks them, most in a third of
the rounds or more, since the last reference decides when a file is closed and who closes it.
"""

from __future__ import annotations

import pytest

from kbuild.core.model import PROCFILE
from kbuild.guest.guest import Guest
from kbuild.guest.programs import PLACE
from kbuild.lab import traces
from kbuild.lab.traces import Traces
from tests.vm.module import backends, loaded_with

READERS = 2


def look(guest: Guest, readers: str, file: str, case: str) -> Traces:
    """Run a case, and print its figures."""
    rounds = traces.ROUNDS[case]
    argv = traces.argv(PLACE, file, case, rounds=rounds, readers=READERS)
    result = guest.run(argv, timeout_s=60, cwd="/tmp", check=True)
    print(f"{readers}: {result.text.strip()}")
    found = traces.parse(result.text)
    # That one stops at the first request that a reader's work item has sent.
    assert found.rounds == rounds or (case == "fuse-stuck" and found.rounds)
    return found


@pytest.mark.parametrize("case", traces.ROUNDS)
def test_nobody_notices_a_reader(armed: Guest, case: str) -> None:
    if case.startswith("fuse"):
        armed.run(["modprobe", "-q", "fuse"], timeout_s=20)  # built into the lab's kernel
    alone = look(armed, "nobody", "-", case)
    assert (alone.late, alone.listings) == (0, 0), alone
    # For comparison: a reader of procfs is noticed too, since on some kernels it takes a
    # reference on one open file at a time.
    look(armed, "fdinfo", "/proc", case)
    for backend in backends(armed):
        with loaded_with(armed, f"backend={backend}"):
            found = look(armed, backend, PROCFILE, case)
        assert traces.faults(case, backend, found) == [], found
