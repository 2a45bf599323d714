"""Unpack fetched packages into the cache, once for all checkouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kbuild.core import fs, results, stamp
from kbuild.core.errors import BuildError, TrustError
from kbuild.core.model import Base, Settings, VerifiedFile
from kbuild.core.run import run

# Shelves of the cache: kernel trees, packages' files, and images assembled from several packages.
_TREES, _DEBS, _IMAGES = "trees", "debs", "images"
# The unpacked files have a directory of their own, next to their stamp.
_CONTENT, _STAMP, _INPUT = "content", "stamp.json", "packages"
_UNPACK_TIMEOUT_S = 1800.0


def unpack(settings: Settings, base: Base) -> Path:
    """Return the pristine kernel tree of a base, unpacked once, with the files' original times.

    The tree must not be changed.  Raises TrustError if the cached package is no longer the
    verified one, and BuildError if it cannot be unpacked.
    """

    def fill(into: Path) -> None:
        scratch = into / "deb"
        extract(base.source.path, scratch)
        tarballs = sorted((scratch / "usr/src").glob("linux-source-*.tar.*"))
        if len(tarballs) != 1:
            raise BuildError(
                f"{base.source.path.name} does not contain a kernel tree",
                expected="one file usr/src/linux-source-*.tar.xz",
                found=", ".join(t.name for t in tarballs) or "none",
            )
        (into / _CONTENT).mkdir()
        run(
            [
                *("tar", "--extract", "--no-same-owner", "--strip-components=1"),
                *("--directory", into / _CONTENT, "--file", tarballs[0]),
            ],
            timeout_s=_UNPACK_TIMEOUT_S,
        )
        fs.remove_tree(scratch)

    return _unpacked(settings, _TREES, (base.source,), fill)


def unpack_deb(settings: Settings, file: VerifiedFile) -> Path:
    """Return a directory with a package's files, unpacked once; it must not be changed.

    Raises the errors of :func:`unpack`.
    """
    return _unpacked(settings, _DEBS, (file,), lambda into: extract(file.path, into / _CONTENT))


def unpack_image(settings: Settings, base: Base) -> Path:
    """Return a directory with the distro's kernel as an installed system holds it.

    It contains boot/vmlinuz-<release> and lib/modules/<release>, from however many packages
    Debian ships them in.  Links replace a merged /usr (6.12) and the work of linux-base's hooks
    in /boot (7.x).  It must not be changed.  Raises the errors of :func:`unpack`.
    """

    def fill(into: Path) -> None:
        for file in (base.image, *base.parts):
            extract(file.path, into / _CONTENT)
        _arrange(into / _CONTENT, base.release)

    return _unpacked(settings, *_parts(base), fill)


def _parts(base: Base) -> tuple[str, tuple[VerifiedFile, ...]]:
    """Return the shelf of the distro's kernel, and the packages that make it up."""
    return (_IMAGES if base.parts else _DEBS), (base.image, *base.parts)


def _arrange(content: Path, release: str) -> None:
    if not (content / "lib").exists():
        (content / "lib").symlink_to("usr/lib")
    vmlinuz = content / "boot" / f"vmlinuz-{release}"
    if not vmlinuz.exists():
        kept = Path("usr/lib/modules", release, "vmlinuz")
        if not (content / kept).exists():
            raise BuildError(
                f"the packages of {release} contain no kernel",
                expected=f"boot/{vmlinuz.name} or {kept}",
                found=", ".join(sorted(one.name for one in (content / kept).parent.glob("*"))),
                hint="the mirror may be in the middle of an update: run this again later",
            )
        vmlinuz.parent.mkdir(exist_ok=True)
        vmlinuz.symlink_to(Path("..", kept))


def not_unpacked(settings: Settings, base: Base) -> tuple[VerifiedFile, ...]:
    """Return the packages of a base that must still be unpacked before a kernel is planned."""
    shelves = ((_TREES, (base.source,)), _parts(base), (_DEBS, (base.headers,)))
    return tuple(
        file
        for shelf, files in shelves
        if _why_unpack(settings, shelf, files) is not None
        for file in files
    )


def kept_tree(settings: Settings, sha256: str) -> Path | None:
    """Return the pristine tree of a source package, by its digest, if the cache has it."""
    home = settings.cache / _TREES / sha256
    return None if stamp.reason(home / _STAMP, {_INPUT: sha256}) else home / _CONTENT


def _home(settings: Settings, shelf: str, files: Sequence[VerifiedFile]) -> Path:
    digests = {file.name: file.sha256 for file in files}
    return settings.cache / shelf / (files[0].sha256 if len(files) == 1 else stamp.digest(digests))


def _why_unpack(settings: Settings, shelf: str, files: Sequence[VerifiedFile]) -> str | None:
    home = _home(settings, shelf, files)
    return stamp.reason(home / _STAMP, {_INPUT: home.name})


def _unpacked(
    settings: Settings,
    shelf: str,
    files: Sequence[VerifiedFile],
    fill: Callable[[Path], None],
) -> Path:
    """Return the directory that ``fill`` makes of packages; make it again if it is damaged."""
    home = _home(settings, shelf, files)
    mark = home / _STAMP

    def make(scratch: Path) -> list[Path]:
        fill(scratch)
        return [scratch / _CONTENT]

    def check() -> str | None:
        earlier = home.is_dir() and not mark.exists()
        return "an earlier version kept no record of its files" if earlier else None

    content = results.kept(
        mark,
        {_INPUT: home.name},
        make,
        lambda: home / _CONTENT,
        lock=settings.cache / "locks" / f"unpack-{home.name}.lock",
        doing=f"unpacking {files[0].path.name}",
        fresh=True,
        check=check,
        before=lambda _: _check_unchanged(files),
    ).ensure()
    fs.mark_used(home)
    return content


def _check_unchanged(files: Sequence[VerifiedFile]) -> None:
    for file in files:
        found = fs.sha256_file(file.path)
        if found != file.sha256:
            raise TrustError(
                f"{file.path} has changed since it was verified",
                expected=f"sha256 {file.sha256}",
                found=f"sha256 {found}",
                hint="run './inv fetch', which replaces it",
            )


def extract(deb: Path, into: Path) -> None:
    """Unpack a package's files below ``into``; raises BuildError if dpkg-deb fails."""
    run(["dpkg-deb", "--extract", deb, into], timeout_s=_UNPACK_TIMEOUT_S)
