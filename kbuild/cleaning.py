"""Removing results and caches: all of them, or what nobody has used for long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from kbuild import fs, manifest, suites
from kbuild.errors import BuildError
from kbuild.model import Settings

_DAY_S = 86400.0
# The cache's shelves whose entries grow old, a file or a directory each.  The compiler cache
# has a limit of its own; lists of packages are replaced; and locks must stay where they are.
SHELVES = (
    "debs",
    "extracts",
    "files",
    "icecream",
    "images",
    "partial",
    "roots",
    "snapshots",
    "trees",
)


def clean(settings: Settings, *, cache: bool = False, roots: bool = False) -> tuple[Path, ...]:
    """Remove build/, and with ``cache`` or ``roots`` the whole cache or its roots alone.

    Returns what was removed, or in a dry run what would be.
    """
    doomed = [settings.build]
    if cache:
        doomed.append(settings.cache)
    elif roots:
        doomed.append(settings.cache / "roots")
    return _remove(settings, tuple(path for path in doomed if path.exists()))


def clean_unused(settings: Settings, *, days: int) -> tuple[Path, ...]:
    """Remove from the cache and from build/ what no run has used for ``days``.

    Kernels whose packages are in build/repo stay.  Returns what was removed, or in a dry run
    what would be.
    """
    limit = time.time() - days * _DAY_S
    entries = [*_cached(settings.cache), *_built(settings.build)]
    return _remove(settings, tuple(one for one in entries if one.lstat().st_mtime < limit))


def _remove(settings: Settings, doomed: tuple[Path, ...]) -> tuple[Path, ...]:
    if not settings.dry:
        for path in doomed:
            if path.is_dir():
                fs.remove_tree(path)
            else:
                path.unlink()
    return doomed


def _cached(cache: Path) -> Iterator[Path]:
    """Yield the entries of the cache's shelves, what killed runs left among them."""
    for shelf in SHELVES:
        if (cache / shelf).is_dir():
            entries = sorted((cache / shelf).iterdir())
            yield from (path for path in entries if path.suffix != ".lock")


def _built(build: Path) -> Iterator[Path]:
    """Yield the patched sources and the kernels of versions that no record names any more."""
    for suite in suites.SUITES:
        yield from sorted((build / suite).glob("source-*"))
        for home in sorted(path for path in (build / suite).glob("*") if path.is_dir()):
            try:
                kept = _recorded(home)
            except BuildError:
                # Whoever reads it for more than its age says what is wrong with it.
                continue
            versions = (path for path in home.glob("[0-9]*-*") if path.is_dir())
            yield from sorted(path for path in versions if path.name not in kept)


def _recorded(home: Path) -> frozenset[str]:
    record = home / manifest.RECORD
    if not record.exists():
        return frozenset()
    return frozenset(kernel.base_version for kernel in manifest.read(record).kernels)
