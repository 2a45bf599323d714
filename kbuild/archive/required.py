"""Name the gate's cases, all of which a release needs; the gate runs them, the archive checks."""

from __future__ import annotations

from kbuild.ship import mok

REQUIRED = (
    "install",
    "install-dkms",
    "upgrade",
    "downgrade",
    "remove",
    "autoremove",
    "reinstall",
    "foreign-dkms",
    "rollback",
    "guard",
    "secure-boot",
    "secure-boot-dkms",
)
# These start from a release that servers have already.
NEED_OLDER = frozenset({"upgrade", "downgrade", "rollback"})
# Their outcome while the archive has no such release of that target.
NOTHING_OLDER = "nothing older"
# These need the key for Secure Boot, and their outcome without one.
NEED_KEY = frozenset({"secure-boot", "secure-boot-dkms"})
NO_KEY = "not judged: no MOK key"
# The kernel's signature among the evidence of a release, which then needs the case.
SIGNATURE = mok.KERNEL
