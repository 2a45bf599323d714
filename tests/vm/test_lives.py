"""Ends and beginnings of processes and files: parents, ids and tables stay the right ones."""

from __future__ import annotations

from kbuild.core.model import PROCFILE
from kbuild.guest.guest import Guest
from kbuild.guest.programs import PLACE
from kbuild.lab import traces
from tests.vm.module import backends, loaded_with

EXECS = 500
FAMILIES = 500  # parents that end right after their fork
CONTAINERS = 40
READINGS = 20
FILES = 20


def lives(guest: Guest, backend: str, case: str, rounds: int) -> dict[str, str]:
    """Run a case of kbuild/lab/programs/lives.c, and return its counts."""
    with loaded_with(guest, f"backend={backend}"):
        argv = [f"{PLACE}/lives", PROCFILE, case, str(rounds)]
        result = guest.run(argv, timeout_s=60, cwd="/tmp", check=True)
    print(f"backend {backend}, {case}: {result.text.strip()}, in {result.seconds:.1f} s")
    return traces.figures(result.text)


def numbers(counted: dict[str, str]) -> dict[str, int]:
    return {key: int(value) for key, value in counted.items()}


def test_a_thread_that_calls_execve(guest: Guest) -> None:
    """The process keeps pid, parent, group and table while another thread becomes its leader."""
    for backend in backends(guest):
        found = numbers(lives(guest, backend, "exec", EXECS))
        assert found["execs"] >= EXECS
        assert found["headers"] >= EXECS
        assert (found["wrong"], found["missing"], found["bare"]) == (0, 0, 0), found


def test_children_whose_parents_end(guest: Guest) -> None:
    """Each shows the old parent or the new one, never a ppid of 0 (a parent outside)."""
    for backend in backends(guest):
        found = numbers(lives(guest, backend, "reaped", FAMILIES))
        assert found["families"] >= FAMILIES
        assert found["headers"] >= FAMILIES
        assert (found["wrong"], found["group"]) == (0, 0), found


def test_containers_one_after_another(guest: Guest) -> None:
    """No container gets the id of an earlier one, for a lasting reader and for a new one."""
    for backend in backends(guest):
        found = numbers(lives(guest, backend, "series", CONTAINERS))
        assert found == {"containers": CONTAINERS, "repeated": 0, "differ": 0}


def test_containers_that_change_within_a_reading(guest: Guest) -> None:
    """A container that ends after its record and one that begins then have two ids."""
    for backend in backends(guest):
        found = numbers(lives(guest, backend, "between", READINGS))
        assert found == {"rounds": READINGS, "shown": READINGS, "repeated": 0}


def test_files_with_inodes_of_their_own(guest: Guest) -> None:
    """A new file never gets the id of an earlier one.

    A file that is opened again from the same inode may get it.  So may files that share the
    kernel's anonymous inode, such as eventfds.
    """
    for backend in backends(guest):
        found = lives(guest, backend, "files", FILES)
        for kind in ("pipe", "socket", "memfd"):
            assert found[kind] == f"0/{FILES}", found
        for kind in ("same_file", "eventfd"):
            assert found[kind].endswith(f"/{FILES}"), found


def test_a_leader_that_leaves_a_private_table(guest: Guest) -> None:
    """The table shown is that of the first remaining thread, even if it is a private one."""
    for backend in backends(guest):
        found = lives(guest, backend, "leader", 5)
        assert found == {"rounds": "5", "before": "shared", "shown": "private"}
