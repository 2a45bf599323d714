"""Where one life ends and another begins: parents, ids and tables are still the right ones."""

from __future__ import annotations

from kbuild.core.model import PROCFILE
from kbuild.guest.guest import Guest
from kbuild.guest.programs import PLACE
from kbuild.lab import traces
from tests.vm.module import backends, loaded_with

EXECS = 500
FAMILIES = 500  # parents that end as soon as they have children
CONTAINERS = 40
READINGS = 20
FILES = 20


def lives(guest: Guest, backend: str, case: str, rounds: int) -> dict[str, str]:
    """Run a case of kbuild/lab/programs/lives.c, and give what it counted."""
    with loaded_with(guest, f"backend={backend}"):
        argv = [f"{PLACE}/lives", PROCFILE, case, str(rounds)]
        result = guest.run(argv, timeout_s=60, cwd="/tmp", check=True)
    print(f"backend {backend}, {case}: {result.text.strip()}, in {result.seconds:.1f} s")
    return traces.figures(result.text)


def numbers(counted: dict[str, str]) -> dict[str, int]:
    return {key: int(value) for key, value in counted.items()}


def test_a_thread_that_calls_execve(armed: Guest) -> None:
    """The process keeps pid, parent, group and table, while another thread takes its place."""
    for backend in backends(armed):
        found = numbers(lives(armed, backend, "exec", EXECS))
        assert found["execs"] >= EXECS
        assert found["headers"] >= EXECS
        assert (found["wrong"], found["missing"], found["bare"]) == (0, 0, 0), found


def test_children_whose_parents_end(armed: Guest) -> None:
    """Each shows the old parent or the new one.  A ppid of 0 would be one outside."""
    for backend in backends(armed):
        found = numbers(lives(armed, backend, "reaped", FAMILIES))
        assert found["families"] >= FAMILIES
        assert found["headers"] >= FAMILIES
        assert (found["wrong"], found["group"]) == (0, 0), found


def test_containers_one_after_another(armed: Guest) -> None:
    """No container has the id of an earlier one, for a reader that stays and for a new one."""
    for backend in backends(armed):
        found = numbers(lives(armed, backend, "series", CONTAINERS))
        assert found == {"containers": CONTAINERS, "repeated": 0, "differ": 0}


def test_containers_that_change_within_a_reading(armed: Guest) -> None:
    """One ends after it was shown, one begins before the reader goes on: they have two ids."""
    for backend in backends(armed):
        found = numbers(lives(armed, backend, "between", READINGS))
        assert found == {"rounds": READINGS, "shown": READINGS, "repeated": 0}


def test_files_with_inodes_of_their_own(armed: Guest) -> None:
    """A new one never has the id of an earlier one.

    One that is opened again from the same inode may: the same file, and whatever shares the
    kernel's anonymous inode, as each eventfd does.
    """
    for backend in backends(armed):
        found = lives(armed, backend, "files", FILES)
        for kind in ("pipe", "socket", "memfd"):
            assert found[kind] == f"0/{FILES}", found
        for kind in ("same_file", "eventfd"):
            assert found[kind].endswith(f"/{FILES}"), found


def test_a_leader_that_leaves_a_private_table(armed: Guest) -> None:
    """The table is that of the first thread that is left, also where that one's is private."""
    for backend in backends(armed):
        found = lives(armed, backend, "leader", 5)
        assert found == {"rounds": "5", "before": "shared", "shown": "private"}
