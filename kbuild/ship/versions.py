"""Names and versions of what we ship, and the two orders that they must keep.

Package versions are compared by dpkg when apt upgrades; kernel releases are compared by
the boot loader when it chooses what to start.  Both orders have their own tests.
"""

from __future__ import annotations

import re
from pathlib import Path

from kbuild.core.errors import BuildError, UserError

# Marks our rebuilds in versions and releases.
VENDOR = "cplayground"

# What the parts of a release may hold, so that package names and boot loaders take it.
_FLAVOUR = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_VARIANT = re.compile(r"[a-z0-9]+")
_ABI = re.compile(r"[0-9]+(\.[0-9]+)*(\+[a-z0-9.]+)?(~[a-z0-9.]+)?(-[0-9]+|-[0-9.]+[a-z0-9.~]*)?")
_MODULE_VERSION = re.compile(r"[0-9]+(\.[0-9]+)+")
_DEBIAN_VERSION = re.compile(r"[0-9][A-Za-z0-9.+~]*-[A-Za-z0-9.+~]+")


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
