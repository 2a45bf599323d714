"""Build cplayground-kernel-guard, with which a server returns by itself from a bad kernel."""

from __future__ import annotations

import re
import shutil
from datetime import datetime
from pathlib import Path

from kbuild.core import suites
from kbuild.core.errors import BuildError
from kbuild.core.model import Package, Root, Settings
from kbuild.ship import deb, versions

PACKAGE = "cplayground-kernel-guard"

_VERSION = re.compile(r"([0-9]+(?:\.[0-9]+)+) (\d{4}-\d\d-\d\d)")


def version(project: Path) -> tuple[str, int]:
    """Return the guard's version and its day in seconds since 1970; both are in guard/VERSION.

    Raises BuildError if the file does not contain them.
    """
    path = project / "guard" / "VERSION"
    text = path.read_text().strip() if path.exists() else ""
    found = _VERSION.fullmatch(text)
    try:
        day = datetime.fromisoformat(f"{found[2] if found else ''}T00:00Z")
    except ValueError:
        found = None
    if found is None:
        raise BuildError(
            "the guard has no version",
            expected=f"one line in {path}, such as 0.1.0 2026-11-30",
            found=text,
        )
    return found[1], int(day.timestamp())


def build_package(settings: Settings, root: Root, *, log: Path, out: Path) -> tuple[Package, ...]:
    """Build the package from guard/; replaces ``out``.

    The changelog and every file have the day of the version.
    """
    guard = settings.project / "guard"
    row = suites.suite(root.suite)
    number, epoch = version(settings.project)
    source = deb.SourcePackage(
        name=PACKAGE,
        version=versions.dkms_version(number, row.mark),
        templates=settings.project / "debian" / "guard",
        packages={"guard": PACKAGE},
        context={"suite": row.codename, "guard_version": number},
    )

    def collect(stage: Path) -> None:
        # Files keep their modes: most are programs.
        shutil.copytree(guard / "root", stage / "guard")
        shutil.copyfile(guard / "cplayground-guard.8", stage / "cplayground-guard.8")

    return deb.build(root, source, collect, epoch=epoch, log=log, out=out)
