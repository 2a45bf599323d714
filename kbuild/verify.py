"""Read everything that was kept, and say what is not what it was.

Each run looks at sizes and times, and reads what is small.  This reads all of it: downloads by
the digest that they are kept under, results by their stamps, packages by the manifest.  What is
found is noted in the stamps, so that the next run that needs it makes it again.
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

# Shelves of the cache whose entries have a stamp, by its name.
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
    """A directory of the cache or of build/, and what is damaged in it."""

    path: Path
    checked: int  # things that were read: downloads, stamps, manifests
    damaged: tuple[str, ...]  # a line for each thing


def places(settings: Settings) -> tuple[Path, ...]:
    """Return the directories that would be read."""
    shelves = [settings.cache / name for name in sorted([_FILES, *_STAMPED])]
    return tuple(path for path in (*shelves, settings.build) if path.is_dir())


def check(settings: Settings) -> Iterator[Place]:
    """Read everything, and yield each place once it was read."""
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
    """Return what to say at the end, None if all is as it was."""
    lines = [line for place in found for line in place.damaged]
    if not lines:
        return None
    return InfrastructureError(
        f"{len(lines)} of {sum(place.checked for place in found)} things are damaged",
        expected="what was recorded when they were made",
        found="\n".join(lines),
        hint="run what needs them, as './inv package': it makes them again; if this comes back, "
        "check the disk",
    )


def _marks(shelf: Path, name: str) -> Iterator[Path]:
    for home in sorted(shelf.glob("[!.]*/")):
        if (home / name).exists():
            yield home / name
        else:
            logger.info("%s: nothing is recorded of it; it is made again when used", home)


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
    """Yield the stamps of build/: those of the repository, of suites, of targets, of versions."""
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
        # Other records lie next to stamps; one that cannot be read is taken for a stamp.
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
    # Its packages have stamps.  A record may name some that were made again for another target.
    try:
        manifest.read(path)
    except BuildError as found:
        return [found.what]
    return []
