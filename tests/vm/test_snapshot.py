"""A guest that was saved and restored: its own data, the data that survives, and the verdict."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from kbuild.guest import qemu, snapshot
from kbuild.guest.guest import Guest, GuestLost
from kbuild.guest.outcome import MODULE_TAINT, Outcome
from kbuild.guest.snapshot import Provision
from kbuild.guest.spec import MISBEHAVE, TCG, Snapshot
from tests.vm.conftest import BEFORE_SAVE

WARN_TAINT = 1 << 9


@pytest.fixture
def workdir(request: pytest.FixtureRequest, logs: Path) -> Path:
    """The directory for the consoles of this test's guests."""
    return logs / "test_snapshot" / str(request.node.name)


def random_numbers(guest: Guest) -> bytes:
    """Return random numbers for programs, and one that the kernel draws for itself (a UUID)."""
    return guest.run(["head", "-c32", "/dev/urandom"], timeout_s=10).stdout + guest.read(
        "/proc/sys/kernel/random/uuid"
    )


def test_a_restored_guest_is_the_one_that_was_saved(kept: Snapshot, workdir: Path) -> None:
    with Guest.restore(kept, workdir=workdir) as guest:
        assert guest.release == kept.spec.kernel.release
        path, content = BEFORE_SAVE
        assert guest.read(path) == content
        # QEMU has no way to the snapshot but the files that it was handed.
        status = Path(f"/proc/{guest.machine.pid}/status").read_text()
        if os.geteuid() == 0 and kept.spec.accelerator is TCG:
            assert f"\nUid:\t{qemu.USER}\t" in status
            assert kept.home.parents[1].stat().st_mode & 0o077 == 0
        # The other guests do not see its writes.
        guest.put(b"after", "/root/after")
        assert guest.shutdown().passed
    with Guest.restore(kept, workdir=workdir) as guest:
        assert guest.run(["test", "-e", "/root/after"], timeout_s=10).status == 1
        assert guest.shutdown().passed


def test_the_channel_carries_both_ways_after_a_restore(kept: Snapshot, workdir: Path) -> None:
    data = os.urandom(3_000_000)
    with Guest.restore(kept, workdir=workdir) as guest:
        # The second port, if the kernel has its driver, loses no byte.
        assert guest.port == kept.port
        guest.put(data, "/tmp/data")
        assert guest.read("/tmp/data") == data
        assert guest.channel.junk == 0
        # A ping uses the serial port.
        guest.require_answer()
        assert guest.shutdown().passed


def test_guests_of_one_snapshot_at_once_have_random_numbers_of_their_own(
    kept: Snapshot, workdir: Path
) -> None:
    with ExitStack() as stack:
        # QEMU ends with the thread that started it, so the pool outlives the guests.
        pool = stack.enter_context(ThreadPoolExecutor())
        places = [workdir / str(number) for number in range(3)]
        guests = list(pool.map(lambda place: Guest.restore(kept, workdir=place), places))
        for guest in guests:
            stack.callback(guest.shutdown)
        # They have the same memory and the same boot.
        assert len({guest.boot_id for guest in guests}) == 1
        assert len({random_numbers(guest) for guest in guests}) == len(guests)
        for guest in guests:
            verdict = guest.shutdown()
            assert verdict.passed, verdict


def test_the_clock_is_the_hosts_and_monotonic_time_goes_on(kept: Snapshot, workdir: Path) -> None:
    with Guest.restore(kept, workdir=workdir) as guest:
        before = time.time()
        seen = float(guest.run(["date", "+%s.%N"], timeout_s=10, check=True).text)
        after = time.time()
        # The save is longer ago, so the clock of that time would be noticed.
        assert before - 1 < seen < after + 1
        first, second = (float(guest.read("/proc/uptime").split()[0]) for _ in range(2))
        assert 0 < first <= second
        began = time.monotonic()
        guest.run(["sleep", "2"], timeout_s=20, check=True)
        assert time.monotonic() - began >= 1.9
        # Devices from before the save still work: the timer above, and the disk.
        guest.run(["sh", "-c", "echo 3 >/proc/sys/vm/drop_caches"], timeout_s=20, check=True)
        path, content = BEFORE_SAVE
        assert guest.read(path) == content
        assert guest.shutdown().passed


def test_a_restored_guest_is_judged_as_strictly_as_a_booted_one(
    kept: Snapshot, workdir: Path
) -> None:
    module = MISBEHAVE.format(release=kept.spec.kernel.release)
    for what, taint, outcome in (
        ("warn", WARN_TAINT | MODULE_TAINT, Outcome.WARNED),
        ("nothing", 0, Outcome.TAINTED),
    ):
        guest = Guest.restore(kept, workdir=workdir / what, expected_taint=taint)
        guest.run(["insmod", module, f"what={what}"], timeout_s=20)
        assert guest.shutdown().outcome is outcome
    with Guest.restore(kept, workdir=workdir / "panic") as guest:
        with pytest.raises(GuestLost) as lost:
            guest.run(["sh", "-c", "echo c >/proc/sysrq-trigger"], timeout_s=20)
        assert lost.value.outcome is Outcome.CRASHED
        # The console is complete, from the kernel's first line to its last.
        text = guest.console()
    assert text.index("Linux version") < text.index("cplayground-mark: restored")
    assert text.index("cplayground-mark: restored") < text.index("sysrq triggered crash")


def test_a_guest_that_warned_is_not_saved(kept: Snapshot, tmp_path: Path) -> None:
    module = MISBEHAVE.format(release=kept.spec.kernel.release)

    def warn(guest: Guest) -> None:
        guest.run(["insmod", module, "what=warn"], timeout_s=20)

    bad = Provision({"bad": "1"}, warn)
    with pytest.raises(GuestLost, match="not fit to be saved"):
        snapshot.ensure(tmp_path, kept.spec, workdir=tmp_path / "log", provision=bad)
    assert not [path for path in (tmp_path / "snapshots").iterdir() if path.is_dir()]
