"""Build the package with which DKMS builds our module for each kernel on the user's machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from kbuild.core.errors import BuildError
from kbuild.core.model import Package, Root, Settings
from kbuild.ship import deb, shared, versions

PACKAGE = shared.DKMS.name

_NAMES = {"Kbuild", "Makefile", "VERSION"}
_SUFFIXES = {".c", ".h", ".sh"}
# Files that a build in the checkout leaves among the sources.
_GENERATED = (".mod.c", "features.h")


def module_sources(project: Path) -> tuple[Path, ...]:
    """Return the files of kmod/ that the module is built from, relative to it, sorted.

    Raises BuildError if they are missing.
    """
    top = project / "kmod"
    files = [
        path.relative_to(top)
        for path in sorted(top.rglob("*"))
        if (path.name in _NAMES or path.suffix in _SUFFIXES)
        and not path.name.endswith(_GENERATED)
        and not any(part.startswith(".") for part in path.relative_to(top).parts)
    ]
    if Path("Kbuild") not in files:
        raise BuildError("the module's source is missing", expected=str(top / "Kbuild"))
    return tuple(files)


def stage_sources(project: Path, target: Path) -> None:
    """Copy the files that DKMS needs into ``target``, except dkms.conf."""
    for relative in module_sources(project):
        result = target / relative
        result.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(project / "kmod" / relative, result)
        shutil.copymode(project / "kmod" / relative, result)
    shutil.copyfile(project / "dkms" / "gate.bash", target / "gate.bash")


def build_package(settings: Settings, root: Root, *, log: Path, out: Path) -> tuple[Package, ...]:
    """Build cplayground-dkms from kmod/ and dkms/; replaces ``out``.

    The changelog and every file have the day of the module's version.
    """
    version = versions.module_version(settings.project)
    dated = version, versions.module_epoch(settings.project)

    def collect(stage: Path) -> None:
        stage_sources(settings.project, stage / f"dkms/usr/src/cplayground-{version}")
        shutil.copyfile(settings.project / "dkms" / "dkms.conf", stage / "dkms.conf")
        shutil.copyfile(settings.project / deb.EXAMPLE, stage / deb.EXAMPLE.name)
        deb.load_at_boot(stage / "dkms", "dkms")

    return shared.build(settings, root, shared.DKMS, dated, collect, log=log, out=out)
