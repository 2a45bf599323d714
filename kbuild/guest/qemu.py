"""One QEMU process: its command line, its control, and the choice of an accelerator."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import platform
import shlex
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import fs, run, stamp
from kbuild.core.errors import InfrastructureError, UserError
from kbuild.core.model import Kernel
from kbuild.guest.console import Console, banner
from kbuild.guest.spec import (
    ACCELERATORS,
    KVM,
    TCG,
    Accelerator,
    Firmware,
    GuestSpec,
    MachineSpec,
    ServerSpec,
    Snapshot,
)

logger = logging.getLogger(__name__)

QEMU = "qemu-system-x86_64"
# The name of the second control port; guests find it below /sys/class/virtio-ports.
BULK_PORT = "cplayground.control"

_QMP_TIMEOUT_S = 20.0
_SAVING_POLL_S = 0.02
_REGISTERS_TIMEOUT_S = 5.0  # the guest is lost already, so a short one
# The machine protocol's name for the file of a save or a restore.
_STATE = "state"
_PROBE_TIMEOUT_S = 8.0
# If memory runs out, the kernel kills a greedy guest before the machine's other programs.
_OOM_SCORE_ADJ = "500"
# QEMU's user and group.  No account and no service has this number: Debian reserves 65000 to
# 65533, and systemd's dynamic users end at 65519.
USER = 65533
# QEMU needs no other programs, other users, obsolete system calls or priorities.
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
# QEMU's largest file holds the changes to the guest's disk and their map; the map's share.
_MAP_BYTES = 256 << 20
_SCRATCH = "scratch"
_WATCHDOG = ("-device", "i6300esb", "-action", "watchdog=reset")


@dataclass(frozen=True)
class Wires:
    """The file descriptors of QEMU's ports; ``console`` is open for appending."""

    control: int
    bulk: int
    qmp: int
    console: int


def kernel_command_line(spec: GuestSpec) -> str:
    """Return the kernel's parameters.

    An oops or a lockup ends the guest at once (panic, and QEMU's -no-reboot).  A WARN does not
    end it; triage finds it.  "quiet" silences the scripts of the initramfs, and the loglevel after
    it restores the kernel's messages.  Marks in the log from user space are not rate limited.

    Under TCG the kernel boots with one processor, and the agent starts the others afterwards.
    QEMU 7.2 may keep an old translation of code that one processor changes while another one runs
    it (docs/results/qemu.md).  A kernel patches itself mostly during the boot.
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
        *(["maxcpus=1"] if spec.accelerator is TCG else []),
        *spec.append,
    ]
    return " ".join(words)


def command(
    spec: MachineSpec,
    wires: Wires,
    snapshot: Snapshot | None = None,
    *,
    restored: bool = True,
    opened: Callable[[Path], str] = str,
) -> list[str]:
    """Return QEMU's command line for a guest or a server, whose disk file is never written.

    With ``snapshot`` the guest's memory is that snapshot's file, and its disk that overlay.
    ``restored`` guests have private copies of both, which end with the guest.  ``opened`` returns
    the name under which QEMU opens a file.
    """
    accelerator = "tcg,thread=multi" if spec.accelerator is TCG else spec.accelerator.name
    machine, disk = "pc", f"file={_escape(opened(spec.disk))},format=raw"
    kept: list[str] = []
    if snapshot is not None:
        machine = "pc,memory-backend=memory"
        disk = _overlay(opened(snapshot.disk), opened(spec.disk))
        memory = f"id=memory,size={spec.memory_mib}M,mem-path={_escape(opened(snapshot.memory))}"
        kept = ["-object", f"memory-backend-file,{memory},share={'off' if restored else 'on'}"]
        if restored:
            kept += ["-incoming", "defer"]
    changes = spec.changes if isinstance(spec, ServerSpec) else None
    firmware = spec.firmware if isinstance(spec, ServerSpec) else None
    if firmware is not None:
        machine = "q35,smm=on"
        kept += _firmware(firmware, opened)
    if changes is not None:
        disk = _overlay(opened(changes), opened(spec.disk))
    drive = f"{disk},if=none,id=disk"
    if changes is None and (snapshot is None or restored):
        drive += ",snapshot=on"
    return [
        QEMU,
        *("-sandbox", _SANDBOX),
        *("-name", f"cplayground-{_name(spec)}"),
        *("-machine", machine),
        *("-accel", accelerator),
        *("-cpu", "max"),
        *("-smp", str(spec.cpus)),
        *("-m", str(spec.memory_mib)),
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        *("-display", "none"),
        *(_kernel(spec, opened) if isinstance(spec, GuestSpec) else ()),
        *("-drive", drive),
        *("-device", "virtio-blk-pci,drive=disk"),
        *("-object", "rng-random,id=entropy,filename=/dev/urandom"),
        *("-device", "virtio-rng-pci,rng=entropy"),
        *(_network(spec) if isinstance(spec, ServerSpec) else ()),
        *(_WATCHDOG if isinstance(spec, ServerSpec) and spec.watchdog else ()),
        *("-add-fd", f"fd={wires.console},set=1"),
        *("-chardev", "file,id=console,path=/dev/fdset/1,append=on"),
        *("-serial", "chardev:console"),
        *("-chardev", f"socket,id=control,fd={wires.control}"),
        *("-serial", "chardev:control"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=bulk,fd={wires.bulk}"),
        *("-device", f"virtserialport,chardev=bulk,name={BULK_PORT}"),
        *("-chardev", f"socket,id=qmp,fd={wires.qmp}"),
        *("-mon", "chardev=qmp,mode=control"),
        *kept,
    ]


def _name(spec: MachineSpec) -> str:
    return spec.kernel.release if isinstance(spec, GuestSpec) else "server"


def _kernel(spec: GuestSpec, opened: Callable[[Path], str]) -> tuple[str, ...]:
    boot = spec.kernel.root / "boot"
    vmlinuz, initrd = (boot / f"{name}-{spec.kernel.release}" for name in ("vmlinuz", "initrd.img"))
    return (
        *("-kernel", opened(vmlinuz)),
        *(("-initrd", opened(initrd)) if spec.initrd and initrd.exists() else ()),
        *("-append", kernel_command_line(spec)),
    )


def _network(spec: ServerSpec) -> tuple[str, ...]:
    """Return the options for a network card, even if nothing answers behind it.

    QEMU's user-mode network connects to whatever the process itself can reach, which is the
    namespace that it runs in.  Without one it is told to connect to nothing.
    """
    restricted = ",restrict=on" if spec.network is None else ""
    return (
        *("-netdev", f"user,id=net,ipv6=off{restricted}"),
        # Without the firmware's own program for a boot from the network.
        *("-device", "virtio-net-pci,netdev=net,romfile="),
    )


def _firmware(firmware: Firmware, opened: Callable[[Path], str]) -> list[str]:
    """Return the options for a firmware whose variables only its own code in SMM can write.

    Secure Boot needs that (OVMF's README).  A change of a variable ends with the machine.
    """
    flash = "if=pflash,format=raw"
    return [
        *("-global", "driver=cfi.pflash01,property=secure,value=on"),
        *("-global", "ICH9-LPC.disable_s3=1"),
        *("-drive", f"{flash},unit=0,readonly=on,file={_escape(opened(firmware.program))}"),
        *("-drive", f"{flash},unit=1,snapshot=on,file={_escape(opened(firmware.variables))}"),
    ]


def _overlay(changes: str, base: str) -> str:
    # The overlay names its base by a path that QEMU's user may not be able to follow.
    backing = f"backing.driver=raw,backing.file.filename={_escape(base)}"
    return f"file={_escape(changes)},format=qcow2,{backing}"


def _escape(name: str) -> str:
    # In QEMU's syntax a comma ends an option's value, and two commas stand for one.
    return name.replace(",", ",,")


class WorkdirInUseError(InfrastructureError):
    """Another guest, of this run or of another one, writes to the same files."""


class Machine:
    """A running QEMU, its sockets, and the file with its console."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        control: socket.socket,
        bulk: socket.socket,
        qmp: socket.socket,
        console: Console,
        log: Path,
        held: int,
    ) -> None:
        self._process = process
        self._held = held  # from _hold, until the console is no longer read
        self.control = control
        self.bulk = bulk
        self._qmp = qmp
        self._qmp_rest = b""
        self._events: list[dict[str, object]] = []
        self.console = console
        self.log = log
        self.stopped = False  # whether we had to stop it

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """QEMU's exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> int | None:
        """Wait for QEMU to end by itself, and return its status; None if it did not in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=timeout_s)
        return None

    def stop(self) -> int:
        """Stop QEMU if it still runs, by SIGTERM and then SIGKILL, and return its status."""
        if self._process.poll() is None:
            self.stopped = True
            run.stop(self._process)
        return self._process.wait()

    def close(self) -> None:
        """Stop QEMU, and release its sockets and its directory; its events stay known."""
        self.stop()
        self.events()
        for sock in (self.control, self.bulk, self._qmp):
            sock.close()
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def negotiate(self) -> None:
        """Open the machine protocol, so that QEMU sends its events.

        Raises InfrastructureError when QEMU ends before it answers, because of a bad option or of
        a kernel file that it cannot load.
        """
        self._qmp.settimeout(_QMP_TIMEOUT_S)
        try:
            self._receive()
            self._qmp.sendall(b'{"execute": "qmp_capabilities"}\n')
            self._receive()
        except (OSError, EOFError):
            raise self._died("QEMU did not start") from None

    def events(self) -> list[dict[str, object]]:
        """Return QEMU's events so far, the oldest first; also works after QEMU's end."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while self._qmp.fileno() >= 0 and (chunk := self._qmp.recv(65536, socket.MSG_DONTWAIT)):
                self._qmp_rest += chunk
        while b"\n" in self._qmp_rest:
            self._next_message()
        return list(self._events)

    def execute(
        self, name: str, arguments: Mapping[str, object] | None = None, *, fd: int | None = None
    ) -> object:
        """Run a command of the machine protocol, pass an open file with it, and return the answer.

        Raises InfrastructureError when QEMU refuses or has ended.
        """
        request = {"execute": name} | ({"arguments": arguments} if arguments else {})
        line = json.dumps(request).encode() + b"\n"
        try:
            if fd is None:
                self._qmp.sendall(line)
            else:
                socket.send_fds(self._qmp, [line], [fd])
            while True:
                message = self._receive()
                if "return" in message:
                    return message["return"]
                if "error" in message:
                    raise InfrastructureError(
                        f"QEMU refuses {name}", found=json.dumps(message["error"]), log=self.log
                    )
        except (OSError, EOFError):
            raise self._died(f"QEMU ended at {name}") from None

    def save(self, path: Path, timeout_s: float) -> None:
        """Write the guest's state, except its memory's file, to ``path``, and end QEMU.

        Raises InfrastructureError when the save fails or is not done in ``timeout_s``.
        """
        # A guest that is stopped before the save would be restored as stopped.
        self._prepare_migration()
        with path.open("wb") as stream:
            self._pass_file(stream.fileno())
        self.execute("migrate", {"uri": f"fd:{_STATE}"})
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self.execute("query-migrate")
            status = answer.get("status") if isinstance(answer, dict) else None
            if status == "completed":
                break
            if status in ("failed", "cancelled") or time.monotonic() > deadline:
                raise InfrastructureError(
                    "the guest could not be saved", found=json.dumps(answer), log=self.log
                )
            time.sleep(_SAVING_POLL_S)
        self.execute("quit")
        if self.wait(_QMP_TIMEOUT_S) != 0:
            raise self._died("QEMU did not end with status 0 after a save")

    def restore(self, path: Path, timeout_s: float) -> None:
        """Restore the state that :meth:`save` wrote, and return when the guest runs.

        Bytes that are sent to its ports before that are lost.  Raises InfrastructureError.
        """
        self._prepare_migration()
        with path.open("rb") as stream:
            self._pass_file(stream.fileno())
        self.execute("migrate-incoming", {"uri": f"fd:{_STATE}"})
        deadline = time.monotonic() + timeout_s
        self._qmp.settimeout(timeout_s)
        try:
            while not any(event["event"] == "RESUME" for event in self._events):
                if time.monotonic() > deadline:
                    raise TimeoutError
                self._receive()
        except (OSError, EOFError):
            raise self._died("the snapshot cannot be restored") from None
        finally:
            self._qmp.settimeout(_QMP_TIMEOUT_S)

    def _prepare_migration(self) -> None:
        # The memory has a file of its own.
        wanted = [{"capability": "x-ignore-shared", "state": True}]
        self.execute("migrate-set-capabilities", {"capabilities": wanted})

    def _pass_file(self, fd: int) -> None:
        self.execute("getfd", {"fdname": _STATE}, fd=fd)

    def registers(self) -> str:
        """Return each processor's registers in the form of QEMU's monitor, or "".

        A QEMU that does not answer is stopped.
        """
        answer: object = None
        self._qmp.settimeout(_REGISTERS_TIMEOUT_S)
        with contextlib.suppress(InfrastructureError):
            answer = self.execute("human-monitor-command", {"command-line": "info registers -a"})
        return answer if isinstance(answer, str) else ""

    def cut_power(self) -> None:
        """End QEMU with SIGKILL, so that only what the guest has flushed is on its disk."""
        if self._process.poll() is None:
            self.stopped = True
            self._process.kill()
            run.stop(self._process)

    def powered_off(self) -> bool:
        """Return whether the guest itself switched the machine off, without a reset or a panic."""
        return self._has_event("SHUTDOWN", reason="guest-shutdown")

    def was_reset(self) -> bool:
        """Return whether the guest reset the machine: by a reboot, after a panic, or a watchdog."""
        return self._has_event("SHUTDOWN", reason="guest-reset")

    def watchdog_fired(self) -> bool:
        """Return whether the machine's watchdog ran out of time."""
        return self._has_event("WATCHDOG")

    def _has_event(self, name: str, **wanted: str) -> bool:
        return any(
            event["event"] == name
            and isinstance(data := event.get("data"), dict)
            and wanted.items() <= data.items()
            for event in self.events()
        )

    def log_tail(self, lines: int = 10) -> str:
        """Return the last lines of QEMU's own output."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(
            line for line in text.splitlines()[-lines:] if not line.startswith(("$ ", "# "))
        )

    def _receive(self) -> dict[str, object]:
        """Wait for the next message; events are also kept."""
        while b"\n" not in self._qmp_rest:
            chunk = self._qmp.recv(65536)
            if not chunk:
                raise EOFError
            self._qmp_rest += chunk
        return self._next_message()

    def _next_message(self) -> dict[str, object]:
        line, _, self._qmp_rest = self._qmp_rest.partition(b"\n")
        try:
            message: dict[str, object] = json.loads(line)
        except ValueError:
            return {}
        if "event" in message:
            self._events.append(message)
        return message

    def _died(self, what: str) -> InfrastructureError:
        status = self.wait(1.0)
        self.stop()
        return InfrastructureError(
            what,
            found=self.log_tail()
            or ("QEMU does not answer" if status is None else run.describe_status(status)),
            log=self.log,
            hint="the log begins with QEMU's command line",
        )


def start(
    spec: MachineSpec, workdir: Path, snapshot: Snapshot | None = None, *, restored: bool = True
) -> Machine:
    """Start QEMU; ``workdir`` receives console.log and qemu.log of this run.

    With ``snapshot`` the guest's memory and disk are that snapshot's files.  If the guest is to be
    ``restored``, the console begins with that of the boot, and the caller continues with
    :meth:`Machine.restore`.  Raises InfrastructureError when QEMU does not start or when a running
    guest has the same ``workdir``; LostDependencyError when QEMU is missing.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    held = _hold(workdir)
    try:
        machine = _start(spec, workdir, held, snapshot, restored=restored)
    except BaseException:
        os.close(held)
        raise
    try:
        machine.negotiate()
    except BaseException:
        machine.close()
        raise
    finally:
        fs.remove_tree(workdir / _SCRATCH)
    return machine


def _hold(workdir: Path) -> int:
    """Return a descriptor that locks a directory until it is closed.

    Two guests that share a log would be judged by each other's output.
    """
    held = os.open(workdir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise WorkdirInUseError(
            f"another running guest writes to {workdir}",
            hint="wait for the end of its run, or end it",
        ) from None
    return held


def _start(
    spec: MachineSpec, workdir: Path, held: int, snapshot: Snapshot | None, *, restored: bool
) -> Machine:
    console, log, scratch = workdir / "console.log", workdir / "qemu.log", workdir / _SCRATCH
    for kept in (console, log):
        if kept.exists():
            kept.replace(kept.with_suffix(".previous.log"))
    if snapshot is not None and restored:
        shutil.copyfile(snapshot.console, console)
    scratch.mkdir(exist_ok=True)
    groups = _groups(spec.accelerator)
    if groups is not None:
        os.chown(scratch, USER, USER)
    with contextlib.ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(3)]
        for _, other in pairs:
            stack.callback(other.close)
        handed: dict[int, Path] = {}

        def opened(path: Path) -> str:
            descriptor = _hand_over(path, readable_for_all=groups is not None)
            stack.callback(os.close, descriptor)
            handed[descriptor] = path
            return f"/proc/self/fd/{descriptor}"

        output = stack.enter_context(console.open("ab"))
        control, bulk, qmp = (other.fileno() for _, other in pairs)
        wires = Wires(control, bulk, qmp, output.fileno())
        argv = command(spec, wires, snapshot, restored=restored, opened=opened)
        stream = stack.enter_context(log.open("wb"))
        # QEMU creates the file for the guest's writes to its disk here, and unlinks it.
        temporary = opened(scratch)
        stream.write(f"$ {shlex.join(argv)}\n".encode())
        stream.writelines(f"# {number} is {path}\n".encode() for number, path in handed.items())
        stream.flush()
        logger.debug("qemu: %s", shlex.join(argv))
        process = run.start(
            argv,
            env={"TMPDIR": temporary},
            stdout=stream,
            stderr=stream,
            pass_fds=(wires.control, wires.bulk, wires.qmp, wires.console, *handed),
            privileges=() if groups is None else _unprivileged(groups),
            # The console's own limit is checked only while we wait for the guest.
            largest_file=spec.disk.stat().st_size + _MAP_BYTES,
            network=spec.network if isinstance(spec, ServerSpec) else None,
        )
    with contextlib.suppress(OSError):
        Path(f"/proc/{process.pid}/oom_score_adj").write_text(_OOM_SCORE_ADJ)
    return Machine(process, pairs[0][0], pairs[1][0], pairs[2][0], Console(console), log, held)


def _groups(accelerator: Accelerator) -> tuple[int, ...] | None:
    """Return the groups that QEMU needs as ``USER``; None if it must run as our user.

    It must if we are not root, or if only root may use the accelerator's device.
    """
    if os.geteuid() != 0:
        return None
    if accelerator.device is None:
        return ()
    try:
        device = accelerator.device.stat()
    except FileNotFoundError:
        return ()
    if device.st_mode & 0o006 == 0o006:
        return ()
    return (device.st_gid,) if device.st_gid and device.st_mode & 0o060 == 0o060 else None


def _unprivileged(groups: tuple[int, ...]) -> tuple[str, ...]:
    supplementary = ("--groups", ",".join(map(str, groups))) if groups else ("--clear-groups",)
    return (
        *("--reuid", str(USER), "--regid", str(USER), *supplementary),
        *("--inh-caps=-all", "--no-new-privs"),
    )


def overlay(disk: Path, changes: Path) -> None:
    """Make a qcow2 that keeps what a machine writes to ``disk``; raises InfrastructureError."""
    run.run(
        [
            *("qemu-img", "create", "-q", "-f", "qcow2"),
            *("-F", "raw", "-b", disk.resolve(), changes),
        ],
        timeout_s=60,
        error=InfrastructureError,
    )
    lend(changes)


def lend(path: Path) -> None:
    """Let QEMU's user write a file."""
    if os.geteuid() == 0:
        os.chown(path, -1, USER)
        path.chmod(0o660)


def take_back(path: Path) -> None:
    """Make a file that was lent read-only for QEMU's user."""
    if os.geteuid() == 0:
        os.chown(path, -1, os.getegid())
        path.chmod(0o644)


def _hand_over(path: Path, *, readable_for_all: bool) -> int:
    """Return a descriptor for QEMU to open a file in a directory that QEMU may not enter."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise InfrastructureError(
            "QEMU did not start",
            found=f"{path}: {error.strerror}",
            hint="check that the image is complete",
        ) from error
    status = os.fstat(descriptor)
    if readable_for_all and not status.st_mode & stat.S_IROTH and status.st_gid != USER:
        os.close(descriptor)
        raise InfrastructureError(
            "QEMU did not start, because it may not read one of its files",
            expected=f"a file that every user may read, because QEMU runs as user {USER}",
            found=f"{path}, {stat.filemode(status.st_mode)}",
            hint=f"chmod a+r {shlex.quote(str(path))}",
        )
    return descriptor


# --- the accelerator ---------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """The accelerator for guests on this machine, and the reason."""

    accelerator: Accelerator
    evidence: str


def choose_accelerator(
    cache: Path, kernel: Kernel, wanted: str | None = None, *, kvm: Accelerator = KVM
) -> Choice:
    """Return KVM if a kernel prints something under it on this machine, TCG otherwise.

    A /dev/kvm that can be opened proves nothing, because nested guests may hang in their firmware.
    The result is kept in ``cache`` for this host kernel and this QEMU.  ``wanted`` is the user's
    choice, which is not tried out.  Raises UserError if it is unknown.
    """
    if wanted is not None:
        if wanted not in ACCELERATORS:
            raise UserError(
                f"the accelerator {wanted!r} is unknown",
                expected=", ".join(sorted(ACCELERATORS)),
            )
        return Choice(ACCELERATORS[wanted], "the user's choice")
    if kvm.device is None or not os.access(kvm.device, os.R_OK | os.W_OK):
        return Choice(TCG, f"{kvm.device} cannot be opened for reading and writing")
    inputs = {
        "host kernel": platform.release(),
        "host": platform.node(),
        "qemu": run.run([QEMU, "--version"], timeout_s=30).stdout.splitlines()[0],
    }
    kept = cache / "accelerator" / f"{stamp.digest(inputs)[:16]}.json"
    with fs.lock(kept.with_suffix(".lock")):
        known = read_choice(kept)
        if known is not None:
            return known
        choice = _try_kvm(kernel, kvm)
        fs.write_json(
            kept,
            inputs | {"accelerator": choice.accelerator.name, "evidence": choice.evidence},
        )
    logger.info("accelerator: %s (%s)", choice.accelerator.name, choice.evidence)
    return choice


def read_choice(path: Path) -> Choice | None:
    """Read a choice that was kept; None if there is none or it is damaged."""
    return fs.read_json(
        path, lambda raw: Choice(ACCELERATORS[raw["accelerator"]], str(raw["evidence"]))
    )


def _try_kvm(kernel: Kernel, kvm: Accelerator) -> Choice:
    timeout_s = _PROBE_TIMEOUT_S * kvm.scale
    # Without root and initrd the kernel prints its first line and panics, which is enough here.
    directory = Path(tempfile.mkdtemp(prefix="kbuild-accel-"))
    try:
        disk = directory / "empty.img"
        with disk.open("wb") as stream:
            stream.truncate(1 << 20)
        spec = GuestSpec(kernel=kernel, disk=disk, accelerator=kvm, memory_mib=512)
        began = time.monotonic()
        try:
            machine = start(spec, directory)
        except InfrastructureError as error:
            return Choice(TCG, f"QEMU refuses KVM: {(error.found or error.what).splitlines()[-1]}")
        try:
            while time.monotonic() - began < timeout_s:
                if banner(machine.console.text()):
                    took = time.monotonic() - began
                    return Choice(kvm, f"a kernel started under KVM after {took:.1f} s")
                if machine.wait(0.1) is not None:
                    return Choice(TCG, f"QEMU ended under KVM: {machine.log_tail(1)}")
            return Choice(
                TCG, f"{kvm.device} opens, but a guest printed nothing in {timeout_s:g} s"
            )
        finally:
            machine.close()
    finally:
        fs.remove_tree(directory)
