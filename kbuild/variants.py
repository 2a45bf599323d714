"""The variants of a kernel: which fragments, and what its guests need beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kbuild.errors import UserError


@dataclass(frozen=True)
class Variant:
    """Fragments on a flavour, and how a guest with such a kernel is run."""

    name: str
    fragments: tuple[str, ...] = ()  # below fragments/, in order
    slowness: float = 1.0  # factor on a guest's deadlines, beside its accelerator's
    memory_mib: int = 1024
    parameters: tuple[str, ...] = ()  # of the kernel's command line


_KASAN = ("kasan.config",)
_LOCKDEP = ("lockdep.config",)
_KMEMLEAK = ("kmemleak.config",)
_POISON = ("page_poison=1",)

VARIANTS: Mapping[str, Variant] = {
    one.name: one
    for one in (
        Variant("release"),
        Variant("kasan", _KASAN, 4.0, 1536, _POISON),
        Variant("lockdep", _LOCKDEP, 3.0),
        Variant("kmemleak", _KMEMLEAK, 2.0),
        Variant("kcsan", ("kcsan.config",), 4.0),
        # Everything that goes together in one kernel: one build, one boot.
        Variant("debug", (*_KASAN, *_LOCKDEP, *_KMEMLEAK), 6.0, 1536, _POISON),
    )
}


def variant(name: str) -> Variant:
    """Return a variant by its name; raises UserError for an unknown one."""
    if name not in VARIANTS:
        raise UserError(
            f"the variant {name!r} is not known", expected=", ".join(VARIANTS), found=name
        )
    return VARIANTS[name]
