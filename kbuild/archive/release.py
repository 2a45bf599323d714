"""A release: the packages of one kernel version, and its way to the servers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from debian.debian_support import Version

from kbuild.core.model import Package, Target
from kbuild.ship.manifest import Output
from kbuild.ship.release import Release

__all__ = ["SERVED", "VISIBLE", "Change", "Record", "Release", "State", "View", "package"]


class State(StrEnum):
    """How far a release has come; only packages of staged and later ones are in an index."""

    BUILT = "built"  # before it is judged, so no record on disk has it
    GATED = "gated"
    REFUSED = "refused"
    STAGED = "staged"
    PROMOTED = "promoted"
    SUPERSEDED = "superseded"
    WITHDRAWN = "withdrawn"


# States of a release that servers can install from the suite, and those that staging shows too.
SERVED = (State.PROMOTED, State.SUPERSEDED)
VISIBLE = (State.STAGED, *SERVED)


@dataclass(frozen=True)
class Change:
    """One step of a release: what happened, when, by which commit, and why."""

    event: str  # a name of kbuild.archive.states.Event
    when: str  # UTC, ISO 8601
    commit: str  # of the checkout that did it
    state: State  # afterwards
    percent: int = 0  # afterwards
    reason: str = ""


@dataclass(frozen=True)
class Record:
    """The release.json of one release; paths of packages are relative to the archive."""

    suite: str
    flavour: str
    variant: str
    kernel: str  # what uname -r prints
    version: str
    packages: tuple[Output, ...]
    state: State = State.BUILT
    percent: int = 0  # of the servers; above 0 from the first promotion on
    evidence: Mapping[str, str] = field(default_factory=dict)  # file next to it -> SHA-256
    # The packages that bring a server with this withdrawn release back to an older one.
    rollback: tuple[Output, ...] = ()
    leads_to: str = ""  # the ID of that older release
    # Some of its packages were removed from the pool, so no index may show it any more.
    pruned: bool = False
    history: tuple[Change, ...] = ()

    @property
    def target(self) -> Target:
        """Return the target whose kernel this is."""
        return Target(self.suite, self.flavour, self.variant)

    @property
    def id(self) -> str:
        """Return the name of its directory, which is that of the release."""
        return f"{self.suite}-{self.target.name}-{self.version}"

    @property
    def order(self) -> Version:
        """Return what sorts the releases of a target as dpkg does."""
        return Version(self.version)

    @property
    def published(self) -> bool:
        """Return whether servers could see its packages at any time."""
        return any(one.state is State.STAGED for one in self.history)

    def release(self, root: Path) -> Release:
        """Return the release with the packages that lie below ``root``."""
        packages = tuple(package(root, one) for one in self.packages)
        return Release(self.target, self.kernel, self.version, packages)


def package(root: Path, output: Output) -> Package:
    """Return a package of the pool below ``root``."""
    return Package(
        output.name, output.version, output.architecture, root / output.path, output.sha256
    )


@dataclass(frozen=True)
class View:
    """An archive as servers will see it when a release is staged; nothing points to it yet.

    ``root`` has dists/ and pool/, and can be served as it is.  ``stable`` and ``staging`` are
    names in dists/.  ``keyring`` is the package with the keys that signed it.
    """

    root: Path
    stable: str
    staging: str
    keyring: Path
    candidate: Release
    promoted: tuple[Release, ...]  # older ones of the same target, the newest first
