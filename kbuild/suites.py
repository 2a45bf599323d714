"""The one table of what a suite needs to be supported."""

from __future__ import annotations

from dataclasses import dataclass

from kbuild.errors import UserError


@dataclass(frozen=True)
class Suite:
    """A Debian suite as its archive and its kernel packaging name things."""

    name: str  # codename, as in dists/<name>
    pockets: tuple[str, ...]  # further dists of the main archive: bookworm-updates
    security: str  # dists name in the security archive: bookworm-security
    keyring: str  # file of debian-archive-keyring that signs it
    compiler: str  # what Debian builds its kernel with: gcc-12


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            name="bookworm",
            pockets=("bookworm-updates",),
            security="bookworm-security",
            keyring="/usr/share/keyrings/debian-archive-keyring.gpg",
            compiler="gcc-12",
        ),
    )
}

# Debian's flavours that we build on, and those of ours with the Debian flavour whose
# packages stand in where a distro kernel is needed (comparison, headers).
DEBIAN_FLAVOURS = ("cloud-amd64", "amd64")
OWN_FLAVOURS = {"lab": "cloud-amd64"}


def suite(name: str) -> Suite:
    """Look a suite up; raises UserError for one that is not in the table."""
    try:
        return SUITES[name]
    except KeyError:
        raise UserError(
            f"the suite {name!r} is not supported",
            expected=", ".join(sorted(SUITES)),
            found=name,
            hint="a suite is one entry in kbuild/suites.py and one series in patches/",
        ) from None


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
