"""The costs of a reading that must not grow with the listing: memory, and the length of a step."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from kbuild.core.model import MODULE, PROCFILE
from kbuild.guest.guest import Background, Guest
from kbuild.guest.programs import PLACE
from tests.vm.module import PEEK, backends, kernel_log, load, loaded_with, topology

MILLION = 1 << 20  # fs.nr_open, and so the size of the largest table by default
CGROUP = "/sys/fs/cgroup/reader"
# One reader: 64 KiB of text, 16 KiB for paths, the state, and an open file.
READER_BYTES = 96 << 10
# The kernel charges memory in batches of 64 pages for each CPU.
BATCH_BYTES = 2 * 64 * 4096
# The limit for a reader on kernels without memory.peak.
LIMIT_BYTES = 4 << 20


@dataclass(frozen=True)
class Counted:
    """The result of reading the whole file; memory is the increase since the beginning."""

    bytes: int
    records: int
    descriptors: int
    highest: int
    slab_kib: int
    vmalloc_kib: int
    peak_bytes: int  # of all memory of the reader's cgroup; LIMIT_BYTES: at most that


@contextlib.contextmanager
def cgroup(guest: Guest) -> Iterator[list[str]]:
    """Make an empty memory cgroup, and yield the words that run a command in it."""
    script = (
        f"echo +memory >/sys/fs/cgroup/cgroup.subtree_control && mkdir {CGROUP} && cat"
        f" {CGROUP}/memory.current"
    )
    assert guest.run(["sh", "-c", script], timeout_s=5, check=True).text == "0\n"
    try:
        yield ["sh", "-c", f'echo $$ >{CGROUP}/cgroup.procs && exec "$@"', "sh"]
    finally:
        guest.run(["rmdir", CGROUP], timeout_s=5, check=True)


def count(guest: Guest) -> Counted:
    """Read the whole file in a cgroup of its own."""
    with cgroup(guest) as inside:
        # memory.peak came with Linux 5.19.  Earlier kernels get a limit instead, and kill a
        # reader that needs more.
        known = guest.run(["test", "-e", f"{CGROUP}/memory.peak"], timeout_s=5).status == 0
        if not known:
            limit = f"echo {LIMIT_BYTES} >{CGROUP}/memory.max"
            guest.run(["sh", "-c", limit], timeout_s=5, check=True)
        argv = [*inside, f"{PLACE}/observe_reads", PROCFILE, "count", "65536"]
        words = guest.run(argv, timeout_s=60, check=True).text.split()
        peak = int(guest.read(f"{CGROUP}/memory.peak")) if known else LIMIT_BYTES
    total, records, descriptors, highest, slab, vmalloc = (int(word) for word in words)
    return Counted(total, records, descriptors, highest, slab, vmalloc, peak)


def test_memory_does_not_grow_with_the_listing(loaded: Guest) -> None:
    """The original module's buffer grew with its output."""
    with topology(loaded, "full-table", "1000"):
        small = count(loaded)
    with topology(loaded, "full-table", str(MILLION)):
        large = count(loaded)
    print(f"{small}\n{large}")
    assert (small.records, small.descriptors, small.highest) == (1, 1000, 999)
    assert (large.records, large.descriptors, large.highest) == (1, MILLION, MILLION - 1)
    assert large.bytes > max(1000 * small.bytes, 10 * LIMIT_BYTES)
    # The module's own memory was counted: more than its buffer, and all of it in the cgroup.
    assert small.peak_bytes > 16 << 10
    assert large.peak_bytes <= small.peak_bytes + BATCH_BYTES
    # Memory without a charge.
    assert large.slab_kib <= small.slab_kib + 1024
    assert large.vmalloc_kib <= small.vmalloc_kib + 1024


def test_memory_of_a_reader(loaded: Guest) -> None:
    """A reader needs about one buffer, even in the middle of a large table."""
    readers = 64
    with topology(loaded, "full-table", "10000"), cgroup(loaded) as inside:
        argv = [*inside, f"{PLACE}/observe_reads", PROCFILE, "hold", str(readers)]
        holder: Background = loaded.start(argv)
        assert holder.read_line(20) == b"closed\n"
        before = int(loaded.read(f"{CGROUP}/memory.current"))
        holder.write(b"x")
        assert holder.read_line(20) == b"open\n"
        after = int(loaded.read(f"{CGROUP}/memory.current"))
        holder.close_stdin()
        holder.wait(20, check=True)
    each = (after - before) / readers
    print(f"{each / 1024:.1f} KiB for each of {readers} readers")
    assert 16 << 10 < each < READER_BYTES


@dataclass(frozen=True)
class Steps:
    """A reader's steps through the bitmap of a table; each step is one hold of a lock."""

    holds: int
    searches: int  # for a next descriptor, the most under one hold
    slots: int  # an upper limit of those searched under one hold


def watch(guest: Guest) -> Steps:
    """Read the file while the module peek watches the reader's locks and searches."""
    before = kernel_log(guest)
    begin = int(guest.read(f"/sys/module/{MODULE}/sections/.text"), 16)
    end = begin + int(guest.read(f"/sys/module/{MODULE}/coresize"))
    options = ["watch=cat", f"text={begin:#x},{end:#x}"]
    guest.run(["insmod", PEEK.format(release=guest.release), *options], timeout_s=20, check=True)
    try:
        guest.run(["sh", "-c", f"exec cat {PROCFILE} >/dev/null"], timeout_s=120, check=True)
    finally:
        guest.run(["rmmod", "peek"], timeout_s=20, check=True)
    said = kernel_log(guest).removeprefix(before)
    (found,) = re.findall(r"peek: holds (\d+) searches (\d+) slots (\d+)", said)
    return Steps(*(int(number) for number in found))


@pytest.fixture
def alone(guest: Guest) -> Iterator[Guest]:
    """The guest with one processor, for the time of peek's probes.

    The probes change the kernel's most frequent functions, and QEMU 7.2 may run a stale
    translation of code that another processor changes: docs/results/qemu.md.
    """
    script = 'for one in /sys/devices/system/cpu/cpu[1-9]*/online; do echo "$1" >"$one"; done'
    guest.run(["sh", "-c", script, "sh", "0"], timeout_s=20, check=True)
    assert guest.read("/sys/devices/system/cpu/online") == b"0\n"
    yield guest
    if guest.alive:
        guest.run(["sh", "-c", script, "sh", "1"], timeout_s=20, check=True)


def test_no_step_grows_with_the_table(alone: Guest) -> None:
    """The original module looked at every slot, even empty ones, under one lock."""
    config = alone.read(f"/boot/config-{alone.release}").decode()
    if "CONFIG_KPROBES=y" not in config:
        pytest.skip("this kernel has no kprobes; Debian's own and ours of its flavours have")
    functions = {line.split()[2] for line in alone.read("/proc/kallsyms").decode().splitlines()}
    if not functions >= {"_raw_spin_lock", "_raw_spin_unlock", "_find_next_bit"}:
        # Linux 5.10 without preemption unlocks inline, so peek would see no end of a hold.
        pytest.skip("this kernel compiles spin_unlock() into its callers")
    tables = [
        ("sparse-table", 1 << 16),
        ("sparse-table", MILLION),
        ("full-table", 1 << 10),
        ("full-table", MILLION),
    ]
    steps = {}
    for scenario, size in tables:
        with topology(alone, scenario, str(size)):
            for backend in backends(alone):
                with loaded_with(alone, f"backend={backend}"):
                    steps[backend, scenario, size] = watch(alone)
    for (backend, scenario, size), one in steps.items():
        print(f"{backend} {scenario} {size}: {one}")
    # A larger table needs more holds, but no longer ones.
    for one in steps.values():
        assert 0 < one.slots <= 1 << 16
        assert 0 < one.searches <= 33
    for backend in backends(alone):
        assert steps[backend, "sparse-table", MILLION].holds >= MILLION >> 16
        assert steps[backend, "sparse-table", MILLION].slots == 1 << 16
        small, large = (steps[backend, "full-table", size] for size in (1 << 10, MILLION))
        # A hold has 32 descriptors.  A kprobe inside another one is not counted.
        assert large.holds > MILLION // 33 > small.holds
        assert large.searches == small.searches


def test_a_long_read_ends_when_it_is_told_to(guest: Guest) -> None:
    """A fatal signal ends it, and so does unloading, which waits only for the end of a step."""
    load(guest)
    with topology(guest, "full-table", "200000"):
        argv = [f"{PLACE}/cut_short", PROCFILE, str(200_000 * 90)]
        result = guest.run(argv, timeout_s=120, check=True)
    print(result.text)
    figures = {}
    for line in result.text.splitlines():
        what, *numbers = line.split()
        figures[what] = tuple(map(int, numbers))
    whole, _, error = figures["whole"]
    assert error == 0
    for what, expected in (("killed", -9), ("unloaded", 5)):
        used, cut, ended_by = figures[what]
        assert ended_by == expected, "a signal is negative; 5 is EIO"
        assert cut < whole / 2
        assert used - cut < whole / 4
    assert guest.run(["test", "-e", PROCFILE], timeout_s=5).status != 0
    assert "buggy" not in kernel_log(guest)
