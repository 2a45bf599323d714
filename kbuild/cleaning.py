"""Remove results and caches: all of them, or those that no run has used for long.

Only directories with our mark are touched, while no run uses them (core/places.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from kbuild.core import fs, places, suites
from kbuild.core.errors import BuildError, UserError
from kbuild.core.model import Settings
from kbuild.core.places import Place
from kbuild.ship import manifest, versions

_DAY_S = 86400.0


def clean(settings: Settings, *, cache: bool = False, roots: bool = False) -> tuple[Path, ...]:
    """Remove build/; with ``cache`` also the cache, with ``roots`` also the roots in it.

    Returns the removed paths; in a dry run, the paths that would be removed.  Raises UserError,
    and removes nothing, if a directory is not ours or has another file system mounted in it.
    """
    build, cached = places.both(settings)
    whole = [build, cached] if cache else [build]
    with places.taken(settings, [build, cached] if cache or roots else [build]) as there:
        doomed = [path for place in there if place in whole for path in place.look().entries]
        if roots and not cache and cached in there:
            doomed += [path for path in (cached.path / "roots",) if path.exists()]
        _remove(settings, there, doomed)
        gone = [place.path for place in there if place in whole and place.look().made]
        if not settings.dry:
            for place in there:
                if place in whole:
                    places.unmark(place)
    return (*gone, *(path for path in doomed if path.parent not in gone))


def clean_unused(
    settings: Settings, *, days: int, timeout_s: float = fs.LOCK_TIMEOUT_S
) -> tuple[Path, ...]:
    """Remove entries of the cache and of build/ that no run has used for ``days``.

    Kernels whose packages are in build/repo stay.  Returns and raises as :func:`clean` does.
    Raises InfrastructureError if a run uses the directories for longer than ``timeout_s``.
    """
    limit = time.time() - days * _DAY_S
    with places.taken(settings, places.both(settings), timeout_s=timeout_s) as there:
        for place in there:
            # A link that another user left on a shelf leads to files that are not ours.
            places.check_entries(place)
        entries = [*_cached(settings.cache), *_built(settings.build)]
        doomed = [one for one in entries if one.lstat().st_mtime < limit]
        _remove(settings, there, doomed)
    return tuple(doomed)


def _remove(settings: Settings, there: Sequence[Place], doomed: Sequence[Path]) -> None:
    mounts = [point for place in there for point in fs.mounts_below(place.path)]
    paths = [path.parent.resolve() / path.name for path in doomed]
    if hit := [one for one in mounts if any(one.is_relative_to(path) for path in paths)]:
        raise UserError(
            "nothing was removed: other file systems are mounted in directories to remove",
            found="\n".join(str(one) for one in hit),
            hint="find out who uses them; then unmount each, deepest first, and run this again",
        )
    if not settings.dry:
        for path in doomed:
            # A link itself is removed, never its target.
            if path.is_dir() and not path.is_symlink():
                fs.remove_tree(path)
            else:
                path.unlink(missing_ok=True)


def _cached(cache: Path) -> Iterator[Path]:
    """Yield the entries of the cache's shelves, including the remains of killed runs."""
    for shelf in places.SHELVES:
        if (cache / shelf).is_dir():
            entries = sorted((cache / shelf).iterdir())
            yield from (path for path in entries if path.suffix != ".lock")


def _built(build: Path) -> Iterator[Path]:
    """Yield patched sources, remains of reproductions and of the gate, and unrecorded kernels."""
    for name in ("reproduce", "gate", "logs/gate"):
        yield from sorted((build / name).glob("[!.]*"))
    for suite in suites.SUITES:
        yield from sorted((build / suite).glob("source-*"))
        for home in sorted(path for path in (build / suite).glob("*") if path.is_dir()):
            try:
                kept = _recorded(home)
            except BuildError:
                # Keep the kernels of a damaged record; the next run that reads it reports it.
                continue
            found = (path for path in home.glob("[0-9]*-*") if path.is_dir())
            yield from sorted(path for path in found if path.name not in kept)


def _recorded(home: Path) -> frozenset[str]:
    record = home / manifest.RECORD
    if not record.exists():
        return frozenset()
    return frozenset(
        versions.directory(kernel.base_version, suites.revision_of(kernel.release))
        for kernel in manifest.read(record).kernels
    )
