"""Describe the supported suites in one table."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kbuild.core.errors import UserError

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_MULTIARCH = "x86_64-linux-gnu-"


@dataclass(frozen=True)
class Suite:
    """A Debian suite, with the names that its archive and kernel packages use."""

    name: str  # the user's --suite, and our repository's dists/<name>
    codename: str  # of the Debian in its roots, as in dists/<codename>
    pockets: tuple[str, ...]  # more dists of the main archive: bookworm-updates
    security: str  # dist in the security archive: bookworm-security
    keyring: str  # file of debian-archive-keyring with its keys
    # Debian's compiler for its kernel, by Debian's name for it.  CONFIG_CC_VERSION_TEXT begins
    # with that name, and the fast path needs exactly the same configuration.
    compiler: str
    mark: str  # suffix of the version of a package built for every suite: deb12
    merged_usr: bool = False  # packages must install below /usr/lib, not below /lib
    kernel_dists: tuple[str, ...] = ()  # sources of its kernel; () for all of the above
    # Packages of our roots that have another name here, come from another dist (apt's NAME/DIST),
    # or do not exist ("").
    names: Mapping[str, str] = field(default_factory=dict)
    compile: tuple[str, ...] = ()  # more packages of a compile root, needed by its kernel
    guest: tuple[str, ...] = ()  # more packages of a guest, needed by its kernel's packages
    # Counted number of objects in a build, for progress before the first one; by method ("fast",
    # "rebuild") and flavour.
    objects: Mapping[tuple[str, str], int] = field(default_factory=dict)

    @property
    def compiler_package(self) -> str:
        """Return the package of that compiler, which is also its short name: gcc-14."""
        return self.compiler.removeprefix(_MULTIARCH)

    def packages(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Return the names of packages in this suite."""
        return tuple(here for name in wanted if (here := self.names.get(name, name)))


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            name="bullseye",
            codename="bullseye",
            pockets=("bullseye-updates",),
            security="bullseye-security",
            keyring=_KEYRING,
            compiler="gcc-10",
            mark="deb11",
            names={
                "dh-dkms": "dkms",
                "libssl3": "libssl1.1",
                "pahole": "dwarves",
                "python3-kconfiglib": "",
            },
            objects={
                ("fast", "amd64"): 2349,
                ("fast", "cloud-amd64"): 2163,
                ("rebuild", "lab"): 1214,
            },
        ),
        Suite(
            name="bookworm",
            codename="bookworm",
            pockets=("bookworm-updates",),
            security="bookworm-security",
            keyring=_KEYRING,
            compiler="gcc-12",
            mark="deb12",
            objects={
                ("fast", "amd64"): 2549,
                ("fast", "cloud-amd64"): 2365,
                ("rebuild", "cloud-amd64"): 6352,
                ("rebuild", "lab"): 1245,
            },
        ),
        Suite(
            name="trixie",
            codename="trixie",
            pockets=("trixie-updates",),
            security="trixie-security",
            keyring=_KEYRING,
            compiler=f"{_MULTIARCH}gcc-14",
            mark="deb13",
            merged_usr=True,
            names={"libelf1": "libelf1t64", "libssl3": "libssl3t64"},
            guest=("gcc-14", "pahole"),
            objects={
                ("fast", "amd64"): 2798,
                ("fast", "cloud-amd64"): 2615,
                ("rebuild", "lab"): 1298,
            },
        ),
        Suite(
            name="trixie-backports",
            codename="trixie",
            pockets=("trixie-updates", "trixie-backports"),
            security="trixie-security",
            keyring=_KEYRING,
            compiler=f"{_MULTIARCH}gcc-14",
            mark="deb13bpo",
            merged_usr=True,
            kernel_dists=("trixie-backports",),
            names={
                "libelf1": "libelf1t64",
                "libssl3": "libssl3t64",
                # Its linux-run-hooks is run by the split packages of 7.x.
                "linux-base": "linux-base/trixie-backports",
            },
            # Without these packages Kconfig silently turns CONFIG_RUST off.
            compile=("bindgen", "rust-src", "rustc"),
            guest=("gcc-14-for-host", "pahole"),
            objects={("rebuild", "cloud-amd64"): 6811, ("rebuild", "lab"): 1341},
        ),
    )
}

ALL = "all"  # what --suite says for every suite

# Debian's flavours that we build on; then our own, each with the Debian flavour whose packages
# serve where a distro kernel is needed (comparison, headers).
DEBIAN_FLAVOURS = ("cloud-amd64", "amd64")
OWN_FLAVOURS = {"lab": "cloud-amd64"}
# <upstream>-<ABI>-<flavour>, or since trixie <upstream>+deb13-<flavour>.  Ours have a part more,
# which kbuild/ship/versions.py writes.
_RELEASE = re.compile(
    r"\d[^-]*(?:-\d[^-]*)?"
    r"(?P<ours>-cplayground(?:\.(?P<revision>\d+))?)?"
    r"-(?P<flavour>[a-z][a-z0-9-]*)"
)

USUAL_SUITE, _USUAL_FLAVOUR = "bookworm", "cloud-amd64"
OS_RELEASE = Path("/etc/os-release")


def own_suite(os_release: Path = OS_RELEASE) -> str:
    """Return this machine's suite if it is in the table, else bookworm."""
    try:
        text = os_release.read_text()
    except OSError:
        return USUAL_SUITE
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if fields.get("ID", "").strip("\"'") != "debian":
        return USUAL_SUITE
    codename = fields.get("VERSION_CODENAME", "").strip("\"'")
    return codename if codename in SUITES else USUAL_SUITE


def own_flavour(release: str | None = None) -> str:
    """Return the flavour of the running kernel if it is Debian's, else cloud-amd64.

    ``release`` is what ``uname -r`` prints: 6.1.0-56-cloud-amd64, or our own
    6.1.0-56-cplayground-amd64.
    """
    flavour = flavour_of(release or os.uname().release)
    return flavour if flavour in DEBIAN_FLAVOURS else _USUAL_FLAVOUR


def is_ours(release: str) -> bool:
    """Return whether a kernel release is one of this project, not one of Debian's."""
    found = _RELEASE.fullmatch(release)
    return found is not None and found["ours"] is not None


def revision_of(release: str) -> int:
    """Return the revision in a release of ours: 2 of 6.1.0-56-cplayground.2-cloud-amd64."""
    found = _RELEASE.fullmatch(release)
    return int((found and found["revision"]) or 1)


def flavour_of(release: str) -> str:
    """Return the flavour in a kernel release: cloud-amd64 of 6.1.0-56-cplayground.2-cloud-amd64.

    Another form of release is its own flavour.
    """
    found = _RELEASE.fullmatch(release)
    return found["flavour"] if found else release


def suite(name: str) -> Suite:
    """Return a suite by its name; raises UserError if it is not in the table."""
    try:
        return SUITES[name]
    except KeyError:
        raise UserError(
            f"the suite {name!r} is not supported",
            expected=", ".join(sorted(SUITES)),
            found=name,
            hint="to add a suite, add an entry to kbuild/core/suites.py and a series to patches/",
        ) from None


def usual_objects(name: str, method: str, flavour: str) -> int | None:
    """Return how many objects a kernel build is expected to have before a build has counted.

    If this suite was never counted, return the largest count of any suite, or None.
    """
    key = (method, flavour)
    counted = [one.objects[key] for one in SUITES.values() if key in one.objects]
    return suite(name).objects.get(key, max(counted, default=None))


def base_flavour(flavour: str) -> str:
    """Return the Debian flavour behind ``flavour``; raises UserError for an unknown one."""
    if flavour in DEBIAN_FLAVOURS:
        return flavour
    if flavour in OWN_FLAVOURS:
        return OWN_FLAVOURS[flavour]
    raise UserError(
        f"the flavour {flavour!r} is not supported",
        expected=", ".join((*DEBIAN_FLAVOURS, *OWN_FLAVOURS)),
        found=flavour,
    )
