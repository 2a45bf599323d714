"""Build cplayground-kernel-guard, with which a server returns by itself from a bad kernel."""

from __future__ import annotations

import shutil
from pathlib import Path

from kbuild.core.model import Package, Root, Settings
from kbuild.ship import shared

PACKAGE = shared.GUARD.name


def build_package(settings: Settings, root: Root, *, log: Path, out: Path) -> tuple[Package, ...]:
    """Build the package from guard/; replaces ``out``.

    The changelog and every file have the day of the version.
    """
    guard = settings.project / "guard"
    dated = shared.dated_version(settings.project, shared.GUARD)

    def collect(stage: Path) -> None:
        # Files keep their modes: most are programs.
        shutil.copytree(guard / "root", stage / "guard")
        shutil.copyfile(guard / "cplayground-guard.8", stage / "cplayground-guard.8")

    return shared.build(settings, root, shared.GUARD, dated, collect, log=log, out=out)
