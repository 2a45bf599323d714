"""Processes and threads that begin or end: each is shown correctly or not at all."""

from __future__ import annotations

import pytest

from kbuild.core.model import PROCFILE
from kbuild.guest.guest import Guest
from kbuild.guest.programs import PLACE
from kbuild.lab import procfile
from kbuild.lab.procfile import Process
from tests.vm.module import (
    backends,
    compare,
    kernel_log,
    listing,
    loaded_with,
    of_container,
    topology,
)

THREADS = 1500  # more than two of the module's bounded walks visit


def test_nested_namespaces(loaded: Guest) -> None:
    """pid, ppid and pgid are those of the innermost namespace, at every depth."""
    with topology(loaded, "nested") as inits:
        shown = compare(loaded)
    by_namespace: dict[str, list[Process]] = {}
    for process in shown:
        by_namespace.setdefault(process.namespace, []).append(process)
    # The container, two namespaces in it, and one in one of these.
    assert len(by_namespace) == 4
    sizes = sorted(len(processes) for processes in by_namespace.values())
    assert sizes == [1, 1, 1, 6]
    for processes in by_namespace.values():
        init = min(processes, key=lambda process: process.ns_pid)
        assert (init.ns_pid, init.ns_ppid) == (1, 0)
        assert init.pid != init.ns_pid
    assert inits["nested"] in {process.pid for process in shown}


def test_a_namespace_whose_init_has_died(loaded: Guest) -> None:
    """The init waits, without files, for a zombie whose parent is outside and does not wait."""
    with topology(loaded, "dying-init"):
        shown = compare(loaded)
        (init,) = (process for process in shown if process.ns_pid == 1 and not process.files)
        _, zombie = of_container(shown, init.pid)
    assert zombie.files == ()
    assert (zombie.ns_pid, zombie.ns_ppid, zombie.ns_pgid) == (2, 0, 0)


def test_a_survivor_of_its_namespace(loaded: Guest) -> None:
    """A process that sleeps uninterruptibly keeps its files in a namespace without an init."""
    with topology(loaded, "frozen-survivor"):
        shown = compare(loaded)
        (init,) = (process for process in shown if process.ns_pid == 1 and not process.files)
        _, survivor = of_container(shown, init.pid)
    assert any(file.path == b"/var/tmp/frozen" for file in survivor.files)
    assert (survivor.ns_pid, survivor.ns_ppid) == (2, 1)
    assert listing(loaded) == ()


def test_dead_threads_before_the_one_with_the_table(loaded: Guest) -> None:
    """With a dead leader and many dead threads, the files are those of the living thread."""
    with topology(loaded, "zombie-threads", str(THREADS)) as inits:
        shown = listing(loaded)
        _, process = of_container(shown, inits["zombie-threads"])
        threads = loaded.run(["ls", f"/proc/{process.pid}/task"], timeout_s=10, check=True)
    assert len(threads.text.split()) == THREADS + 2
    assert any(file.path.endswith(b"/held by the last thread") for file in process.files)


def test_no_kernel_thread_is_shown(loaded: Guest) -> None:
    """This includes the thread of a process that polls its io_uring for the kernel."""
    script = "for s in /proc/[0-9]*/stat; do cat $s; done 2>/dev/null"
    with topology(loaded, "polled-ring") as inits:
        shown = compare(loaded)
        processes = loaded.run(["sh", "-c", script], timeout_s=20).text
        (ring,) = of_container(shown, inits["polled-ring"])
        names = loaded.run(
            ["sh", "-c", f"cat /proc/{ring.pid}/task/*/comm"], timeout_s=10, check=True
        )
    kernel_threads = set()
    for line in processes.splitlines():
        head, _, rest = line.rpartition(")")
        if int(rest.split()[6]) & 0x200000:  # PF_KTHREAD
            kernel_threads.add(int(head.split()[0]))
    assert len(kernel_threads) > 10
    assert not kernel_threads & {process.pid for process in shown}
    if any(b"[io_uring]" in file.path for file in ring.files):
        assert f"iou-sqp-{ring.pid}" in names.text.split()


@pytest.mark.parametrize("where", ["header", "files"])
def test_a_pid_that_is_given_to_another_process(loaded: Guest, where: str) -> None:
    """The record that was begun ends, and has nothing of the new process under its header."""
    result = loaded.run([f"{PLACE}/recycle", PROCFILE, where], timeout_s=60, cwd="/tmp", check=True)
    head, _, text = result.stdout.partition(b"\n")
    pid = int(head.split()[1])
    (process,) = procfile.parse(text)
    assert (process.pid, process.ns_pid) == (pid, 1)
    assert {b"/tmp/old", b"/tmp/new"} & {file.path for file in process.files} == {b"/tmp/old"}
    assert len(process.files) == {"header": 32, "files": 64}[where]


@pytest.mark.parametrize("piece", ["header", "1", "4096", "65536"])
def test_descriptors_that_change_between_two_reads(loaded: Guest, piece: str) -> None:
    """In every way of reading, a batch that was begun is old, and the next one is new."""
    argv = [f"{PLACE}/moment", PROCFILE, piece]
    result = loaded.run(argv, timeout_s=60, cwd="/tmp", check=True)
    (process,) = procfile.parse(result.stdout.partition(b"\n")[2])
    shown = {file.fd: file.path[-3:] for file in process.files if file.fd < 64}
    # The longest read begins both batches before the change.
    begun = 64 if piece == "65536" else 32
    assert shown == {fd: b"old" if fd <= begun else b"new" for fd in range(1, 64)}


def test_reading_leaves_nothing_in_the_log(loaded: Guest) -> None:
    """The original module wrote three lines for each reader."""
    with topology(loaded):
        before = kernel_log(loaded)
        for _ in range(3):
            loaded.read(PROCFILE)
        assert kernel_log(loaded) == before


# The extended fields.


def status(guest: Guest, pid: int) -> dict[str, str]:
    lines = guest.read(f"/proc/{pid}/status").decode(errors="replace").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def mask(*sets: str) -> int:
    """Return a mask with bit n for signal n, up to 31; /proc has bit n-1, in hexadecimal."""
    return sum(1 << n for n in range(1, 32) if any(int(one, 16) >> (n - 1) & 1 for one in sets))


def test_state_and_signals(guest: Guest) -> None:
    """State and signals agree with /proc/PID/status; the original module lost some signals."""
    with topology(guest):
        with loaded_with(guest, "fields=basic"):
            basic = listing(guest)
        with loaded_with(guest, "fields=extended"):
            shown = procfile.parse(guest.read(PROCFILE), extended=True)
            for process in shown:
                said = status(guest, process.pid)
                assert process.extended is not None
                assert process.extended.state == said["State"][0], process
                assert process.extended.blocked == mask(said["SigBlk"]), process
                assert process.extended.pending == mask(said["SigPnd"], said["ShdPnd"]), process
    assert [(p.pid, p.command) for p in shown] == [(p.pid, p.command) for p in basic]
    extended = [(p.command, p.extended) for p in shown if p.extended is not None]
    assert {signals.state for _, signals in extended} >= {"S", "Z", "T"}
    # HUP and SYS are the first and the last signals with a bit.  Signal 64 has none.
    both = 1 << 1 | 1 << 31
    (signals,) = (signals for command, signals in extended if command == b"signals")
    assert (signals.blocked, signals.pending) == (both, both)


def test_each_backend_sees_the_edges_alike(guest: Guest) -> None:
    """The main cases above, with every built-in backend."""
    for backend in backends(guest):
        with loaded_with(guest, f"backend={backend}"):
            with topology(guest, "zombie-threads", str(THREADS)) as inits:
                _, process = of_container(listing(guest), inits["zombie-threads"])
                assert process.files
            with topology(guest, "dying-init", "dead-leader", "thread", "shared-table"):
                compare(guest)
