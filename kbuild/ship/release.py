"""A release: the packages of one version of a kernel, with the module for it."""

from __future__ import annotations

from dataclasses import dataclass

from kbuild.core.model import Package, Target


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
