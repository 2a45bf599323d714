"""Find the order of GRUB's menu with GRUB's own function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kbuild.core.run import run

# GRUB's 10_linux takes the latest of the remaining kernels again and again (2.06), or sorts them
# (since 2.12).  The library fails with set -u.
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
    """Return kernel releases in the order of GRUB's menu; the default is the first one.

    Runs the function of the grub-common that is installed below ``root``, because versions
    differ.  GRUB 2.06 (Debian 12) compares with dpkg, later ones with sort -V.  Raises
    BuildError if it fails.
    """
    library = root / "usr/share/grub/grub-mkconfig_lib"
    paths = [f"/boot/vmlinuz-{release}" for release in releases]
    ordered = run(["sh", "-euc", _GRUB_ORDER, "grub-order", library, *paths], timeout_s=60).stdout
    return tuple(line.removeprefix("/boot/vmlinuz-") for line in ordered.splitlines())
