"""Names and versions of what we ship, and the two orders that they must keep.

Package versions are compared by dpkg when apt upgrades; kernel releases are compared by
the boot loader when it chooses what to start.  Both orders have their own tests.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from kbuild.errors import BuildError, UserError
from kbuild.run import run

# Marks our rebuilds in versions and releases.
VENDOR = "cplayground"

# What the parts of a release may hold, so that package names and boot loaders take it.
_FLAVOUR = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_VARIANT = re.compile(r"[a-z0-9]+")
_ABI = re.compile(r"[0-9]+(\.[0-9]+)*(\+[a-z0-9.]+)?(~[a-z0-9.]+)?(-[0-9]+|-[0-9.]+[a-z0-9.~]*)?")
_MODULE_VERSION = re.compile(r"[0-9]+(\.[0-9]+)+")
_UPSTREAM = re.compile(r"[0-9]+(\.[0-9]+)+(~rc[0-9]+)?")
_DEBIAN_VERSION = re.compile(r"[0-9][A-Za-z0-9.+~]*-[A-Za-z0-9.+~]+")

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


def package_version(base_version: str, revision: int) -> str:
    """Return the version of our packages: above their base's, below Debian's next one.

    ``6.1.192-2`` becomes ``6.1.192-2+cplayground1``.  Raises UserError for a base that is
    not a Debian source version with a revision, or a ``revision`` below 1.
    """
    if not _DEBIAN_VERSION.fullmatch(base_version) or VENDOR in base_version:
        raise UserError(
            f"{base_version!r} is not the version of a distro kernel",
            expected="<upstream>-<Debian revision>, such as 6.1.192-2",
            found=base_version,
        )
    if revision < 1:
        raise UserError(
            "the revision of our packages counts from 1", expected="1 or more", found=str(revision)
        )
    return f"{base_version}+{VENDOR}{revision}"


def release(abi: str, flavour: str, variant: str = "release") -> str:
    """Return what ``uname -r`` prints on our kernel: 6.1.0-56-cplayground-cloud-amd64.

    It begins with its base's own ABI name, so that it sorts beside its base in the boot
    menu, and reads as version-abi-flavour in DKMS's hooks.  A variant is appended.
    Raises UserError for a name that a package or a boot loader would take amiss.
    """
    for what, value, pattern in (
        ("ABI name", abi, _ABI),
        ("flavour", flavour, _FLAVOUR),
        ("variant", variant, _VARIANT),
    ):
        if not pattern.fullmatch(value):
            raise UserError(f"{value!r} is not a usable {what}", found=value)
    return f"{abi}-{VENDOR}-{flavour_name(flavour, variant)}"


def flavour_name(flavour: str, variant: str = "release") -> str:
    """Return the flavour with its variant, as names of packages and directories have it."""
    return flavour if variant == "release" else f"{flavour}-{variant}"


def image_package(kernel_release: str) -> str:
    """Return the package that holds a kernel and its modules."""
    return f"linux-image-{kernel_release}"


def headers_package(kernel_release: str) -> str:
    """Return the package that modules for a kernel are built against."""
    return f"linux-headers-{kernel_release}"


def modules_package(kernel_release: str) -> str:
    """Return the package that holds our module, built for one kernel."""
    return f"cplayground-modules-{kernel_release}"


def image_meta(flavour: str, variant: str = "release") -> str:
    """Return the package that follows the newest kernel of a flavour."""
    return f"linux-image-{VENDOR}-{flavour_name(flavour, variant)}"


def headers_meta(flavour: str, variant: str = "release") -> str:
    """Return the package that follows the newest headers of a flavour."""
    return f"linux-headers-{VENDOR}-{flavour_name(flavour, variant)}"


def modules_meta(flavour: str, variant: str = "release") -> str:
    """Return the package that follows the newest prebuilt module of a flavour."""
    return f"{VENDOR}-modules-{flavour_name(flavour, variant)}"


def source_package(flavour: str, variant: str = "release") -> str:
    """Return the source package that a flavour's kernel packages come from."""
    return f"linux-{VENDOR}-{flavour_name(flavour, variant)}"


def module_version(project: Path) -> str:
    """Return our module's version, which stands in one place, kmod/VERSION.

    Raises BuildError when that is no version.
    """
    path = project / "kmod" / "VERSION"
    text = path.read_text().strip() if path.exists() else ""
    if not _MODULE_VERSION.fullmatch(text):
        raise BuildError(
            "the module has no version", expected=f"one line in {path}, such as 0.1.0", found=text
        )
    return text


def prebuilt_version(module: str, kernel: str) -> str:
    """Return the version of the module's package for one kernel: 0.1.0+6.1.192-2+cplayground1.

    It rises with the module's version as well as with the kernel's.
    """
    return f"{module}+{kernel}"


def dkms_version(module: str, mark: str) -> str:
    """Return the version of the module's package for DKMS in one suite: 0.1.0+deb12.

    ``mark`` is the suite's: a repository holds one file of a name and version, and each
    suite's own tools make another.
    """
    return f"{module}+{mark}"


def upstream_in_range(upstream: str, specifier: str) -> bool:
    """Say whether an upstream kernel version lies in a series' range: 6.1.192 in >=5.11,<8.

    Debian writes a release candidate 6.12~rc3; it counts as what PEP 440 calls 6.12rc3,
    before 6.12.  Raises UserError when either of the two cannot be read.
    """
    # PEP 440 would read 6.1.192-2, a source version, as a post-release.
    if not _UPSTREAM.fullmatch(upstream):
        raise UserError(
            f"{upstream!r} is not an upstream kernel version", expected="such as 6.1.192"
        )
    try:
        return SpecifierSet(specifier).contains(
            Version(upstream.replace("~rc", "rc")), prereleases=True
        )
    except InvalidSpecifier:
        raise UserError(
            f"{specifier!r} is not a range of kernels", expected="such as >=5.11,<8"
        ) from None


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
