"""A server's boot with a fake QEMU: what is seen of it, and what makes it fail."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kbuild.gate import machine
from kbuild.gate.machine import Boot, Command, Running
from kbuild.guest import qemu
from kbuild.guest.guest import Guest, GuestLost
from kbuild.guest.outcome import End, Outcome
from kbuild.guest.spec import TCG, Accelerator, ServerSpec

SLOW, FAST = Accelerator("tcg", 1.0), Accelerator("tcg", 0.05)


def boot(tmp_path: Path, commands: Sequence[Command] = (), accelerator: Accelerator = SLOW) -> Boot:
    disk = tmp_path / "disk.img"
    disk.touch()
    spec = ServerSpec(disk=disk, cpus=2, accelerator=accelerator)
    return machine.boot(spec, commands, workdir=tmp_path / "w", expected_taint=0)


def test_a_server_boots_from_its_disk_and_has_one_way_out(tmp_path: Path) -> None:
    spec = ServerSpec(disk=tmp_path / "disk.img", network=Path("/proc/1/fd/9"), accelerator=TCG)
    words = qemu.command(spec, qemu.Wires(3, 4, 5, 6))
    assert not {"-kernel", "-initrd", "-append"} & set(words)
    # A reset in QEMU takes minutes under TCG.
    assert "-no-reboot" in words
    assert words[words.index("-netdev") + 1] == "user,id=net,ipv6=off"
    assert words[words.index("-smp") + 1] == "1"
    # The server's own changes are lost.
    assert words[words.index("-drive") + 1].endswith(",snapshot=on")


def test_a_server_without_a_namespace_reaches_nothing(tmp_path: Path) -> None:
    words = qemu.command(ServerSpec(disk=tmp_path / "disk.img"), qemu.Wires(3, 4, 5, 6))
    assert words[words.index("-netdev") + 1].endswith(",restrict=on")


def test_changes_are_kept_in_a_file_of_their_own(tmp_path: Path) -> None:
    spec = ServerSpec(disk=tmp_path / "disk.img", changes=tmp_path / "a,b")
    words = qemu.command(spec, qemu.Wires(3, 4, 5, 6))
    assert words[words.index("-drive") + 1] == (
        f"file={tmp_path}/a,,b,format=qcow2,backing.driver=raw,"
        f"backing.file.filename={tmp_path}/disk.img,if=none,id=disk"
    )


def test_a_good_server_passes(behave: Path, tmp_path: Path) -> None:
    seen = boot(tmp_path, [Command(("work",)), Command(("sh",), status=None)])
    assert seen.passed, seen.verdict
    assert (seen.release, seen.state, seen.failed, seen.taint) == ("6.1.0-fake", "running", (), 0)
    assert seen.cmdline == "BOOT_IMAGE=/boot/vmlinuz root=UUID=1"
    assert [one.status for one in seen.results] == [0, 1]
    times = [seen.first_line_s, seen.report_s, seen.done_s, seen.off_s]
    assert all(isinstance(one, float) for one in times)
    assert times == sorted(times, key=float)  # type: ignore[arg-type]
    assert seen.console.read_text()


@pytest.mark.parametrize(
    ("behaviour", "outcome", "reason"),
    [
        ("silent console", Outcome.NO_OUTPUT, "wrote nothing"),
        ("oops", Outcome.CRASHED, "NULL pointer"),
        ("dies", Outcome.KILLED, "SIGKILL"),
        ("reset", Outcome.NO_POWER_OFF, "did not power itself off"),
        ("tainted", Outcome.TAINTED, r"tainted \(W\)"),
        ("failed unit", Outcome.FAILED, "systemd is degraded, not running; .*: ssh.service"),
        ("never settles", Outcome.FAILED, "is-system-running --wait did not end in"),
        ("no process", Outcome.BLIND, "Resource temporarily unavailable"),
        ("garbled exit", Outcome.GARBLED, "a frame EXIT"),
    ],
)
def test_each_fault_has_its_outcome_and_a_reason(
    behave: Path, tmp_path: Path, behaviour: str, outcome: Outcome, reason: str
) -> None:
    behave.write_text(behaviour)
    seen = boot(tmp_path, [Command(("work",))])
    assert seen.verdict.outcome is outcome, seen.verdict
    assert any(re.search(reason, one) for one in seen.verdict.reasons)


@pytest.mark.parametrize("behaviour", ["hang", "deaf"])
def test_a_server_that_hangs_is_stopped(behave: Path, tmp_path: Path, behaviour: str) -> None:
    behave.write_text(behaviour)
    seen = boot(tmp_path, [Command(("work",), 1.0), Command(("work",), 1.0)], FAST)
    assert seen.verdict.outcome is Outcome.HUNG, seen.verdict
    assert seen.results == ()


def test_a_boot_loader_that_waits_is_not_waited_for(behave: Path, tmp_path: Path) -> None:
    behave.write_text("waits in the boot loader")
    (tmp_path / "disk.img").touch()
    spec = ServerSpec(disk=tmp_path / "disk.img", accelerator=FAST)
    with pytest.raises(GuestLost, match="no kernel has written its first line in time") as caught:
        Guest.boot(spec, workdir=tmp_path / "w")
    assert caught.value.outcome is Outcome.NO_OUTPUT


def test_a_command_that_fails_is_named_and_the_others_run(behave: Path, tmp_path: Path) -> None:
    seen = boot(tmp_path, [Command(("sh",)), Command(("work",), status=3), Command(("work",))])
    assert seen.verdict.outcome is Outcome.FAILED
    assert seen.verdict.reasons == ("sh: exit status 1: done", "work: exit status 0: done")
    assert [one.status for one in seen.results] == [1, 0, 0]


def test_only_a_server_with_a_watchdog_has_one(tmp_path: Path) -> None:
    wires = qemu.Wires(3, 4, 5, 6)
    without = qemu.command(ServerSpec(disk=tmp_path / "disk.img"), wires)
    words = qemu.command(ServerSpec(disk=tmp_path / "disk.img", watchdog=True), wires)
    assert set(words) - set(without) == {"i6300esb", "-action", "watchdog=reset"}


@contextlib.contextmanager
def running(tmp_path: Path, cut_at: str | None = None) -> Iterator[Running]:
    (tmp_path / "disk.img").touch()
    spec = ServerSpec(disk=tmp_path / "disk.img", cpus=2, accelerator=SLOW)
    cut = None if cut_at is None else re.compile(cut_at)
    workdir = tmp_path / "w"
    with machine.running(spec, workdir, expected_taint=0, cut_at=cut) as server:
        yield server


@pytest.mark.parametrize(
    ("behaviour", "end"),
    [
        ("good", End.OFF),
        ("is reset", End.RESET),
        ("is reset by its watchdog", End.WATCHDOG),
        ("hang", End.CUT),
        ("deaf", End.CUT),
        ("dies", End.LOST),
    ],
)
def test_the_end_of_a_boot_is_told_from_others(
    behave: Path, tmp_path: Path, behaviour: str, end: End
) -> None:
    behave.write_text(behaviour)
    seen = boot(tmp_path, [Command(("work",), 1.0)], FAST if end is End.CUT else SLOW)
    assert seen.end is end
    assert seen.passed is (end is End.OFF)
    assert seen.off_s is not None
    assert seen.started == ("6.1.0-fake",)


def test_the_power_is_cut_at_a_line_of_the_console(behave: Path, tmp_path: Path) -> None:
    behave.write_text("floods the console")
    with running(tmp_path, cut_at="noise") as server:
        began = time.monotonic()
        assert server.run(Command(("work",), 60.0)) is None
        assert time.monotonic() - began < 30
        seen = server.finish()
    assert seen.end is End.CUT
    assert not seen.passed


def test_the_end_of_a_server_can_be_waited_for(behave: Path, tmp_path: Path) -> None:
    behave.write_text("good")
    with running(tmp_path) as server:
        assert not server.wait_end(0.1)
        assert server.finish().end is End.OFF
        assert server.wait_end(60.0)
