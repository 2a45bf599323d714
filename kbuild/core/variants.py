"""The variants of a kernel: which fragments, and what its guests need beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kbuild.core.errors import UserError


@dataclass(frozen=True)
class Detector:
    """What a kernel has to notice, and how it is tripped to show that it does."""

    deed: str  # of kbuild/guest/modules/misbehave, done by its function misbehave_<deed>
    kind: str  # what triage calls the report
    newer: str | None = None  # what triage calls it where newer kernels have another word

    def made(self, fingerprint: str) -> bool:
        """Whether a report with this fingerprint is of its kind, and about its deed."""
        kind = fingerprint.partition(": ")[0]
        return kind in (self.kind, self.newer) and f"misbehave_{self.deed}" in fingerprint


@dataclass(frozen=True)
class Variant:
    """Fragments on a flavour, and how a guest with such a kernel is run."""

    name: str
    fragments: tuple[str, ...] = ()  # below fragments/, in order
    slowness: float = 1.0  # factor on a guest's deadlines, beside its accelerator's
    memory_mib: int = 1024
    parameters: tuple[str, ...] = ()  # of the kernel's command line

    @property
    def detectors(self) -> tuple[Detector, ...]:
        """What a kernel of this variant on the flavour lab has to notice."""
        return tuple(d for name in (_LAB, *self.fragments) for d in DETECTORS.get(name, ()))

    @property
    def faults(self) -> tuple[str, ...]:
        """Deeds of kbuild/guest/modules/misbehave that it can make fail on demand."""
        return tuple(deed for name in self.fragments for deed in FAULTS.get(name, ()))

    @property
    def checkers(self) -> frozenset[str]:
        """Those detectors that can be asked at the end of a run whether they are alive."""
        return frozenset(CHECKERS[name] for name in self.fragments if name in CHECKERS)


_LAB = "lab.config"

# By the fragment that brings it, so that no variant can have one without its detectors.
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
# Barriers against other users of a processor, and the instructions that open user memory for
# the kernel, each of which ends a block of QEMU's translation: under emulation they took a
# third of the listings that were read in the same time.  The release has them.
_PARAMETERS = ("mitigations=off", "nosmap")
# Red zones and poison in the slabs that we use with others.  In all of them, with RCU's
# strict grace periods, a guest was seen to take two minutes to its init.
_SLABS = "FZP,filp,files_cache,pid,task_struct,seq_file"
# What is leaked is often not found unless it is poisoned first: a free object bears a pointer to
# the next one, which is still in it when it is handed out and not zeroed, and by which kmemleak
# holds that next one for used; poison moves it behind the object (calculate_sizes() of
# mm/slub.c).  And sheaves of Linux 7 keep pointers to what they have handed out; with poison
# there are none.
_KMEMLEAK_SLABS = "P,kmalloc-*"
# Under emulation with KASAN, ACPI's _PRT method ran into its own time limits: 137 of the
# 160 s that the boot took.
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
        # Everything that goes together in one kernel: one build, one boot.
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
    """Return the variant that a flavour's name ends with, as in a release: lab-debug."""
    return next((name for name in VARIANTS if flavour.endswith(f"-{name}")), "release")
