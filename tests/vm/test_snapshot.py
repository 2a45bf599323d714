"""A guest saved and restored: what has to be its own, what has to survive, and the verdict."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from kbuild.core.model import Kernel
from kbuild.guest import qemu, snapshot
from kbuild.guest.guest import Guest, GuestLost
from kbuild.guest.image import GuestImage
from kbuild.guest.outcome import MODULE_TAINT, Outcome
from kbuild.guest.snapshot import Provision
from kbuild.guest.spec import MISBEHAVE, TCG, Accelerator, GuestSpec, Snapshot

WARN_TAINT = 1 << 9


@pytest.fixture
def workdir(request: pytest.FixtureRequest, logs: Path) -> Path:
    """Where the consoles of this test's guests are kept."""
    return logs / "test_snapshot" / str(request.node.name)


@pytest.fixture(scope="module")
def kept(
    kernel: Kernel,
    guest_image: GuestImage,
    accelerator: Accelerator,
    tmp_path_factory: pytest.TempPathFactory,
) -> Snapshot:
    """A snapshot of a guest that wrote a file, made for these tests alone."""
    spec = GuestSpec(kernel=kernel, disk=guest_image.disk, accelerator=accelerator)
    place = tmp_path_factory.mktemp("snapshot")

    def provision(guest: Guest) -> None:
        guest.put(b"written before the save", "/root/before")

    return snapshot.ensure(
        place, spec, workdir=place / "log", provision=Provision({"file": "1"}, provision)
    )


def random_numbers(guest: Guest) -> bytes:
    """Return what a program gets of the kernel, and what the kernel itself draws (a UUID)."""
    return guest.run(["head", "-c32", "/dev/urandom"], timeout_s=10).stdout + guest.read(
        "/proc/sys/kernel/random/uuid"
    )


def test_a_restored_guest_is_the_one_that_was_saved(kept: Snapshot, workdir: Path) -> None:
    with Guest.restore(kept, workdir=workdir) as guest:
        assert guest.release == kept.spec.kernel.release
        assert guest.read("/root/before") == b"written before the save"
        # QEMU came to it by nothing but open files: pytest's directories are for us only
        status = Path(f"/proc/{guest.machine.pid}/status").read_text()
        if os.geteuid() == 0 and kept.spec.accelerator is TCG:
            assert f"\nUid:\t{qemu.USER}\t" in status
            assert kept.home.parents[2].stat().st_mode & 0o077 == 0
        # what it writes is its own
        guest.put(b"after", "/root/after")
        assert guest.shutdown().passed
    with Guest.restore(kept, workdir=workdir) as guest:
        assert guest.run(["test", "-e", "/root/after"], timeout_s=10).status == 1
        assert guest.shutdown().passed


def test_the_channel_carries_both_ways_after_a_restore(kept: Snapshot, workdir: Path) -> None:
    data = os.urandom(3_000_000)
    with Guest.restore(kept, workdir=workdir) as guest:
        # Over the second port where the kernel has its driver, and not a byte of it lost.
        assert guest.port == kept.port
        guest.put(data, "/tmp/data")
        assert guest.read("/tmp/data") == data
        assert guest.channel.junk == 0
        # and the serial port, which a ping takes
        guest.require_answer()
        assert guest.shutdown().passed


def test_guests_of_one_snapshot_at_once_have_random_numbers_of_their_own(
    kept: Snapshot, workdir: Path
) -> None:
    with ExitStack() as stack:
        # A QEMU ends with the thread that started it.
        pool = stack.enter_context(ThreadPoolExecutor())
        places = [workdir / str(number) for number in range(3)]
        guests = list(pool.map(lambda place: Guest.restore(kept, workdir=place), places))
        for guest in guests:
            stack.callback(guest.shutdown)
        # nothing but the restore stands between them: the same memory, the same boot
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
        # The save was longer ago than this: an older clock would show.
        assert before - 1 < seen < after + 1
        first, second = (float(guest.read("/proc/uptime").split()[0]) for _ in range(2))
        assert 0 < first <= second
        began = time.monotonic()
        guest.run(["sleep", "2"], timeout_s=20, check=True)
        assert time.monotonic() - began >= 1.9
        # devices that were set up before the save still work: the timer above, and the disk
        guest.run(["sh", "-c", "echo 3 >/proc/sys/vm/drop_caches"], timeout_s=20, check=True)
        assert guest.read("/root/before") == b"written before the save"
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
        # the console is whole: from the kernel's first line to its last
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
