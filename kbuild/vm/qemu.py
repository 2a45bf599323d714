"""One QEMU process: its command line, its life, and which accelerator works here."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from kbuild import fs, run, stamp
from kbuild.errors import InfrastructureError, UserError
from kbuild.model import Kernel
from kbuild.vm.console import Console, banner
from kbuild.vm.spec import ACCELERATORS, KVM, TCG, Accelerator, GuestSpec

logger = logging.getLogger(__name__)

QEMU = "qemu-system-x86_64"
# The name of the second control port, which a guest finds below /sys/class/virtio-ports.
BULK_PORT = "cplayground.control"

_QMP_TIMEOUT_S = 20.0
_PROBE_TIMEOUT_S = 8.0
# A guest that eats memory must not take the machine's other programs with it.
_OOM_SCORE_ADJ = "500"


@dataclass(frozen=True)
class Wires:
    """The descriptors and the file that QEMU's ports are connected to."""

    control: int
    bulk: int
    qmp: int
    console: Path


def kernel_command_line(spec: GuestSpec) -> str:
    """Return the kernel's parameters.

    An oops or a lockup ends the guest at once (panic, and QEMU's -no-reboot); a WARN does
    not, triage finds it.  "quiet" silences the initramfs's scripts, and loglevel after it
    gives the kernel its voice back.  Userspace's marks in the log are not rate limited.
    """
    words = [
        *([f"console={spec.console},115200"] if spec.console else []),
        "root=/dev/vda",
        "rootfstype=ext4",
        "rw",
        "fsck.mode=skip",
        f"init={spec.init}",
        "quiet",
        "loglevel=7",
        "printk.devkmsg=on",
        "panic=-1",
        "oops=panic",
        "softlockup_panic=1",
        "random.trust_cpu=on",
        *spec.append,
    ]
    return " ".join(words)


def command(spec: GuestSpec, wires: Wires) -> list[str]:
    """Return QEMU's command line for a guest; the disk is never written (snapshot)."""
    release = spec.kernel.release
    boot = spec.kernel.root / "boot"
    initrd = boot / f"initrd.img-{release}"
    accelerator = "tcg,thread=multi" if spec.accelerator is TCG else spec.accelerator.name
    return [
        QEMU,
        *("-name", f"cplayground-{release}"),
        *("-machine", "pc"),
        *("-accel", accelerator),
        *("-cpu", "max"),
        *("-smp", str(spec.cpus)),
        *("-m", str(spec.memory_mib)),
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        *("-display", "none"),
        *("-kernel", str(boot / f"vmlinuz-{release}")),
        *(("-initrd", str(initrd)) if spec.initrd and initrd.exists() else ()),
        *("-append", kernel_command_line(spec)),
        *("-drive", f"file={_escape(spec.disk)},if=none,id=disk,format=raw,snapshot=on"),
        *("-device", "virtio-blk-pci,drive=disk"),
        *("-object", "rng-random,id=entropy,filename=/dev/urandom"),
        *("-device", "virtio-rng-pci,rng=entropy"),
        *("-chardev", f"file,id=console,path={_escape(wires.console)}"),
        *("-serial", "chardev:console"),
        *("-chardev", f"socket,id=control,fd={wires.control}"),
        *("-serial", "chardev:control"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=bulk,fd={wires.bulk}"),
        *("-device", f"virtserialport,chardev=bulk,name={BULK_PORT}"),
        *("-chardev", f"socket,id=qmp,fd={wires.qmp}"),
        *("-mon", "chardev=qmp,mode=control"),
    ]


def _escape(path: Path) -> str:
    # A comma ends an option's value in QEMU's syntax; two are one.
    return str(path).replace(",", ",,")


class Machine:
    """A running QEMU, its sockets, and the file its console goes to."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        control: socket.socket,
        bulk: socket.socket,
        qmp: socket.socket,
        console: Console,
        log: Path,
    ) -> None:
        self._process = process
        self.control = control
        self.bulk = bulk
        self._qmp = qmp
        self._qmp_lines = b""
        self.console = console
        self.log = log
        self.stopped = False  # whether we had to end it

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> int | None:
        """Wait for QEMU's own end; None when it has not come in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=timeout_s)
        return None

    def stop(self) -> int:
        """End QEMU if it still runs: SIGTERM, then SIGKILL."""
        if self._process.poll() is None:
            self.stopped = True
            run.stop(self._process)
        return self._process.wait()

    def close(self) -> None:
        """End it and let go of its sockets; its events stay known."""
        self.stop()
        self.events()
        for sock in (self.control, self.bulk, self._qmp):
            sock.close()

    def negotiate(self) -> None:
        """Open the machine protocol, so that QEMU sends its events.

        Raises InfrastructureError when QEMU ends before it speaks: a bad option, a kernel
        file that it cannot load.
        """
        self._qmp.settimeout(_QMP_TIMEOUT_S)
        try:
            self._read_line()
            self._qmp.sendall(b'{"execute": "qmp_capabilities"}\n')
            self._read_line()
        except (OSError, EOFError):
            status = self.wait(1.0)
            self.stop()
            raise InfrastructureError(
                "QEMU did not start",
                found=self.log_tail()
                or ("it does not answer" if status is None else run.describe_status(status)),
                log=self.log,
                hint="the log begins with the command as it was run",
            ) from None

    def events(self) -> list[dict[str, object]]:
        """Return QEMU's events so far, oldest first (also after its end)."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while self._qmp.fileno() >= 0 and (chunk := self._qmp.recv(65536, socket.MSG_DONTWAIT)):
                self._qmp_lines += chunk
        parsed = []
        for line in self._qmp_lines.splitlines():
            with contextlib.suppress(ValueError):
                parsed.append(json.loads(line))
        return [message for message in parsed if "event" in message]

    def powered_off(self) -> bool:
        """Whether the guest itself switched the machine off (no reset, no panic)."""
        return any(
            event["event"] == "SHUTDOWN"
            and isinstance(data := event.get("data"), dict)
            and data.get("reason") == "guest-shutdown"
            for event in self.events()
        )

    def log_tail(self, lines: int = 10) -> str:
        """Return the last lines that QEMU itself said."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(line for line in text.splitlines()[-lines:] if not line.startswith("$ "))

    def _read_line(self) -> bytes:
        while b"\n" not in self._qmp_lines:
            chunk = self._qmp.recv(65536)
            if not chunk:
                raise EOFError
            self._qmp_lines += chunk
        line, _, self._qmp_lines = self._qmp_lines.partition(b"\n")
        return line


def start(spec: GuestSpec, workdir: Path) -> Machine:
    """Start QEMU; ``workdir`` receives console.log and qemu.log of this run.

    Raises InfrastructureError when it does not start, LostDependencyError when it is missing.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    console, log = workdir / "console.log", workdir / "qemu.log"
    for kept in (console, log):
        if kept.exists():
            kept.replace(kept.with_suffix(".previous.log"))
    pairs = [socket.socketpair() for _ in range(3)]
    control, bulk, qmp = (pair[1].fileno() for pair in pairs)
    argv = command(spec, Wires(control=control, bulk=bulk, qmp=qmp, console=console))
    with log.open("wb") as stream:
        stream.write(f"$ {shlex.join(argv)}\n".encode())
        stream.flush()
        logger.debug("qemu: %s", shlex.join(argv))
        try:
            process = run.start(argv, stdout=stream, stderr=stream, pass_fds=(control, bulk, qmp))
        finally:
            for _, other in pairs:
                other.close()
    with contextlib.suppress(OSError):
        Path(f"/proc/{process.pid}/oom_score_adj").write_text(_OOM_SCORE_ADJ)
    machine = Machine(process, pairs[0][0], pairs[1][0], pairs[2][0], Console(console), log)
    try:
        machine.negotiate()
    except BaseException:
        machine.close()
        raise
    return machine


# --- which accelerator -------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """The accelerator that guests run on here, and why."""

    accelerator: Accelerator
    evidence: str


def choose_accelerator(cache: Path, kernel: Kernel, wanted: str | None = None) -> Choice:
    """Return KVM if a kernel was seen to speak under it on this machine, TCG otherwise.

    That /dev/kvm can be opened proves nothing: nested guests may hang in their firmware.
    The answer is kept in ``cache`` for this host kernel and this QEMU.  ``wanted`` is the
    user's word and is taken without a trial; raises UserError for an unknown one.
    """
    if wanted is not None:
        if wanted not in ACCELERATORS:
            raise UserError(
                f"the accelerator {wanted!r} is not known",
                expected=", ".join(sorted(ACCELERATORS)),
            )
        return Choice(ACCELERATORS[wanted], "as asked for")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Choice(TCG, "/dev/kvm cannot be opened for reading and writing")
    inputs = {
        "host kernel": platform.release(),
        "host": platform.node(),
        "qemu": run.run([QEMU, "--version"], timeout_s=30).stdout.splitlines()[0],
    }
    kept = cache / "accelerator" / f"{stamp.digest(inputs)[:16]}.json"
    with fs.lock(kept.with_suffix(".lock")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            known = json.loads(kept.read_text())
            return Choice(ACCELERATORS[known["accelerator"]], known["evidence"])
        choice = _try_kvm(kernel)
        fs.write_json(
            kept,
            inputs | {"accelerator": choice.accelerator.name, "evidence": choice.evidence},
        )
    logger.info("accelerator: %s (%s)", choice.accelerator.name, choice.evidence)
    return choice


def _try_kvm(kernel: Kernel) -> Choice:
    # Without root and initrd the kernel says its first line and panics: all that is asked.
    directory = Path(tempfile.mkdtemp(prefix="kbuild-accel-"))
    try:
        disk = directory / "empty.img"
        with disk.open("wb") as stream:
            stream.truncate(1 << 20)
        spec = GuestSpec(kernel=kernel, disk=disk, accelerator=KVM, memory_mib=512)
        began = time.monotonic()
        try:
            machine = start(spec, directory)
        except InfrastructureError as error:
            return Choice(TCG, f"QEMU refuses KVM: {(error.found or error.what).splitlines()[-1]}")
        try:
            while time.monotonic() - began < _PROBE_TIMEOUT_S:
                if banner(machine.console.text()):
                    took = time.monotonic() - began
                    return Choice(KVM, f"a kernel spoke under KVM after {took:.1f} s")
                if machine.wait(0.1) is not None:
                    return Choice(TCG, f"under KVM, QEMU ended: {machine.log_tail(1)}")
            return Choice(
                TCG, f"/dev/kvm opens, but a guest said nothing in {_PROBE_TIMEOUT_S:g} s"
            )
        finally:
            machine.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
