"""A reader leaves no trace: no program in a container notices it, and none delays it.

kbuild/lab/programs/traces.c has the cases: guarantees to a program that has closed a file or has
ended.  A module with references on open files breaks most of them in a third of the rounds or
more, because the last reference decides when a file is closed and by which process.
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
    # The case fuse-stuck stops at the first request from a reader's work item.
    assert found.rounds == rounds or (case == "fuse-stuck" and found.rounds)
    return found


@pytest.mark.parametrize("case", traces.ROUNDS)
def test_nobody_notices_a_reader(guest: Guest, case: str) -> None:
    if case.startswith("fuse"):
        guest.run(["modprobe", "-q", "fuse"], timeout_s=20)  # built into the lab's kernel
    alone = look(guest, "nobody", "-", case)
    assert (alone.late, alone.listings) == (0, 0), alone
    for backend in backends(guest):
        with loaded_with(guest, f"backend={backend}"):
            found = look(guest, backend, PROCFILE, case)
        assert traces.faults(case, backend, found) == [], found
