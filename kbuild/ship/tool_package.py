"""Build cplayground, the package of the tool that shows the module's file."""

from __future__ import annotations

import shutil
from pathlib import Path

from kbuild.core import fs, stamp
from kbuild.core.errors import BuildError
from kbuild.core.model import Package, Root, Settings
from kbuild.ship import shared

PACKAGE = shared.TOOL.name

_MODULES = "usr/lib/python3/dist-packages"
_EXAMPLES = f"usr/share/doc/{PACKAGE}/examples"
# Files of cplayground/ that go elsewhere, by directory or by name.
_PLACES = {
    "completion/cplayground.bash": f"usr/share/bash-completion/completions/{PACKAGE}",
    "completion/_cplayground": f"usr/share/zsh/vendor-completions/_{PACKAGE}",
    "VERSION": f"{_MODULES}/{PACKAGE}/VERSION",
}
_SUFFIXES = {".py", ".json", ".typed", ".css", ".js"}


def files(project: Path) -> dict[Path, Path]:
    """Return where the package has each of its files: the place by the file, both relative.

    Raises BuildError if the tool is missing.
    """
    top = project / PACKAGE
    found = {}
    for path in sorted(top.rglob("*")):
        inside = path.relative_to(top)
        if not path.is_file() or "__pycache__" in inside.parts:
            continue
        if place := _place(inside):
            found[path.relative_to(project)] = Path(place)
    if Path(PACKAGE, "__init__.py") not in found:
        raise BuildError("the tool is missing", expected=str(top / "__init__.py"))
    return found


def _place(inside: Path) -> str | None:
    if place := _PLACES.get(inside.as_posix()):
        return place
    if inside.parts[0] == "man":
        return f"usr/share/man/man{inside.suffix[1:]}/{inside.name}"
    if inside.parts[0] == "examples":
        return f"{_EXAMPLES}/{inside.name}"
    return f"{_MODULES}/{PACKAGE}/{inside}" if inside.suffix in _SUFFIXES else None


def digest(project: Path, *, without: Path | None = None) -> str:
    """Return the digest of the package's files and their places, except the file ``without``."""
    return stamp.digest(
        {
            f"{path} as {place}": fs.sha256_file(project / path)
            for path, place in files(project).items()
            if path != without
        }
    )


def build_package(settings: Settings, root: Root, *, log: Path, out: Path) -> tuple[Package, ...]:
    """Build the package from cplayground/; replaces ``out``.

    The changelog and every file have the day of the version.
    """
    project = settings.project
    dated = shared.dated_version(project, shared.TOOL)

    def collect(stage: Path) -> None:
        for path, place in files(project).items():
            target = stage / PACKAGE / place
            target.parent.mkdir(parents=True, exist_ok=True)
            # No program is among them, whatever the modes in the checkout.
            shutil.copyfile(project / path, target)

    return shared.build(settings, root, shared.TOOL, dated, collect, log=log, out=out)
