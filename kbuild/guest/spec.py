"""What a guest is made of, before it runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from kbuild.core.model import Kernel
from kbuild.core.variants import variant

# Where image.make puts the agent, and what the kernel starts as its init.
AGENT = "/usr/lib/cplayground/agent"
# The module with which the harness tests itself, one for each kernel of the image.
MISBEHAVE = "/usr/lib/cplayground/{release}/misbehave.ko"


@dataclass(frozen=True)
class Accelerator:
    """How QEMU executes the guest, and how much longer than on KVM things take there."""

    name: str  # QEMU's: kvm or tcg
    scale: float  # every deadline is multiplied by it


KVM = Accelerator("kvm", 1.0)
TCG = Accelerator("tcg", 6.0)
ACCELERATORS = {a.name: a for a in (KVM, TCG)}


@dataclass(frozen=True, kw_only=True)
class GuestSpec:
    """One guest: a kernel, a disk, and how they are run."""

    kernel: Kernel
    disk: Path  # raw ext4 image; never written
    accelerator: Accelerator = TCG
    memory_mib: int = 1024
    cpus: int = 2  # never 1: the races that we look for need two
    console: str = "ttyS0"  # of the kernel; "" boots one without (the harness's own tests)
    init: str = AGENT
    initrd: bool = True  # False for a kernel that has what it takes to reach the disk
    append: tuple[str, ...] = ()  # further kernel parameters
    slowness: float = 1.0  # of the kernel itself: a KASAN kernel takes its time
    checkers: frozenset[str] = frozenset()  # of lockdep, kmemleak, kcsan: what the kernel must have

    @property
    def scale(self) -> float:
        """The factor on every deadline."""
        return self.accelerator.scale * self.slowness


def suited(spec: GuestSpec, variant_name: str) -> GuestSpec:
    """Return the spec of a guest as our kernel of a variant needs it."""
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
    """A booted guest on disk: made by snapshot.ensure, and never changed."""

    home: Path
    spec: GuestSpec
    port: str | None = None  # the guest's name for its second control port

    @property
    def memory(self) -> Path:
        """What the guest's memory held: sparse, mapped copy-on-write by each restored guest.

        QEMU 7.2 opens it for writing all the same, so QEMU's user may write it.
        """
        return self.home / "memory"

    @property
    def disk(self) -> Path:
        """A qcow2 overlay with what the guest had written to its disk."""
        return self.home / "disk.qcow2"

    @property
    def state(self) -> Path:
        """Processors and devices, as QEMU migrates them."""
        return self.home / "state"

    @property
    def console(self) -> Path:
        """The kernel's words from its first line on, up to the save."""
        return self.home / "console.log"
