"""Packages that all targets of a suite share, because no part of them depends on a kernel."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kbuild.core import suites
from kbuild.core.errors import BuildError
from kbuild.core.model import Package, Root, Settings
from kbuild.ship import deb, versions

_DATED = re.compile(r"([0-9]+(?:\.[0-9]+)+) (\d{4}-\d\d-\d\d)")


@dataclass(frozen=True)
class SharedPackage:
    """A source package with one binary package of the same name."""

    name: str
    role: str  # its templates are in debian/<role>
    content: str  # for a person
    version_file: str  # in the checkout; the only home of its version

    @property
    def results(self) -> str:
        """The name of the directory of its results, in that of a suite."""
        return f"packages-{self.role}"


DKMS = SharedPackage("cplayground-dkms", "dkms", "the module", "kmod/VERSION")
GUARD = SharedPackage("cplayground-kernel-guard", "guard", "the guard", "guard/VERSION")
TOOL = SharedPackage("cplayground", "cplayground", "the tool", "cplayground/VERSION")
ALL = (DKMS, GUARD, TOOL)


def dated_version(project: Path, package: SharedPackage) -> tuple[str, int]:
    """Return a package's version and its day in seconds since 1970; its file has both.

    Raises BuildError if the file does not contain them.
    """
    path = project / package.version_file
    text = path.read_text().strip() if path.exists() else ""
    found = _DATED.fullmatch(text)
    try:
        day = datetime.fromisoformat(f"{found[2] if found else ''}T00:00Z")
    except ValueError:
        found = None
    if found is None:
        raise BuildError(
            f"{package.content} has no version",
            expected=f"one line in {path}, such as 0.1.0 2026-11-30",
            found=text,
        )
    return found[1], int(day.timestamp())


def build(
    settings: Settings,
    root: Root,
    package: SharedPackage,
    dated: tuple[str, int],
    collect: Callable[[Path], None],
    *,
    log: Path,
    out: Path,
) -> tuple[Package, ...]:
    """Build the package from what ``collect`` puts into a directory; replaces ``out``.

    ``dated`` is its version, and the time of the changelog and of every file, in seconds since
    1970.  Raises what :func:`deb.build` raises.
    """
    version, epoch = dated
    row = suites.suite(root.suite)
    source = deb.SourcePackage(
        name=package.name,
        version=versions.suite_version(version, row.mark),
        templates=settings.project / "debian" / package.role,
        packages={package.role: package.name},
        context={"suite": row.codename, f"{package.role}_version": version},
    )
    return deb.build(root, source, collect, epoch=epoch, log=log, out=out)
