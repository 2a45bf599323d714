"""Keep packages in pool/: immutable files, each of which appears whole and under one name."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path

from kbuild.archive.evidence import MISSING
from kbuild.core import fs
from kbuild.core.errors import EvidenceError, InfrastructureError, PoolError
from kbuild.core.model import Package
from kbuild.core.run import run
from kbuild.ship import deb, versions
from kbuild.ship.manifest import Output

HOME = "pool"
_COMPONENT = "main"
# Paths that this module gives to packages, and the names of files that it is still copying.
_OURS = re.compile(rf"{HOME}/{_COMPONENT}/[^/]*{versions.VENDOR}[^/]*/[^/_]+_[^/_]+_[a-z0-9]+\.deb")
_SCRATCH = re.compile(r"\..+\.deb\.[^.]{8}")
_TIMEOUT_S = 600.0


def describe(package: Package) -> Output:
    """Return a package with the path that it has in the pool.

    Raises EvidenceError if its file is another package.
    """
    said = deb.control(package.path, error=EvidenceError)
    found = tuple(said.get(name, "") for name in ("Package", "Version", "Architecture"))
    expected = (package.name, package.version, package.architecture)
    if found != expected:
        raise EvidenceError(
            f"{package.path} is another package",
            expected=" ".join(expected),
            found=" ".join(found),
        )
    source = said.get("Source", package.name).split()[0]
    # As in Debian's pools, an epoch is not in the name.
    version = package.version.partition(":")[2] or package.version
    name = f"{package.name}_{version}_{package.architecture}.deb"
    return Output(
        name=package.name,
        version=package.version,
        architecture=package.architecture,
        path=f"{HOME}/{_COMPONENT}/{source}/{name}",
        sha256=package.sha256,
        size=package.path.stat().st_size,
    )


def check(root: Path, outputs: Iterable[Output], known: Mapping[str, str]) -> None:
    """Raise PoolError if a path of the pool has, or once had, other bytes.

    ``known`` has the SHA-256 of each path that servers have ever seen.  The file itself may be
    gone by now.
    """
    for one in outputs:
        path = root / one.path
        there = fs.sha256_file(path) if path.exists() else known.get(one.path, one.sha256)
        if known.get(one.path, there) != one.sha256 or there != one.sha256:
            raise PoolError(
                f"the archive has other bytes of {one.name} {one.version}",
                expected=f"{known.get(one.path, there)}  {one.path}",
                found=f"{one.sha256}  the package to publish",
                hint="nothing in the pool is replaced: raise 'revision', or kmod/VERSION for"
                " cplayground-dkms, or guard/VERSION for the guard, and package again",
            )


def add(root: Path, packages: Mapping[Output, Path]) -> None:
    """Copy packages from their files to the pool; one that is there already stays.

    Each appears by rename, with mode 0644, after its bytes were compared and synced.  It is a copy,
    because a later build could write to the file of a hard link.  Raises EvidenceError if a file
    has other bytes than its description.
    """
    missing = {one: file for one, file in packages.items() if not (root / one.path).exists()}
    for one, file in missing.items():
        path = root / one.path
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(descriptor)
        scratch = Path(name)
        try:
            copy(file, scratch)
            if (found := fs.sha256_file(scratch)) != one.sha256:
                raise EvidenceError(
                    f"{file} has changed since it was made",
                    expected=one.sha256,
                    found=found,
                    hint="package and judge it again",
                )
            scratch.chmod(0o644)
            fs.sync(scratch)
            fs.rename(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    if missing:
        # The names of new directories too.
        fs.sync(root / HOME)


def forget(root: Path, outputs: Iterable[Output], named: Container[str]) -> None:
    """Remove the files of packages from the pool, except the paths that something has ``named``."""
    for one in outputs:
        if one.path not in named:
            (root / one.path).unlink(missing_ok=True)


def link(source: Path, target: Path) -> None:
    """Give a file a second name, for reading only; copy it if that is not possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
            raise
        copy(source, target)


def copy(source: Path, target: Path) -> None:
    """Copy a file; on a file system that can share its blocks, it takes no room."""
    run(
        ["cp", "--reflink=auto", source, target],
        timeout_s=_TIMEOUT_S,
        error=InfrastructureError,
    )


def found(root: Path, outputs: Iterable[Output]) -> dict[str, str]:
    """Hash packages of the pool again; returns their SHA-256, or MISSING, by file name."""
    return {
        Path(one.path).name: fs.sha256_file(root / one.path)
        if (root / one.path).is_file()
        else MISSING
        for one in outputs
    }


def files(root: Path) -> Iterator[Path]:
    """Yield everything in the pool that is not a directory."""
    yield from sorted(path for path in (root / HOME).rglob("*") if not path.is_dir())


def recover(root: Path) -> None:
    """Remove the half-copied files of killed writers; the caller holds the archive's lock."""
    for path in files(root):
        if _SCRATCH.fullmatch(path.name):
            path.unlink()


def prune(root: Path, kept: Iterable[str]) -> tuple[str, ...]:
    """Remove our packages but the ``kept`` paths from the pool, and return what was removed.

    Any other file there was put there by a person, and stays; verify-archive reports it.
    """
    wanted = set(kept)
    gone = []
    for path in files(root):
        name = path.relative_to(root).as_posix()
        if name not in wanted and _OURS.fullmatch(name):
            path.unlink()
            gone.append(name)
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    return tuple(gone)
