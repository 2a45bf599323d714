"""Define names and versions of our packages and kernels, and keep their two sort orders.

dpkg compares package versions when apt upgrades; the boot loader compares kernel releases when it
chooses one to start.  Both orders have their own tests.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from kbuild.core.errors import BuildError, UserError

# Marks our rebuilds in versions and releases.
VENDOR = "cplayground"

# Characters in the parts of a release that package names and boot loaders accept.
_FLAVOUR = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_VARIANT = re.compile(r"[a-z0-9]+")
_ABI = re.compile(r"[0-9]+(\.[0-9]+)*(\+[a-z0-9.]+)?(~[a-z0-9.]+)?(-[0-9]+|-[0-9.]+[a-z0-9.~]*)?")
_MODULE_VERSION = re.compile(r"[0-9]+(\.[0-9]+)+")
_DEBIAN_VERSION = re.compile(r"[0-9][A-Za-z0-9.+~]*-[A-Za-z0-9.+~]+")


def package_version(base_version: str, revision: int) -> str:
    """Return the version of our packages: above their base's, below Debian's next one.

    ``6.1.192-2`` becomes ``6.1.192-2+cplayground1``.  Raises UserError if the base is not a
    Debian source version with a revision, or if ``revision`` is below 1.
    """
    if not _DEBIAN_VERSION.fullmatch(base_version) or VENDOR in base_version:
        raise UserError(
            f"{base_version!r} is not the version of a distro kernel",
            expected="<upstream>-<Debian revision>, such as 6.1.192-2",
            found=base_version,
        )
    return f"{base_version}+{VENDOR}{_counted(revision)}"


def base_version(version: str) -> str:
    """Return the distro's version in one of our packages' versions."""
    return version.rpartition(f"+{VENDOR}")[0]


def directory(base_version: str, revision: int) -> str:
    """Return the name of the directory in build/ with the results of one revision.

    Each revision has its own, so an older one's debug information and packages stay.
    """
    return base_version if revision == 1 else package_version(base_version, revision)


def _counted(revision: int) -> int:
    if revision < 1:
        raise UserError(
            "the revision of our packages counts from 1", expected="1 or more", found=str(revision)
        )
    return revision


def release(abi: str, flavour: str, variant: str = "release", revision: int = 1) -> str:
    """Return what ``uname -r`` prints on our kernel: 6.1.0-56-cplayground-cloud-amd64.

    It begins with its base's ABI name, so it sorts next to its base in the boot menu, and DKMS's
    hooks read it as version-abi-flavour.  A variant is appended.  From revision 2 on it has the
    revision (6.1.0-56-cplayground.2-cloud-amd64), so that two revisions are installed side by
    side.  Raises UserError for a name that package names or boot loaders do not accept.
    """
    # A dot sorts above the dash that follows the vendor in revision 1.  A digit without a dot
    # sorts below that dash, for dpkg and for sort -V, and GRUB would start the older kernel.
    vendor = VENDOR if _counted(revision) == 1 else f"{VENDOR}.{revision}"
    for what, value, pattern in (
        ("ABI name", abi, _ABI),
        ("flavour", flavour, _FLAVOUR),
        ("variant", variant, _VARIANT),
    ):
        if not pattern.fullmatch(value):
            raise UserError(f"{value!r} is not a usable {what}", found=value)
    return f"{abi}-{vendor}-{flavour_name(flavour, variant)}"


def flavour_name(flavour: str, variant: str = "release") -> str:
    """Return the flavour with its variant, as in the names of packages and directories."""
    return flavour if variant == "release" else f"{flavour}-{variant}"


def image_package(kernel_release: str) -> str:
    """Return the name of the package with a kernel and its modules."""
    return f"linux-image-{kernel_release}"


def headers_package(kernel_release: str) -> str:
    """Return the name of the package for building modules for a kernel."""
    return f"linux-headers-{kernel_release}"


def modules_package(kernel_release: str) -> str:
    """Return the name of the package with our module, built for one kernel."""
    return f"cplayground-modules-{kernel_release}"


def image_meta(flavour: str, variant: str = "release") -> str:
    """Return the name of the package that depends on the newest kernel of a flavour."""
    return f"linux-image-{VENDOR}-{flavour_name(flavour, variant)}"


def headers_meta(flavour: str, variant: str = "release") -> str:
    """Return the name of the package that depends on the newest headers of a flavour."""
    return f"linux-headers-{VENDOR}-{flavour_name(flavour, variant)}"


def modules_meta(flavour: str, variant: str = "release") -> str:
    """Return the name of the package that depends on a flavour's newest prebuilt module."""
    return f"{VENDOR}-modules-{flavour_name(flavour, variant)}"


def source_package(flavour: str, variant: str = "release") -> str:
    """Return the name of the source package of a flavour's kernel packages."""
    return f"linux-{VENDOR}-{flavour_name(flavour, variant)}"


def module_version(project: Path) -> str:
    """Return our module's version, whose only home is kmod/VERSION.

    Raises BuildError if the file does not contain a version.
    """
    path = project / "kmod" / "VERSION"
    text = path.read_text().strip() if path.exists() else ""
    if not _MODULE_VERSION.fullmatch(text):
        raise BuildError(
            "the module has no version", expected=f"one line in {path}, such as 0.1.0", found=text
        )
    return text


def module_epoch(project: Path) -> int:
    """Return the day of our module's version in the changelog, in seconds since 1970.

    Raises BuildError if CHANGELOG.md has no dated heading of that version.
    """
    path, version = project / "CHANGELOG.md", module_version(project)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    heading = rf"^## \[{re.escape(version)}\] - (\d{{4}}-\d\d-\d\d)$"
    found = re.search(heading, text, re.MULTILINE)
    try:
        return int(datetime.fromisoformat(f"{found[1] if found else ''}T00:00Z").timestamp())
    except ValueError:
        raise BuildError(
            f"the module's version {version} has no date",
            expected=f"a heading in {path}, such as '## [{version}] - 2026-11-30'",
            found=found[0] if found else "no such heading",
        ) from None


def prebuilt_version(module: str, kernel: str) -> str:
    """Return the version of the module's package for one kernel: 0.1.0+6.1.192-2+cplayground1.

    It rises with the module's version and with the kernel's.
    """
    return f"{module}+{kernel}"


def suite_version(version: str, mark: str) -> str:
    """Return the version of a package in one suite, whose targets share it: 0.1.0+deb12.

    ``mark`` is the suite's.  It is needed because a repository has one file for each name and
    version, and the tools of each suite make a different file.
    """
    return f"{version}+{mark}"
