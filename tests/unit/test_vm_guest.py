"""QEMU's command line, and a guest's life with a fake QEMU."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild.core import suites
from kbuild.core.errors import InfrastructureError, UserError
from kbuild.core.model import Kernel, Settings
from kbuild.guest import image, qemu, session
from kbuild.guest.guest import Guest, GuestCommandError, GuestLost, GuestResult
from kbuild.guest.outcome import Outcome
from kbuild.guest.spec import KVM, TCG, Accelerator, GuestSpec
from kbuild.ship import versions
from tests.guests import judge_command

# Short deadlines, because some tests wait for silence.
FAST = Accelerator("tcg", 0.05)


def spec_at(root: Path, **changes: object) -> GuestSpec:
    (root / "boot").mkdir(exist_ok=True)
    for name in ("boot/vmlinuz-6.1.0-fake", "disk.img"):
        (root / name).touch()
        (root / name).chmod(0o644)
    spec = GuestSpec(
        kernel=Kernel("6.1.0-fake", "fake", root), disk=root / "disk.img", accelerator=FAST
    )
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]


def test_the_command_line_is_the_one_that_was_tried(tmp_path: Path) -> None:
    spec = spec_at(tmp_path, accelerator=TCG, append=("watchdog_thresh=3",))
    spec = dataclasses.replace(spec, disk=tmp_path / "a,b.img")
    (tmp_path / "boot" / "initrd.img-6.1.0-fake").touch()
    wires = qemu.Wires(control=3, bulk=4, qmp=5, console=6)
    text = " ".join(qemu.command(spec, wires)).replace(str(tmp_path), "/t")
    assert text == (
        "qemu-system-x86_64"
        " -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
        " -name cplayground-6.1.0-fake -machine pc -accel tcg,thread=multi"
        " -cpu max -smp 2 -m 1024 -nodefaults -no-user-config -no-reboot -display none"
        " -kernel /t/boot/vmlinuz-6.1.0-fake -initrd /t/boot/initrd.img-6.1.0-fake"
        " -append console=ttyS0,115200 root=/dev/vda rootfstype=ext4 rw fsck.mode=skip"
        " init=/usr/lib/cplayground/agent quiet loglevel=7 printk.devkmsg=on panic=-1"
        " oops=panic softlockup_panic=1 random.trust_cpu=on maxcpus=1 watchdog_thresh=3"
        " -drive file=/t/a,,b.img,format=raw,if=none,id=disk,snapshot=on"
        " -device virtio-blk-pci,drive=disk"
        " -object rng-random,id=entropy,filename=/dev/urandom"
        " -device virtio-rng-pci,rng=entropy"
        " -add-fd fd=6,set=1 -chardev file,id=console,path=/dev/fdset/1,append=on"
        " -serial chardev:console"
        " -chardev socket,id=control,fd=3 -serial chardev:control"
        " -device virtio-serial-pci -chardev socket,id=bulk,fd=4"
        " -device virtserialport,chardev=bulk,name=cplayground.control"
        " -chardev socket,id=qmp,fd=5 -mon chardev=qmp,mode=control"
    )


def test_a_guest_without_console_or_initrd_has_neither_option(tmp_path: Path) -> None:
    spec = spec_at(tmp_path, console="", accelerator=KVM)
    argv = qemu.command(spec, qemu.Wires(3, 4, 5, 6))
    assert "-initrd" not in argv
    assert "console=" not in argv[argv.index("-append") + 1]
    # Only QEMU's translation of code needs this.
    assert "maxcpus=" not in argv[argv.index("-append") + 1]
    assert argv[argv.index("-accel") + 1] == "kvm"


def test_a_good_guest_passes(behave: Path, tmp_path: Path) -> None:
    with Guest.boot(spec_at(tmp_path, slowness=20.0), workdir=tmp_path / "w") as guest:
        assert (guest.release, guest.boot_id) == ("6.1.0-fake", "boot-id")
        assert guest.run(["work"], timeout_s=5, check=True).text == "done\n"
        with pytest.raises(GuestCommandError, match="failed: exit status 1"):
            guest.run(["sh"], timeout_s=5, check=True)
        assert guest.alive
        verdict = guest.shutdown()
    assert verdict.passed, verdict
    assert not guest.alive
    assert guest.shutdown() is verdict
    assert (tmp_path / "w" / "qemu.log").read_text().startswith("$ qemu-system-x86_64 ")


@pytest.mark.parametrize(
    ("behaviour", "slowness", "outcome"),
    [
        ("hang", 1.0, Outcome.HUNG),
        ("ignores SIGTERM", 1.0, Outcome.HUNG),
        ("deaf", 4.0, Outcome.HUNG),
        ("oops", 20.0, Outcome.CRASHED),
        ("dies", 20.0, Outcome.KILLED),
        ("silent console", 20.0, Outcome.NO_OUTPUT),
        ("reset", 20.0, Outcome.NO_POWER_OFF),
        ("tainted", 20.0, Outcome.TAINTED),
        ("lockdep off", 20.0, Outcome.BLIND),
        ("kmemleak off", 20.0, Outcome.BLIND),
        ("kcsan off", 20.0, Outcome.BLIND),
        ("leaky", 20.0, Outcome.LEAKED),
        ("garbled hello", 20.0, Outcome.GARBLED),
        ("garbled exit", 20.0, Outcome.GARBLED),
        ("garbled status", 20.0, Outcome.GARBLED),
        ("unasked answer", 20.0, Outcome.GARBLED),
        ("garbled taint", 20.0, Outcome.BLIND),
        ("no process", 20.0, Outcome.BLIND),
    ],
)
def test_each_bad_end_has_its_outcome(
    behave: Path, tmp_path: Path, behaviour: str, slowness: float, outcome: Outcome
) -> None:
    behave.write_text(behaviour)
    spec = spec_at(tmp_path, slowness=slowness)
    _, verdict = judge_command(
        lambda: Guest.boot(spec, workdir=tmp_path / "w"), ["work"], timeout_s=5
    )
    assert verdict.outcome is outcome, verdict


@pytest.mark.parametrize(
    ("behaviour", "checkers", "outcome"),
    [
        ("good", set(), Outcome.PASSED),
        ("good", {"lockdep"}, Outcome.BLIND),
        ("good", {"kmemleak"}, Outcome.BLIND),
        ("lockdep alive", {"lockdep"}, Outcome.PASSED),
        ("lockdep alive", {"lockdep", "kmemleak"}, Outcome.BLIND),
        ("kmemleak quiet", {"kmemleak"}, Outcome.PASSED),
        # A module cannot have lost memory before the first program.
        ("leaky at boot", {"kmemleak"}, Outcome.PASSED),
        ("good", {"kcsan"}, Outcome.BLIND),
        ("kcsan alive", {"kcsan"}, Outcome.PASSED),
    ],
)
def test_a_kernel_is_asked_for_the_detectors_that_it_must_have(
    behave: Path, tmp_path: Path, behaviour: str, checkers: set[str], outcome: Outcome
) -> None:
    behave.write_text(behaviour)
    spec = spec_at(tmp_path, slowness=20.0, checkers=frozenset(checkers))
    with Guest.boot(spec, workdir=tmp_path / "w") as guest:
        verdict = guest.shutdown()
    assert verdict.outcome is outcome, verdict


def test_a_lost_guest_shows_its_console_and_its_exit_status(behave: Path, tmp_path: Path) -> None:
    behave.write_text("oops")
    with pytest.raises(GuestLost) as lost:
        Guest.boot(spec_at(tmp_path, slowness=20.0), workdir=tmp_path / "w")
    assert lost.value.exit_status == Outcome.CRASHED.exit_status
    assert "NULL pointer" in str(lost.value)
    assert lost.value.log == tmp_path / "w" / "console.log"


def test_a_qemu_that_does_not_start_is_infrastructure(behave: Path, tmp_path: Path) -> None:
    behave.write_text("bad option")
    with pytest.raises(InfrastructureError, match="invalid accelerator"):
        Guest.boot(spec_at(tmp_path), workdir=tmp_path / "w")


def test_a_lost_guest_repeats_what_the_command_had_printed(behave: Path, tmp_path: Path) -> None:
    behave.write_text("dies talking")
    guest = Guest.boot(spec_at(tmp_path, slowness=20.0), workdir=tmp_path / "w")
    with pytest.raises(GuestLost) as lost:
        guest.run(["work"], timeout_s=5)
    assert lost.value.outcome is Outcome.KILLED
    assert lost.value.words == b"last words\nand a complaint\n"
    assert "last words\n" in str(lost.value)


def test_a_guest_without_free_processes_is_powered_off_and_says_so(
    behave: Path, tmp_path: Path
) -> None:
    behave.write_text("no process")
    guest = Guest.boot(spec_at(tmp_path, slowness=20.0), workdir=tmp_path / "w")
    verdict = guest.shutdown()
    assert verdict.outcome is Outcome.BLIND
    assert "no process: Resource temporarily unavailable" in verdict.reasons[0]
    # The power-off was orderly, and QEMU ended by itself.
    assert not [reason for reason in verdict.reasons if "power" in reason or "farewell" in reason]
    assert guest.machine.status == 0


def test_a_console_without_end_ends_the_guest(
    behave: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kbuild.guest.console.LIMIT", 100_000)
    behave.write_text("floods the console")
    guest = Guest.boot(spec_at(tmp_path, slowness=200.0), workdir=tmp_path / "w")
    began = time.monotonic()
    with pytest.raises(GuestLost) as lost:
        guest.run(["work"], timeout_s=60)
    assert lost.value.outcome is Outcome.FLOODED
    assert time.monotonic() - began < 60
    # No more than the limit is ever read.
    assert guest.machine.console.size() > 100_000 >= len(guest.console())


def test_a_command_that_prints_without_end_is_killed(
    behave: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kbuild.guest.channel.MAX_OUTPUT", 5000)
    behave.write_text("prints for ever")
    with Guest.boot(spec_at(tmp_path, slowness=20.0), workdir=tmp_path / "w") as guest:
        with pytest.raises(GuestCommandError, match="printed more than") as caught:
            guest.run(["work"], timeout_s=60)
        assert caught.value.result is not None
        assert caught.value.result.status == -9
        assert len(caught.value.result.stdout) == 4000
        behave.write_text("good")
        assert guest.shutdown().passed


def test_a_process_that_was_killed_for_its_memory_is_named(behave: Path, tmp_path: Path) -> None:
    behave.write_text("out of memory")
    with Guest.boot(spec_at(tmp_path, slowness=20.0), workdir=tmp_path / "w") as guest:
        with pytest.raises(GuestCommandError, match=r"SIGKILL \(Out of memory.*77 \(sh\)\)"):
            guest.run(["work"], timeout_s=5, check=True)
        # A later command is not blamed for it.
        assert guest.run(["test"], timeout_s=5).oom == ""


def test_qemu_is_not_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / qemu.QEMU
        program.parent.chmod(0o755)
        program.write_text(
            "#!/bin/sh\ngrep -E '^(Uid|Gid|Groups|CapEff|NoNewPrivs)' /proc/$$/status >&2\n"
            # QEMU also creates the file for the disk's changes in a directory that it cannot enter.
            'echo x >"$TMPDIR/overlay" && echo written >&2\nexit 1\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{name}:{os.environ['PATH']}")
        tmp_path.chmod(0o700)
        with pytest.raises(InfrastructureError, match="did not start") as caught:
            qemu.start(spec_at(tmp_path), tmp_path / "w")
    said = (caught.value.found or "").replace("\t", " ").splitlines()
    user = str(qemu.USER)
    assert [line.rstrip() for line in said] == [
        f"Uid: {user} {user} {user} {user}",
        f"Gid: {user} {user} {user} {user}",
        "Groups:",
        "CapEff: 0000000000000000",
        "NoNewPrivs: 1",
        "written",
    ]
    assert not (tmp_path / "w" / "scratch").exists()


@pytest.mark.parametrize(
    ("accelerator", "mode", "group", "status"),
    [
        (TCG, 0o600, 0, {"NoNewPrivs": "1", "Groups": ""}),
        (KVM, 0o660, 104, {"NoNewPrivs": "1", "Groups": "104"}),
        (KVM, 0o666, 0, {"NoNewPrivs": "1", "Groups": ""}),
        # Only root can use this device, so QEMU must run as root.
        (KVM, 0o600, 0, {"NoNewPrivs": "0"}),
        (KVM, 0o660, 0, {"NoNewPrivs": "0"}),
    ],
)
def test_qemu_keeps_our_rights_only_for_a_device_that_is_roots(
    behave: Path,
    tmp_path: Path,
    accelerator: Accelerator,
    mode: int,
    group: int,
    status: dict[str, str],
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(mode)
    os.chown(device, 0, group)
    assert behave.exists()
    if accelerator.device is not None:
        accelerator = dataclasses.replace(accelerator, device=device)
    machine = qemu.start(spec_at(tmp_path, accelerator=accelerator), tmp_path / "w")
    lines = Path(f"/proc/{machine.pid}/status").read_text().splitlines()
    machine.close()
    said = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert said | status == said


def test_a_file_that_qemus_user_may_not_read_is_named(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    spec = spec_at(tmp_path)
    spec.disk.chmod(0o600)
    with pytest.raises(InfrastructureError, match="may not read") as caught:
        qemu.start(spec, tmp_path / "w")
    assert caught.value.found == f"{spec.disk}, -rw-------"
    assert caught.value.hint == f"chmod a+r {spec.disk}"


def test_an_agent_of_another_protocol_is_refused(behave: Path, tmp_path: Path) -> None:
    behave.write_text("old agent")
    with pytest.raises(InfrastructureError, match="does not match this checkout") as caught:
        Guest.boot(spec_at(tmp_path, slowness=20.0), workdir=tmp_path / "w")
    assert (caught.value.expected, caught.value.found) == ("protocol 2", "protocol 0")


def test_a_guest_that_lacks_a_processor_is_refused(behave: Path, tmp_path: Path) -> None:
    behave.write_text("one processor")
    with pytest.raises(InfrastructureError, match="all of its processors") as caught:
        Guest.boot(spec_at(tmp_path, slowness=20.0), workdir=tmp_path / "w")
    assert (caught.value.expected, caught.value.found) == ("2 processors", "1 online")


def test_a_silent_guest_says_where_its_processors_are(behave: Path, tmp_path: Path) -> None:
    behave.write_text("hang")
    with pytest.raises(GuestLost) as lost:
        Guest.boot(spec_at(tmp_path), workdir=tmp_path / "w")
    kept = tmp_path / "w" / "registers.log"
    where = f"CPU#0 at ffffffff81c00ba0, CPU#1 at ffffffff81a04ffe (halted): {kept}"
    assert where in str(lost.value)
    assert "RFL=00000046" in kept.read_text()


def test_the_log_of_the_run_before_is_kept(behave: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with Guest.boot(spec_at(tmp_path, slowness=20.0), workdir=tmp_path / "w"):
            pass
    names = {path.name for path in (tmp_path / "w").iterdir()}
    assert names == {"console.log", "console.previous.log", "qemu.log", "qemu.previous.log"}


def test_two_guests_do_not_write_to_the_same_files(behave: Path, tmp_path: Path) -> None:
    spec = spec_at(tmp_path, slowness=20.0)
    with Guest.boot(spec, workdir=tmp_path / "w") as guest:
        before = guest.console()
        with pytest.raises(qemu.WorkdirInUseError, match=f"writes to {tmp_path / 'w'}"):
            Guest.boot(spec, workdir=tmp_path / "w")
        assert guest.console() == before != ""
        assert guest.shutdown().passed
    with Guest.boot(spec, workdir=tmp_path / "w") as guest:
        assert guest.shutdown().passed


def test_a_guest_that_does_not_start_leaves_its_directory_to_the_next(
    behave: Path, tmp_path: Path
) -> None:
    spec = spec_at(tmp_path, slowness=20.0)
    behave.write_text("bad option")
    with pytest.raises(InfrastructureError, match="did not start"):
        Guest.boot(spec, workdir=tmp_path / "w")
    behave.write_text("good")
    with Guest.boot(spec, workdir=tmp_path / "w") as guest:
        assert guest.shutdown().passed


def test_a_second_shell_has_a_console_of_its_own(behave: Path, tmp_path: Path) -> None:
    spec = spec_at(tmp_path, slowness=20.0)
    with session.boot(spec, tmp_path) as first, session.boot(spec, tmp_path) as second:
        consoles = [one.machine.console.path for one in (first, second)]
    assert consoles == [tmp_path / name / "console.log" for name in ("session", "session-2")]


# --- one command, with our streams ------------------------------------------------------------


Run = Callable[[str, bytes], int]


@pytest.fixture
def run_command(behave: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that runs a command in a guest like './inv vm --command'."""
    assert behave.exists()
    spec = spec_at(tmp_path)
    made = image.GuestImage(spec.disk, (spec.kernel,))
    settings = Settings(
        project=tmp_path, build=tmp_path / "build", cache=tmp_path / "cache", jobs=1
    )

    def run(command: str, given: bytes) -> int:
        (tmp_path / "stdin").write_bytes(given)
        with (tmp_path / "stdin").open() as stream:
            monkeypatch.setattr("sys.stdin", stream)
            return session.run(
                settings, made, variant="release", command=command, stock=True, accel="tcg"
            )

    return run


@pytest.mark.parametrize("given", [b"", b"a line\n", bytes(range(256)) * 1000])
def test_standard_input_is_passed_on(
    run_command: Run, capfdbinary: pytest.CaptureFixture[bytes], given: bytes
) -> None:
    assert run_command("cat", given) == 0
    assert capfdbinary.readouterr().out == given


def test_what_was_printed_before_the_end_is_shown(
    behave: Path, run_command: Run, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    behave.write_text("dies talking")
    with pytest.raises(GuestLost):
        run_command("work", b"")
    assert capfdbinary.readouterr() == (b"last words\n", b"and a complaint\n")


def test_more_than_is_kept_may_be_shown(
    run_command: Run, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr("kbuild.guest.channel.MAX_OUTPUT", 70_000)
    assert run_command("cat", bytes(1 << 20)) == 0
    assert len(capfdbinary.readouterr().out) == 1 << 20


def test_an_interrupt_loses_nothing_and_the_guest_is_powered_off(
    behave: Path, tmp_path: Path, run_command: Run, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    behave.write_text("is interrupted")
    with pytest.raises(KeyboardInterrupt):
        run_command("work", b"")
    assert capfdbinary.readouterr().out == b"y\n" * 10_000
    said = (tmp_path / "build" / "logs" / "vm" / "session" / "console.log").read_text()
    assert "asked to power off" in said


def taken_statuses() -> list[int]:
    """Return the exit statuses of ./inv that a command's status must not become."""
    text = (Path(__file__).parents[2] / "docs/reference/exit-status.md").read_text("utf-8")
    return [int(row) for row in re.findall(r"(?m)^\| (\d+) \|", text) if int(row) not in (0, 141)]


def test_a_status_that_means_something_is_not_given_another_meaning() -> None:
    assert len(taken_statuses()) > 15
    for status in taken_statuses():
        done = GuestResult(("sh",), status, b"", b"", 0.0)
        with pytest.raises(session.CommandFailedError, match=f"exit status {status}\n") as caught:
            session.own_status(done)
        assert caught.value.exit_status == Outcome.FAILED.exit_status


def test_every_other_status_is_the_commands_own() -> None:
    statuses = {0: 0, 7: 7, 4: 4, 77: 77, 126: 126, 127: 127, 255: 255, -9: 137, -13: 141}
    for status, expected in statuses.items():
        assert session.own_status(GuestResult(("sh",), status, b"", b"", 0.0)) == expected


def test_a_command_ends_with_its_status(run_command: Run) -> None:
    assert run_command("exit 7", b"") == 7
    with pytest.raises(session.CommandFailedError, match="exit status 21"):
        run_command("exit 21", b"")


def test_a_command_that_was_killed_for_memory_is_named(
    behave: Path, run_command: Run, caplog: pytest.LogCaptureFixture
) -> None:
    behave.write_text("out of memory")
    assert run_command("work", b"") == 137
    assert "Out of memory: Killed process 77 (sh)" in caplog.text


def test_the_reader_of_the_output_may_go_away(behave: Path, run_command: Run) -> None:
    behave.write_text("prints for ever")
    reader, writer = os.pipe()
    kept = os.dup(1)
    os.close(reader)
    os.dup2(writer, 1)
    try:
        assert run_command("work", b"") == 128 + signal.SIGPIPE
    finally:
        os.dup2(kept, 1)
        for descriptor in (writer, kept):
            os.close(descriptor)


# --- the accelerator -----------------------------------------------------------------------


def kvm_at(device: Path) -> Accelerator:
    """Return a KVM whose device is a file of the test, with short deadlines."""
    return Accelerator("kvm", 0.25, device)


@pytest.mark.parametrize(
    ("behaviour", "name", "evidence"),
    [
        ("good", "kvm", "a kernel started under KVM"),
        ("silent console", "tcg", "printed nothing"),
        ("bad option", "tcg", "invalid accelerator"),
    ],
)
def test_kvm_is_taken_only_when_seen_to_work(
    behave: Path, tmp_path: Path, behaviour: str, name: str, evidence: str
) -> None:
    behave.write_text(behaviour)
    kernel = spec_at(tmp_path).kernel
    kvm = kvm_at(tmp_path / "disk.img")
    choice = qemu.choose_accelerator(tmp_path / "cache", kernel, kvm=kvm)
    assert choice.accelerator.name == name
    assert evidence in choice.evidence
    # The choice is kept, so another behaviour is not tried.
    behave.write_text("bad option" if behaviour == "good" else "good")
    again = qemu.choose_accelerator(tmp_path / "cache", kernel, kvm=kvm)
    assert (again.accelerator.name, again.evidence) == (name, choice.evidence)


def test_without_a_device_there_is_no_trial(tmp_path: Path) -> None:
    kernel, kvm = Kernel("x", "x", tmp_path), kvm_at(tmp_path / "none")
    assert qemu.choose_accelerator(tmp_path, kernel, kvm=kvm).accelerator is TCG


def test_the_users_word_is_taken_and_a_wrong_one_refused(tmp_path: Path) -> None:
    kernel = Kernel("x", "x", tmp_path)
    assert qemu.choose_accelerator(tmp_path, kernel, "kvm").accelerator is KVM
    with pytest.raises(UserError, match="kvm, tcg"):
        qemu.choose_accelerator(tmp_path, kernel, "hvf")


# --- the image's pure parts ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "flavour"),
    [
        ("5.10.0-46", "amd64"),
        ("6.1.0-56", "cloud-amd64"),
        ("6.1.0-0.deb11.50", "cloud-amd64"),
        ("6.12.117+deb13", "amd64"),
        ("6.12.117+deb13", "cloud-amd64"),
        ("6.12.115+deb13.1", "rt-amd64"),
        ("7.3.4+deb13", "lab-debug"),
    ],
)
def test_kernels_are_told_apart_by_their_release(tmp_path: Path, base: str, flavour: str) -> None:
    stock = f"{base}-{flavour}"
    assert suites.flavour_of(stock) == flavour
    assert not image.is_ours(Kernel(stock, "", tmp_path))
    for revision in (1, 2, 10):
        ours = versions.release(base, flavour, revision=revision)
        assert (suites.flavour_of(ours), suites.revision_of(ours)) == (flavour, revision)
        assert image.is_ours(Kernel(ours, "", tmp_path))


def test_an_image_that_is_not_there_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="inv test"):
        image.read(tmp_path / "image.json")


def test_an_apt_log_is_cut_to_what_is_wrong() -> None:
    log = "Get:1 x\nUnpacking y\nE: Unable to locate package z\nFetched 1\n"
    assert image.relevant_lines(log) == "E: Unable to locate package z"
    assert image.relevant_lines("only\nthis\n") == "only\nthis"
