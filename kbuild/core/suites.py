"""The one table of what a suite needs to be supported."""

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
    """A Debian suite as its archive and its kernel packaging name things."""

    name: str  # what the user asks for, and our repository's dists/<name>
    codename: str  # of the Debian that its roots are made of, as in dists/<codename>
    pockets: tuple[str, ...]  # further dists of the main archive: bookworm-updates
    security: str  # dists name in the security archive: bookworm-security
    keyring: str  # file of debian-archive-keyring that signs it
    # What Debian builds its kernel with, by the name that it calls it by: CONFIG_CC_VERSION_TEXT
    # begins with that name, and the fast path wants the very same configuration.
    compiler: str
    mark: str  # ends the version of a package that is built for every suite: deb12
    merged_usr: bool = False  # packages install below /usr/lib, and may not below /lib
    kernel_dists: tuple[str, ...] = ()  # that its kernel comes from; () for all of the above
    # Packages of our roots that are called otherwise here, come from another dist (apt's
    # NAME/DIST), or do not exist ("").
    names: Mapping[str, str] = field(default_factory=dict)
    compile: tuple[str, ...] = ()  # further packages of a compile root: what its kernel needs
    guest: tuple[str, ...] = ()  # further packages of a guest: what its kernel's packages need
    # How many objects a build has, as was counted, for progress before the first one: by
    # method ("fast", "rebuild") and flavour.
    objects: Mapping[tuple[str, str], int] = field(default_factory=dict)

    @property
    def compiler_package(self) -> str:
        """The package of that compiler, and the name that it has without the machine's: gcc-14."""
        return self.compiler.removeprefix(_MULTIARCH)

    def packages(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Return packages by the names that they have in this suite."""
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
                # whose linux-run-hooks the split packages of 7.x run
                "linux-base": "linux-base/trixie-backports",
            },
            # CONFIG_RUST is on, and goes out silently where these are missing.
            compile=("bindgen", "rust-src", "rustc"),
            guest=("gcc-14-for-host", "pahole"),
            objects={("rebuild", "cloud-amd64"): 6811, ("rebuild", "lab"): 1341},
        ),
    )
}

# Debian's flavours that we build on, and those of ours with the Debian flavour whose
# packages stand in where a distro kernel is needed (comparison, headers).
DEBIAN_FLAVOURS = ("cloud-amd64", "amd64")
OWN_FLAVOURS = {"lab": "cloud-amd64"}
# <upstream>-<ABI>-<flavour>, or since trixie <upstream>+deb13-<flavour>
_RELEASE = re.compile(r"\d[\w.+~]*(?:-\d+)?(?:-cplayground)?-([a-z][a-z0-9-]*)")


USUAL_SUITE, _USUAL_FLAVOUR = "bookworm", "cloud-amd64"
OS_RELEASE = Path("/etc/os-release")


def own_suite(os_release: Path = OS_RELEASE) -> str:
    """Return the suite of this machine where it is one of the table, else bookworm."""
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
    """Return the flavour of the kernel that runs where it is Debian's, else cloud-amd64.

    ``release`` is what ``uname -r`` prints: 6.1.0-56-cloud-amd64, or our own
    6.1.0-56-cplayground-amd64.
    """
    found = _RELEASE.fullmatch(release or os.uname().release)
    return found[1] if found and found[1] in DEBIAN_FLAVOURS else _USUAL_FLAVOUR


def suite(name: str) -> Suite:
    """Look a suite up; raises UserError for one that is not in the table."""
    try:
        return SUITES[name]
    except KeyError:
        raise UserError(
            f"the suite {name!r} is not supported",
            expected=", ".join(sorted(SUITES)),
            found=name,
            hint="a suite is one entry in kbuild/core/suites.py and one series in patches/",
        ) from None


def usual_objects(name: str, method: str, flavour: str) -> int | None:
    """Return how many objects a build of a suite's kernel has, before anybody has counted here.

    Where it was never counted, that of another suite, the largest; None where no suite's was.
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
