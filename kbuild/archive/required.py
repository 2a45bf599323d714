"""Name the gate's cases, all of which a release needs; the gate runs them, the archive checks."""

from __future__ import annotations

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
)
# These start from a release that servers have already.
NEED_OLDER = frozenset({"upgrade", "downgrade", "rollback"})
# Their outcome while the archive has no such release of that target.
NOTHING_OLDER = "nothing older"
