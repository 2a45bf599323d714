"""Read everything in build/ and the cache, and report what is damaged.

A usual run checks sizes and times, and reads small files only.  This module reads everything.
It compares downloads with the digest in their path, results with their stamps, and packages
with the manifest.  Damage is noted in the stamps; the next run that needs a damaged result
makes it again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import fs, stamp, suites
from kbuild.core.errors import BuildError, InfrastructureError
from kbuild.core.model import Settings
from kbuild.ship import manifest

logger = logging.getLogger(__name__)

# Shelves of the cache whose entries have a stamp → the stamp's file name.
_STAMPED = {
    "debs": "stamp.json",
    "icecream": "stamp.json",
    "images": "stamp.json",
    "roots": "stamp.json",
    "snapshots": "snapshot.json",
    "trees": "stamp.json",
}
_FILES = "files"
_MANIFESTS = ("manifest.json", manifest.RECORD)


@dataclass(frozen=True)
class Place:
    """A directory of the cache or of build/, and the damage found in it."""

    path: Path
    checked: int  # number of downloads, stamps and manifests
    damaged: tuple[str, ...]  # a line for each damaged file or directory


def places(settings: Settings) -> tuple[Path, ...]:
    """Return the directories to read."""
    shelves = [settings.cache / name for name in sorted([_FILES, *_STAMPED])]
    return tuple(path for path in (*shelves, settings.build) if path.is_dir())


def check(settings: Settings) -> Iterator[Place]:
    """Read everything, and yield each place after it was read."""
    for path in places(settings):
        logger.info("reading %s", path)
        if path == settings.cache / _FILES:
            found = list(_downloads(path))
        elif path.parent == settings.cache:
            found = [_by_stamp(mark) for mark in _marks(path, _STAMPED[path.name])]
        else:
            found = [_by_stamp(mark) for mark in _stamps(path)]
            found += map(_by_reading, _manifests(path))
        yield Place(path, len(found), tuple(line for lines in found for line in lines))


def error(found: Sequence[Place]) -> InfrastructureError | None:
    """Return the error that lists all damage; None if there is none."""
    lines = [line for place in found for line in place.damaged]
    if not lines:
        return None
    return InfrastructureError(
        f"{len(lines)} of {sum(place.checked for place in found)} things are damaged",
        expected="the contents that were recorded when they were made",
        found="\n".join(lines),
        hint="run the task that needs them, such as './inv package': it makes them again; "
        "if this error comes back, check the disk",
    )


def _marks(shelf: Path, name: str) -> Iterator[Path]:
    for home in sorted(shelf.glob("[!.]*/")):
        if (home / name).exists():
            yield home / name
        else:
            logger.info("%s has no stamp and is not checked; it is made again when used", home)


def _downloads(shelf: Path) -> Iterator[list[str]]:
    for path in sorted(shelf.glob("[!.]*/*")):
        found = _sha256(path)
        if found is not None:
            yield [] if found == path.parent.name else [f"{path}: its sha256 is {found}"]


def _sha256(path: Path) -> str | None:
    try:
        return fs.sha256_file(path)
    except FileNotFoundError:
        return None


def _stamps(build: Path) -> Iterator[Path]:
    """Yield the stamps in build/: of the repository, of suites, of targets and of versions."""
    yield from _these(build)
    for suite in suites.SUITES:
        yield from _these(build / suite)
        for home in sorted((build / suite).glob("[!.]*/")):
            if home.name.startswith(("source-", "headers-")):
                continue
            yield from _these(home)
            for below in sorted(home.glob("[!.]*/")):
                yield from _these(below)


def _these(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.glob("[!.]*.json")):
        # Other records lie next to stamps.  An unreadable file counts as a stamp.
        known = fs.read_json(path, lambda raw: {"inputs", "outputs", "seconds"} <= raw.keys())
        if known or (known is None and path.name not in _MANIFESTS):
            yield path


def _manifests(build: Path) -> Iterator[Path]:
    whole, record = _MANIFESTS
    yield from build.glob(whole)
    yield from sorted(build.glob(f"*/*/{record}"))


def _by_stamp(mark: Path) -> list[str]:
    """Read the outputs of a stamp; if a run makes them anew meanwhile, read them again."""
    while True:
        before = stamp.read(mark)
        damaged = stamp.damage(mark, thorough=True)
        if stamp.read(mark) == before:
            break
    if damaged:
        stamp.distrust(mark, damaged)
    return [f"{mark.parent}: {one}" for one in damaged]


def _by_reading(path: Path) -> list[str]:
    # Only the manifest itself is read: its packages have stamps, and a record may name packages
    # that were made again for another target.
    try:
        manifest.read(path)
    except BuildError as found:
        return [found.what]
    return []
