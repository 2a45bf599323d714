"""Describe the variants of a kernel: their fragments, and what their guests need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kbuild.core.errors import UserError


@dataclass(frozen=True)
class Detector:
    """A kind of error that a kernel must detect, and the deed that triggers it."""

    deed: str  # in kbuild/guest/modules/misbehave, done by the function misbehave_<deed>
    kind: str  # triage's name for the report
    newer: str | None = None  # triage's name for it on newer kernels, if it differs

    def made(self, fingerprint: str) -> bool:
        """Return whether a report with this fingerprint has its kind and names its deed."""
        kind = fingerprint.partition(": ")[0]
        return kind in (self.kind, self.newer) and f"misbehave_{self.deed}" in fingerprint


@dataclass(frozen=True)
class Variant:
    """A set of fragments on a flavour, and how to run a guest with such a kernel."""

    name: str
    fragments: tuple[str, ...] = ()  # below fragments/, in order
    slowness: float = 1.0  # factor on a guest's deadlines, in addition to its accelerator's
    memory_mib: int = 1024
    parameters: tuple[str, ...] = ()  # of the kernel's command line

    @property
    def detectors(self) -> tuple[Detector, ...]:
        """Return what a kernel of this variant on the flavour lab must detect."""
        return tuple(d for name in (_LAB, *self.fragments) for d in DETECTORS.get(name, ()))

    @property
    def faults(self) -> tuple[str, ...]:
        """Return the deeds of kbuild/guest/modules/misbehave that the kernel can make fail."""
        return tuple(deed for name in self.fragments for deed in FAULTS.get(name, ()))

    @property
    def checkers(self) -> frozenset[str]:
        """Return the detectors that can be checked for life at the end of a run."""
        return frozenset(CHECKERS[name] for name in self.fragments if name in CHECKERS)


_LAB = "lab.config"

# By the fragment that enables them, so no variant can have a fragment without its detectors.
DETECTORS: Mapping[str, tuple[Detector, ...]] = {
    _LAB: (
        Detector("warn", "WARN"),
        Detector("refcount", "refcount addition on 0"),
        Detector("switch_in_rcu", "context switch under RCU"),
        Detector("spin", "soft lockup"),
        Detector("stuck", "hung task"),
    ),
    "kasan.config": (
        # 5.10 and 6.1; then 6.12 and 7.3
        Detector("use_after_free", "KASAN use-after-free", newer="KASAN slab-use-after-free"),
        Detector("out_of_bounds", "KASAN slab-out-of-bounds"),
        Detector("vmalloc_out_of_bounds", "KASAN vmalloc-out-of-bounds"),
        Detector("stack_out_of_bounds", "KASAN stack-out-of-bounds"),
        Detector("double_free", "KASAN double-free"),
        Detector("overrun", "slab Right Redzone overwritten", newer="slab Object corrupt"),
        Detector("freed_page", "page poisoning"),
        Detector("list", "list corruption list_del"),
    ),
    "lockdep.config": (
        Detector("recursive_lock", "lockdep possible recursive locking"),
        Detector("lock_order", "lockdep possible circular locking"),
        Detector("kept_lock", "lockdep lock held when returning"),
        Detector("sleep_in_spinlock", "sleeping in atomic"),
        Detector("sleep_in_rcu", "sleeping in atomic"),
        Detector("schedule_in_atomic", "scheduling while atomic"),
        Detector("no_rcu", "RCU usage"),
        Detector("armed_timer", "debug objects free active"),
    ),
    "kmemleak.config": (Detector("leak", "kmemleak"),),
    "kcsan.config": (Detector("race", "KCSAN data-race"),),
}

FAULTS: Mapping[str, tuple[str, ...]] = {
    "kmemleak.config": ("allocation", "page_allocation", "user_copy"),
}

CHECKERS: Mapping[str, str] = {
    "lockdep.config": "lockdep",
    "kmemleak.config": "kmemleak",
    "kcsan.config": "kcsan",
}

_KASAN = ("kasan.config",)
_LOCKDEP = ("lockdep.config",)
_KMEMLEAK = ("kmemleak.config",)
# Turn off mitigations, and the instructions that open user memory to the kernel.  Each such
# instruction ends a block of QEMU's translation.  Under emulation they cost a third of the
# listings read in the same time.  The release variant keeps them.
_PARAMETERS = ("mitigations=off", "nosmap")
# Red zones and poison only in the slabs that we share with others.  With all slabs and RCU's
# strict grace periods, a guest took two minutes to reach its init.
_SLABS = "FZP,filp,files_cache,pid,task_struct,seq_file"
# Without poison, kmemleak misses many leaks.  A free object contains a pointer to the next free
# object.  That pointer is still there when the object is handed out without zeroing, and kmemleak
# then counts the next object as used.  Poison moves the pointer behind the object
# (calculate_sizes() of mm/slub.c).  It also disables the sheaves of Linux 7, which keep pointers
# to the objects that they handed out.
_KMEMLEAK_SLABS = "P,kmalloc-*"
# Under emulation with KASAN, ACPI's _PRT method ran into its own time limits, which took 137 of
# the 160 s of the boot.
_KASAN_PARAMETERS = ("page_poison=1", "pci=noacpi")

VARIANTS: Mapping[str, Variant] = {
    one.name: one
    for one in (
        Variant("release"),
        Variant(
            "kasan",
            _KASAN,
            4.0,
            1536,
            (*_PARAMETERS, f"slub_debug={_SLABS}", *_KASAN_PARAMETERS),
        ),
        Variant("lockdep", _LOCKDEP, 3.0, parameters=_PARAMETERS),
        Variant(
            "kmemleak",
            _KMEMLEAK,
            2.0,
            parameters=(*_PARAMETERS, f"slub_debug={_KMEMLEAK_SLABS}"),
        ),
        Variant("kcsan", ("kcsan.config",), 6.0, parameters=_PARAMETERS),
        # All detectors that work together in one kernel: one build, one boot.
        Variant(
            "debug",
            (*_KASAN, *_LOCKDEP, *_KMEMLEAK),
            6.0,
            1536,
            (*_PARAMETERS, f"slub_debug={_SLABS};{_KMEMLEAK_SLABS}", *_KASAN_PARAMETERS),
        ),
    )
}


def variant(name: str) -> Variant:
    """Return a variant by its name; raises UserError for an unknown one."""
    if name not in VARIANTS:
        raise UserError(
            f"the variant {name!r} is not known", expected=", ".join(VARIANTS), found=name
        )
    return VARIANTS[name]


def named_in(flavour: str) -> str:
    """Return the variant at the end of a flavour's name, as in a release: lab-debug."""
    return next((name for name in VARIANTS if flavour.endswith(f"-{name}")), "release")
