"""A release: the packages of one kernel version, and its way to the servers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from kbuild.core.model import Package, Target


class State(StrEnum):
    """How far a release has come; only the packages of staged and promoted ones are in an index."""

    BUILT = "built"
    GATED = "gated"
    REFUSED = "refused"
    STAGED = "staged"
    PROMOTED = "promoted"
    SUPERSEDED = "superseded"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class Release:
    """The packages of one version of a kernel and of the module for it.

    They are its image, headers and module, the metapackages of these three, and the DKMS package.
    """

    target: Target
    kernel: str  # what uname -r prints
    version: str  # of the kernel's packages: 6.1.192-3+cplayground1
    packages: tuple[Package, ...]

    @property
    def id(self) -> str:
        """Return its name in the archive: bookworm-cloud-amd64-6.1.192-3+cplayground1."""
        return f"{self.target.suite}-{self.target.name}-{self.version}"


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
    promoted: tuple[Release, ...]  # of the same target, the newest first
