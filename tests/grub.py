"""The order of GRUB's menu, by GRUB's own function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kbuild.core.run import run

# What GRUB's 10_linux does with the kernels that it finds, in its two generations: take the
# latest of what is left (2.06), or sort all (since 2.12).  The library does not bear set -u.
_GRUB_ORDER = """
library=$1; shift
set +eu
. "$library"
set -e
if command -v version_find_latest >/dev/null; then
    while [ $# -gt 0 ]; do
        latest=$(version_find_latest "$@")
        echo "$latest"
        for kernel; do
            shift
            [ "$kernel" = "$latest" ] || set -- "$@" "$kernel"
        done
    done
else
    printf '%s\\n' "$@" | version_sort -r
fi
"""


def boot_order(releases: Sequence[str], root: Path = Path("/")) -> tuple[str, ...]:
    """Return kernel releases as GRUB's menu has them: the one that is booted first in front.

    Runs the function of the grub-common that is installed below ``root``, so that what is
    tested is what decides there: GRUB 2.06 (Debian 12) compares with dpkg, later ones sort
    with sort -V.  Raises BuildError when it fails.
    """
    library = root / "usr/share/grub/grub-mkconfig_lib"
    paths = [f"/boot/vmlinuz-{release}" for release in releases]
    ordered = run(["sh", "-euc", _GRUB_ORDER, "grub-order", library, *paths], timeout_s=60).stdout
    return tuple(line.removeprefix("/boot/vmlinuz-") for line in ordered.splitlines())
