"""The description of a guest: its kernel, disk, machine and snapshot."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from kbuild.core.model import Kernel
from kbuild.core.variants import variant

# The agent's place in the image; the kernel starts it as init.
AGENT = "/usr/lib/cplayground/agent"
# The module that misbehaves on request, for tests of the harness; the image has one per kernel.
MISBEHAVE = "/usr/lib/cplayground/{release}/misbehave.ko"


@dataclass(frozen=True)
class Accelerator:
    """QEMU's way to execute the guest, and its slowness relative to KVM."""

    name: str  # QEMU's: kvm or tcg
    scale: float  # the factor on every deadline
    device: Path | None = None  # that QEMU opens


KVM = Accelerator("kvm", 1.0, Path("/dev/kvm"))
TCG = Accelerator("tcg", 6.0)
ACCELERATORS = {a.name: a for a in (KVM, TCG)}


@dataclass(frozen=True, kw_only=True)
class MachineSpec:
    """A machine with a disk."""

    disk: Path  # raw image; never written
    accelerator: Accelerator = TCG
    memory_mib: int = 1024
    cpus: int = 2
    slowness: float = 1.0  # of the system itself; above 1 for a kernel with KASAN
    checkers: frozenset[str] = frozenset()  # those of lockdep, kmemleak, kcsan that must be alive

    @property
    def scale(self) -> float:
        """The factor on every deadline."""
        return self.accelerator.scale * self.slowness


@dataclass(frozen=True, kw_only=True)
class GuestSpec(MachineSpec):
    """One guest: a kernel that QEMU loads, a disk with an ext4, and the machine that runs them.

    It never has one processor, because the races that we look for need two.
    """

    kernel: Kernel
    console: str = "ttyS0"  # the kernel's console; "" is for tests of the harness
    init: str = AGENT
    initrd: bool = True  # False for a kernel with the drivers for the disk built in
    append: tuple[str, ...] = ()  # further kernel parameters


@dataclass(frozen=True)
class Firmware:
    """A firmware with Secure Boot: OVMF's program, and its variables, which are never written."""

    program: Path
    variables: Path


@dataclass(frozen=True, kw_only=True)
class ServerSpec(MachineSpec):
    """A server: a disk from which the firmware boots, and the machine that runs it."""

    changes: Path | None = None  # a qcow2 that keeps what it writes to its disk; else that is lost
    network: Path | None = None  # the network namespace that QEMU runs in; else it has no network
    firmware: Firmware | None = None  # UEFI's; else the machine has a BIOS
    watchdog: bool = False  # it has an i6300esb, which resets it if a driver armed it
    # QEMU 7.2 with two may run old code under TCG while a kernel boots: docs/results/qemu.md.
    cpus: int = 1


def suited(spec: GuestSpec, variant_name: str) -> GuestSpec:
    """Return the spec with the memory, slowness, parameters and checkers of our variant."""
    one = variant(variant_name)
    return replace(
        spec,
        memory_mib=one.memory_mib,
        slowness=one.slowness,
        append=(*spec.append, *one.parameters),
        checkers=one.checkers,
    )


@dataclass(frozen=True)
class Snapshot:
    """A booted guest on disk; snapshot.ensure makes it, and it never changes."""

    home: Path
    spec: GuestSpec
    port: str | None = None  # the guest's name for its second control port

    @property
    def memory(self) -> Path:
        """The guest's memory: a sparse file that each restored guest maps copy-on-write.

        QEMU 7.2 opens it for writing nevertheless, so QEMU's user may write it.
        """
        return self.home / "memory"

    @property
    def disk(self) -> Path:
        """A qcow2 overlay with what the guest had written to its disk before the save."""
        return self.home / "disk.qcow2"

    @property
    def state(self) -> Path:
        """Processors and devices, as QEMU migrates them."""
        return self.home / "state"

    @property
    def console(self) -> Path:
        """The console from the kernel's first line to the save."""
        return self.home / "console.log"
