"""The harness with guests that misbehave on purpose: each misdeed has an outcome of its own.

One kernel is enough, Debian's own if the image has it, because nothing of ours is tried here.
Guests are restored from its snapshot, but for the tests of a boot.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild.core.errors import InfrastructureError
from kbuild.core.model import Kernel, Settings
from kbuild.guest import image, qemu, session
from kbuild.guest.channel import Frame, Kind, encode
from kbuild.guest.guest import Guest, GuestCommandError, GuestLost
from kbuild.guest.image import GuestImage
from kbuild.guest.outcome import MODULE_TAINT, Outcome
from kbuild.guest.spec import MISBEHAVE, TCG, GuestSpec, Snapshot
from tests.guests import judge_command
from tests.vm.conftest import Save

WARN_TAINT = 1 << 9
# The deadline of tests that wait for silence; a booted guest answers in this time.
SILENCE_S = 3.0


@pytest.fixture(scope="module")
def saved(guest_image: GuestImage, save: Save) -> Snapshot:
    """The snapshot of Debian's kernel, or of the only kernel in the image."""
    return save(min(guest_image.kernels, key=image.is_ours))


@pytest.fixture(scope="module")
def spec(saved: Snapshot) -> GuestSpec:
    """The spec of the guests in this file."""
    return saved.spec


@pytest.fixture
def workdir(request: pytest.FixtureRequest, spec: GuestSpec, logs: Path) -> Path:
    """The directory for the console of this test's guest."""
    return logs / "test_harness" / spec.kernel.release / str(request.node.name)


def misbehave(spec: GuestSpec, what: str) -> list[str]:
    return ["insmod", MISBEHAVE.format(release=spec.kernel.release), f"what={what}"]


def test_a_good_guest_passes_and_does_what_it_is_asked(spec: GuestSpec, workdir: Path) -> None:
    with Guest.boot(spec, workdir=workdir) as guest:
        assert guest.release == spec.kernel.release
        assert guest.read("/sys/devices/system/cpu/online") == b"0-1\n"
        # Separate streams, the status, standard input, the environment.
        script = 'cat; echo "$WHO" >&2; exit 3'
        result = guest.run(
            ["sh", "-c", script], timeout_s=5, stdin=b"in", env={"WHO": "me"}, cwd="/tmp"
        )
        assert (result.status, result.stdout, result.stderr) == (3, b"in", b"me\n")
        assert guest.run(["sh", "-c", "kill -9 $$"], timeout_s=5).status == -9
        assert guest.run(["/nowhere"], timeout_s=5).status == 127
        # More bytes than any buffer on the way, in both directions.
        data = os.urandom(3_000_000)
        guest.put(data, "/tmp/data", mode=0o640)
        assert guest.read("/tmp/data") == data
        assert guest.run(["stat", "-c%a", "/tmp/data"], timeout_s=5).text == "640\n"
        # A procfile has the size 0.
        assert guest.read("/proc/version").startswith(b"Linux version " + guest.release.encode())
        # A command that runs next to others.
        echo = guest.start(["cat"])
        echo.write(b"one\ntwo")
        assert echo.read_line(5) == b"one\n"
        assert guest.run(["true"], timeout_s=5).status == 0
        echo.close_stdin()
        assert echo.wait(5).stdout == b"two"
        # A time limit is enforced, and the guest stays alive.
        with pytest.raises(GuestCommandError, match="did not end in"):
            guest.run(["sleep", "600"], timeout_s=0.1)
        # A command with a terminal.
        assert guest.start(["tty"], pty=True).wait(5).stdout.startswith(b"/dev/pts/")
        # A command's output is not on the console.
        guest.run(["sh", "-c", "echo shown nowhere; echo nor this >&2"], timeout_s=5, check=True)
        guest.mark("and a mark that is shown")
        assert "and a mark that is shown" in guest.console()
        assert "shown nowhere" not in guest.console()
        verdict = guest.shutdown()
    assert verdict.passed, verdict


@pytest.mark.parametrize(
    ("argv", "outcome"),
    [
        pytest.param(lambda _: ["sh", "-c", "exit 7"], Outcome.FAILED, id="exit-status-7"),
        pytest.param(
            lambda _: ["sh", "-c", "echo c > /proc/sysrq-trigger"], Outcome.CRASHED, id="sysrq-c"
        ),
        pytest.param(lambda spec: misbehave(spec, "oops"), Outcome.CRASHED, id="oops"),
        pytest.param(lambda spec: misbehave(spec, "warn"), Outcome.WARNED, id="warn"),
        pytest.param(lambda spec: misbehave(spec, "lockup"), Outcome.HUNG, id="kernel-loops"),
        pytest.param(
            lambda _: ["sh", "-c", "echo o > /proc/sysrq-trigger; sleep 60"],
            Outcome.NO_POWER_OFF,
            id="no-orderly-power-off",
        ),
    ],
)
def test_each_misbehaviour_has_its_outcome(
    saved: Snapshot, workdir: Path, argv: Callable[[GuestSpec], list[str]], outcome: Outcome
) -> None:
    def start() -> Guest:
        guest = Guest.restore(saved, workdir=workdir, expected_taint=MODULE_TAINT | WARN_TAINT)
        guest.run(["sysctl", "-qw", "kernel.watchdog_thresh=3"], timeout_s=5, check=True)
        return guest

    result, verdict = judge_command(start, argv(saved.spec), timeout_s=60)
    assert verdict.outcome is outcome, verdict
    if outcome is Outcome.FAILED:
        assert result is not None
        assert result.status == 7


def test_a_processor_that_does_not_start_is_noticed(spec: GuestSpec, workdir: Path) -> None:
    with pytest.raises(InfrastructureError, match="all of its processors") as caught:
        Guest.boot(dataclasses.replace(spec, append=("nr_cpus=1",)), workdir=workdir)
    assert caught.value.found == "1 online"


def test_qemu_is_a_user_without_privileges(spec: GuestSpec, workdir: Path) -> None:
    with Guest.boot(spec, workdir=workdir) as guest:
        status = Path(f"/proc/{guest.machine.pid}/status").read_text()
        fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
        # Seccomp 2 is a filter of system calls.
        assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
        if os.geteuid() == 0 and spec.accelerator is TCG:
            assert fields["Uid"].split() == fields["Gid"].split() == [str(qemu.USER)] * 4
            assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
        limits = Path(f"/proc/{guest.machine.pid}/limits").read_text()
        assert re.search(r"^Max file size +\d+", limits, re.M)
        # QEMU can write the changes to the guest's disk, to a file without a name.
        guest.put(os.urandom(20_000_000), "/root/much")
        guest.run(["sync"], timeout_s=20, check=True)
        assert not (workdir / "scratch").exists()
        assert guest.shutdown().passed


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        ("echo c >/proc/sysrq-trigger", Outcome.CRASHED),
        ("reboot", Outcome.NO_POWER_OFF),
        ("poweroff", Outcome.NO_POWER_OFF),
    ],
)
def test_the_last_words_of_a_command_are_kept(
    saved: Snapshot, workdir: Path, end: str, outcome: Outcome
) -> None:
    guest = Guest.restore(saved, workdir=workdir)
    with pytest.raises(GuestLost) as lost:
        guest.run(["sh", "-c", f"echo last words; echo on both >&2; {end}"], timeout_s=20)
    assert lost.value.outcome is outcome
    assert lost.value.words == b"last words\non both\n"


def test_a_command_is_given_our_streams(
    spec: GuestSpec,
    guest_image: GuestImage,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    data = os.urandom(1_000_000)
    (tmp_path / "stdin").write_bytes(data)
    with (tmp_path / "stdin").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        status = session.run(
            settings,
            guest_image,
            variant="release",
            command="cat; echo a complaint >&2; exit 7",
            stock=not image.is_ours(spec.kernel),
            accel=spec.accelerator.name,
        )
    assert status == 7
    shown, complained = capfdbinary.readouterr()
    assert shown == data
    assert b"a complaint\n" in complained


def test_what_goes_wrong_in_a_command_is_its_own_fault(
    spec: GuestSpec, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(spec, memory_mib=384)
    with Guest.boot(small, workdir=workdir) as guest:
        # Memory runs out.
        killed = guest.run(["tail", "/dev/zero"], timeout_s=60)
        assert killed.status == -9
        assert re.fullmatch(r"Out of memory: Killed process \d+ \(tail\)", killed.oom)
        # Endless output, of the command itself and of a process that it leaves behind.
        monkeypatch.setattr("kbuild.guest.channel.MAX_OUTPUT", 1 << 20)
        with pytest.raises(GuestCommandError, match="printed more than"):
            guest.run(["yes"], timeout_s=60)
        left = guest.run(["sh", "-c", "(setsid yes &); echo main"], timeout_s=20, check=True)
        assert b"main\n" in left.stdout
        guest.run(["sh", "-c", "kill -9 $(pidof yes)"], timeout_s=20)
        assert guest.shutdown().passed


def test_a_guest_without_free_processes_says_so(saved: Snapshot, workdir: Path) -> None:
    with Guest.restore(saved, workdir=workdir) as guest:
        # Each child waits for a writer of the pipe.
        script = "echo 350 >/proc/sys/kernel/pid_max; mkfifo p; while :; do (: <p) & done"
        guest.run(["sh", "-c", script], timeout_s=60, cwd="/tmp")
        verdict = guest.shutdown()
    assert verdict.outcome is Outcome.BLIND, verdict
    assert "no process: Resource temporarily unavailable" in verdict.reasons[0]
    # The guest was powered off in order nevertheless.
    assert [reason for reason in verdict.reasons if "power" in reason or "farewell" in reason] == []


def test_a_console_that_is_flooded_ends_the_guest(
    saved: Snapshot, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kbuild.guest.console.LIMIT", 200_000)
    guest = Guest.restore(saved, workdir=workdir)
    with pytest.raises(GuestLost) as lost:
        guest.run(["sh", "-c", "while :; do echo noise; done >/dev/kmsg"], timeout_s=60)
    assert lost.value.outcome is Outcome.FLOODED


def test_a_frame_that_makes_no_sense_is_an_outcome(saved: Snapshot, workdir: Path) -> None:
    guest = Guest.restore(saved, workdir=workdir)
    # One of these has the number of the command that sends them.
    frames = b"".join(encode(Frame(Kind.EXIT, number, b"abc")) for number in range(100))
    guest.put(frames, "/tmp/frames")
    with pytest.raises(GuestLost) as lost:
        guest.run(["sh", "-c", "cat /tmp/frames >/dev/ttyS1; sleep 60"], timeout_s=20)
    assert lost.value.outcome is Outcome.GARBLED


def test_a_container_can_be_tried_by_hand(saved: Snapshot, workdir: Path) -> None:
    with Guest.restore(saved, workdir=workdir) as guest:
        script = "mount -t tmpfs none /mnt && mountpoint /mnt && umount /mnt && which reboot"
        guest.run(
            ["unshare", "--mount", "--pid", "--fork", "sh", "-c", script], timeout_s=20, check=True
        )
        assert guest.shutdown().passed


def test_an_unexpected_taint_is_noticed(saved: Snapshot, workdir: Path) -> None:
    guest = Guest.restore(saved, workdir=workdir)
    # The module refused its load, but it was in the kernel.
    guest.run(misbehave(saved.spec, "nothing"), timeout_s=10)
    verdict = guest.shutdown()
    assert verdict.outcome is Outcome.TAINTED, verdict
    assert "(OE)" in verdict.reasons[0]


def test_an_agent_that_loops_for_ever_is_a_hang(saved: Snapshot, workdir: Path) -> None:
    guest = Guest.restore(saved, workdir=workdir)
    guest.answer_s = SILENCE_S
    guest.machine.control.sendall(encode(Frame(Kind.LOOP, 0)))
    with pytest.raises(GuestLost) as lost:
        guest.run(["true"], timeout_s=0.1)
    assert lost.value.outcome is Outcome.HUNG
    assert lost.value.exit_status == Outcome.HUNG.exit_status
    assert re.search(r"CPU#0 at [0-9a-f]{16}.*, CPU#1 at [0-9a-f]{16}", str(lost.value))
    assert guest.shutdown().outcome is Outcome.HUNG
    assert not guest.alive


def test_a_guest_killed_from_outside_is_named(saved: Snapshot, workdir: Path) -> None:
    guest = Guest.restore(saved, workdir=workdir)
    os.kill(guest.machine.pid, signal.SIGKILL)
    with pytest.raises(GuestLost) as lost:
        guest.run(["true"], timeout_s=5)
    assert lost.value.outcome is Outcome.KILLED
    # Later requests get the same answer.
    with pytest.raises(GuestLost):
        guest.read("/proc/version")


def test_a_kernel_without_a_console_proves_nothing(spec: GuestSpec, workdir: Path) -> None:
    mute = dataclasses.replace(spec, console="")
    result, verdict = judge_command(
        lambda: Guest.boot(mute, workdir=workdir), ["true"], timeout_s=5
    )
    assert result is not None
    assert result.status == 0
    assert verdict.outcome is Outcome.NO_OUTPUT, verdict


def test_a_kernel_that_is_none_says_nothing(spec: GuestSpec, workdir: Path, tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    # A file with a kernel's header, and an endless loop instead of the kernel's code.
    real = (spec.kernel.root / "boot" / f"vmlinuz-{spec.kernel.release}").read_bytes()
    setup = (real[0x1F1] + 1) * 512
    (tmp_path / "boot" / "vmlinuz-none").write_bytes(real[:0x200] + b"\xeb\xfe" * (setup // 2))
    nothing = dataclasses.replace(
        spec, kernel=Kernel("none", "none", tmp_path), slowness=SILENCE_S / 30 / spec.scale
    )
    with pytest.raises(GuestLost) as lost:
        Guest.boot(nothing, workdir=workdir)
    assert lost.value.outcome is Outcome.NO_OUTPUT


def test_a_kernel_file_that_is_missing_is_nobodys_verdict(
    spec: GuestSpec, workdir: Path, tmp_path: Path
) -> None:
    absent = dataclasses.replace(spec, kernel=Kernel("absent", "none", tmp_path))
    with pytest.raises(InfrastructureError, match="QEMU did not start"):
        Guest.boot(absent, workdir=workdir)
