"""Write the indexes of one suite of an archive with apt-ftparchive(1).

An index consists of groups: the packages of a release, and the share of servers that get them.
apt-ftparchive adds ``Phased-Update-Percentage`` by the name of a package.  So each group is a
section of its own in its configuration, and the index is these sections in a row.

There is no Release.gpg: every apt since 1.0 reads the InRelease.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gzip
import logging
import lzma
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

from debian.deb822 import Packages
from debian.deb822 import Release as ReleaseFile

from kbuild.core import fs
from kbuild.core.errors import BuildError, FullDiskError
from kbuild.core.model import Package
from kbuild.core.run import Completed, run
from kbuild.ship import deb

logger = logging.getLogger(__name__)

# unattended-upgrades names an archive by its origin and suite: "cplayground-kernel:bookworm".
ORIGIN = "cplayground-kernel"
COMPONENT = "main"
ARCHITECTURE = "amd64"
# So long after its date, servers refuse an index; a mirror that stands still is noticed.
VALID = timedelta(days=30)
# So many earlier indexes stay available, for servers that update while the suite is switched.
GENERATIONS = 3

_TIMEOUT_S = 600
_BINARIES = Path(COMPONENT, f"binary-{ARCHITECTURE}")
_BY_HASH = Path("by-hash/SHA256")
# Nothing of the machine's own configuration counts.
_APT = """\
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
APT::FTPArchive {
  Contents "false";
  Packages { MD5 "false"; SHA1 "false"; SHA512 "false"; };
  Release { MD5 "false"; SHA1 "false"; SHA512 "false"; };
};
"""
# The directory's name is not used: the files are listed.
_SECTION = """\
BinDirectory "%(name)s" {
  FileList "%(name)s.list";
  Packages "/proc/self/cwd/%(name)s.packages";
  Packages::Compress ".";
  BinOverride "%(override)s";
  ExtraOverride "%(extra)s";
};
"""


@dataclass(frozen=True)
class Group:
    """Packages that reach the same share of servers."""

    packages: tuple[Package, ...]
    percentage: int | None = None  # Phased-Update-Percentage; None for every server
    # The field Source.  apt takes it with the machine-id to choose the servers, so packages with
    # the same one reach the same servers.  "" for that of each package.
    source: str = ""


def write(
    into: Path,
    root: Path,
    suite: str,
    groups: Sequence[Group],
    *,
    now: datetime,
    valid: timedelta | None,
    sign: Callable[[bytes], bytes],
    earlier: Sequence[Path] = (),
) -> None:
    """Write dists/<suite> to the new directory ``into``; the same arguments give the same files.

    The packages lie below ``root``, the directory that has dists/ and pool/.  ``now`` becomes
    the date, and ``valid`` after it the index expires (None: never).  ``sign`` makes an
    InRelease of a Release.  ``earlier`` are former directories of this suite, the newest first.
    The indexes of :data:`GENERATIONS` of them are kept in by-hash/.
    Raises BuildError if a package is missing or has other bytes, and what ``sign`` raises.
    """
    listing = into / _BINARIES
    listing.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="cplayground-index-") as name:
        work = Path(name)
        (work / "apt.conf").write_text(_APT)
        # A name without characters that the configuration would have to quote.
        (work / "root").symlink_to(root.resolve())
        index = _packages(work, root, merged(groups))
        (listing / "Packages").write_bytes(index)
        (listing / "Packages.gz").write_bytes(gzip.compress(index, mtime=0))
        (listing / "Packages.xz").write_bytes(lzma.compress(index))
        release = _release(work, into, suite, now, valid)
    for one in earlier[:GENERATIONS]:
        _carry(one, into)
    (into / "Release").write_bytes(release)
    (into / "InRelease").write_bytes(sign(release))


def merged(groups: Iterable[Group]) -> list[Group]:
    """Return groups, the widest first, that list each package once: where the most servers get it.

    Raises BuildError if two files claim to be the same version of a package.
    """
    groups = sorted(groups, key=lambda one: -(100 if one.percentage is None else one.percentage))
    unique(package for group in groups for package in group.packages)
    result = []
    taken: set[tuple[str, str, str]] = set()
    for group in groups:
        rest = [one for one in unique(group.packages) if _identity(one) not in taken]
        taken.update(map(_identity, rest))
        result.append(dataclasses.replace(group, packages=tuple(rest)))
    return result


def _identity(package: Package) -> tuple[str, str, str]:
    return package.name, package.version, package.architecture


def unique(packages: Iterable[Package]) -> tuple[Package, ...]:
    """Return packages sorted; a package that is in several sets is listed once.

    Raises BuildError if two files claim to be the same version of a package.
    """
    seen: dict[tuple[str, str, str], Package] = {}
    for package in packages:
        other = seen.setdefault(_identity(package), package)
        if other.sha256 != package.sha256:
            raise BuildError(
                f"there are two different packages {package.name} {package.version}",
                expected=f"{other.sha256}  {other.path}",
                found=f"{package.sha256}  {package.path}",
                hint="raise the revision, or clean build/ and package again",
            )
    return tuple(seen[key] for key in sorted(seen))


def _packages(work: Path, root: Path, groups: Sequence[Group]) -> bytes:
    sections = ['Dir { ArchiveDir "root"; FileListDir "."; OverrideDir "."; CacheDir "."; };\n']
    for number, group in enumerate(groups):
        files = [one.path.relative_to(root).as_posix() for one in group.packages]
        (work / f"{number}.list").write_text("".join(f"{one}\n" for one in files))
        override = extra = ""
        if group.percentage is not None and files:
            override, extra = f"{number}.override", f"{number}.extra"
            # Without it, apt-ftparchive would leave out the priority of an overridden package.
            texts = (_override(deb.control(one.path)) for one in group.packages)
            (work / override).write_text("".join(texts))
            names = {one.name for one in group.packages}
            fields = [f"Phased-Update-Percentage {group.percentage}"]
            fields += [f"Source {group.source}"] if group.source else []
            lines = [f"{one} {field}\n" for one in sorted(names) for field in fields]
            (work / extra).write_text("".join(lines))
        sections.append(_SECTION % {"name": number, "override": override, "extra": extra})
    (work / "generate.conf").write_text("".join(sections))
    _run(["apt-ftparchive", "--quiet", "generate", "generate.conf"], work, says="Done. ")
    parts = [(work / f"{number}.packages").read_bytes() for number in range(len(groups))]
    for group, part in zip(groups, parts, strict=True):
        _check(root, group, part)
    return b"".join(parts)


def _override(control: Mapping[str, str]) -> str:
    return " ".join(control.get(one, "") for one in ("Package", "Priority", "Section")) + "\n"


def _run(argv: Sequence[str], work: Path, *, says: str = "") -> Completed:
    """Run a program in ``work``; it fails if it says more on standard error than ``says``.

    apt-ftparchive exits with 0 when it has left out a file that is no package, or a copy for which
    there was no room.
    """
    done = run(argv, cwd=work, env={"APT_CONFIG": "apt.conf"}, timeout_s=_TIMEOUT_S)
    words = [line for line in done.stderr.splitlines() if not says or not line.startswith(says)]
    if any(os.strerror(errno.ENOSPC) in line for line in words):
        raise FullDiskError(f"{argv[0]} found no room for an index", found="\n".join(words))
    if words:
        raise BuildError(
            f"{argv[0]} could not read the packages of an index",
            found="\n".join(words),
            hint="run ./inv package again",
        )
    return done


def _check(root: Path, group: Group, part: bytes) -> None:
    """Compare the index with the files that it must list, by the digests that it gives them."""
    expected = {one.path.relative_to(root).as_posix(): one.sha256 for one in group.packages}
    stanzas = Packages.iter_paragraphs(part, use_apt_pkg=False)
    found = {one["Filename"]: one["SHA256"] for one in stanzas}
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            raise BuildError(
                f"{path} has changed since it was built, or is not in the index",
                expected=expected.get(path, "no such package"),
                found=found.get(path, "not listed"),
                hint="run ./inv package again",
            )


def _release(work: Path, into: Path, suite: str, now: datetime, valid: timedelta | None) -> bytes:
    fields = {
        "Origin": ORIGIN,
        "Label": ORIGIN,
        "Suite": suite,
        "Codename": suite,
        "Architectures": ARCHITECTURE,
        "Components": COMPONENT,
        "Description": "Kernels with the cplayground exports, and the module",
        "Date": _date(now),
    }
    if valid is not None:
        # Only with the first of these two it writes the field.
        fields |= {"ValidTime": "1", "Valid-Until": _date(now + valid)}
    options = [f"--option=APT::FTPArchive::Release::{key}={one}" for key, one in fields.items()]
    (work / "dist").symlink_to(into.resolve())
    by_hash = "--option=APT::FTPArchive::DoByHash=true"
    return _run(["apt-ftparchive", *options, by_hash, "release", "dist"], work).stdout.encode()


def _date(when: datetime) -> str:
    return format_datetime(when.astimezone(UTC)).replace("+0000", "UTC")


def _carry(earlier: Path, into: Path) -> None:
    """Link the indexes that an earlier Release lists into by-hash/ of this one."""
    with contextlib.suppress(FileNotFoundError), (earlier / "Release").open() as stream:
        for entry in ReleaseFile(stream).get("SHA256", []):
            directory = Path(entry["name"]).parent / _BY_HASH
            old, new = earlier / directory / entry["sha256"], into / directory / entry["sha256"]
            if new.exists():
                continue
            if not old.is_file() or fs.sha256_file(old) != entry["sha256"]:
                logger.warning("%s is gone or damaged; the new index does without it", old)
                continue
            os.link(old, new)
