"""Record what files and directories consist of, to find and name damage later.

Looking at names, kinds, sizes and times takes a third of a second for the 75,000 files of a
kernel tree.  It finds the damage of a power cut, a full disk or an editor.  Content that changed
but kept its size and time is found by :func:`differences` with ``thorough`` only.
"""

from __future__ import annotations

import hashlib
import os
import stat
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

from kbuild.core import fs

# Single files up to this size are read at each look, which takes less than a millisecond.
_SMALL = 1 << 20
# Kind and execute bit; a change of other permissions is not damage.
_MODE = 0o170100


@dataclass(frozen=True)
class Entry:
    """A file, link or directory as it was when recorded."""

    mode: int  # kind and execute bit, as in st_mode
    size: int  # bytes; 0 unless a file or link
    mtime_ns: int  # 0 unless a file or link, and for a time that must not be trusted
    sha256: str  # of a file's content or a link's target, else ""


@dataclass(frozen=True)
class Difference:
    """An entry that is not what was recorded."""

    name: str  # relative to the directory
    what: str

    def __str__(self) -> str:
        """Describe the difference in a few words."""
        return f"{self.name} ({self.what})" if self.name else self.what


def walk(top: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield name and status of each entry below a directory; a file is itself the entry ""."""
    status = top.lstat()
    if not stat.S_ISDIR(status.st_mode):
        yield "", status
        return
    pending = [(str(top), "")]
    while pending:
        directory, prefix = pending.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                yield prefix + entry.name, status
                if stat.S_ISDIR(status.st_mode):
                    pending.append((entry.path, f"{prefix}{entry.name}/"))


def look(top: Path) -> str:
    """Return one SHA-256 over names, kinds, sizes and times below a directory; read no file."""
    digest = hashlib.sha256()
    _look(os.open(top, os.O_RDONLY | os.O_DIRECTORY), digest)
    return digest.hexdigest()


def _look(directory: int, digest: hashlib._Hash) -> None:
    # Relative to a descriptor, the kernel looks up one name for each entry instead of a path.
    try:
        with os.scandir(directory) as entries:
            found = sorted(entries, key=attrgetter("name"))
        numbers = array("q")
        below = []
        for one in found:
            status = one.stat(follow_symlinks=False)
            mode = status.st_mode & _MODE
            kind = stat.S_IFMT(mode)
            if kind in (stat.S_IFREG, stat.S_IFLNK):
                numbers.extend((mode, status.st_size, status.st_mtime_ns))
            else:
                numbers.extend((mode, 0, 0))
                if kind == stat.S_IFDIR:
                    below.append(one.name)
        digest.update(os.fsencode("\0".join([one.name for one in found])))
        digest.update(numbers.tobytes())
        for name in below:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            _look(os.open(name, flags, dir_fd=directory), digest)
    finally:
        os.close(directory)


def entry(path: Path, status: os.stat_result, *, hashed: bool = True) -> Entry:
    """Return the record of a path; its digest is left out unless ``hashed``."""
    mode = status.st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        return Entry(mode & _MODE, 0, 0, "")
    digest = content(path, mode) if hashed else ""
    return Entry(mode & _MODE, status.st_size, status.st_mtime_ns, digest)


def content(path: Path, mode: int) -> str:
    """Return the SHA-256 of a file's content or of a link's target."""
    if stat.S_ISLNK(mode):
        return hashlib.sha256(os.fsencode(path.readlink())).hexdigest()
    return fs.sha256_file(path)


def record(top: Path) -> dict[str, Entry]:
    """Read a file, or everything in a directory, and return its record."""
    return {name: entry(top / name, status) for name, status in walk(top)}


def differences(
    top: Path, recorded: Mapping[str, Entry], *, thorough: bool = False
) -> tuple[Difference, ...]:
    """Compare a file or a directory with its record; return the differences sorted by name.

    Content is read where the time changed, or everywhere if ``thorough``.
    """
    there = dict(walk(top)) if os.path.lexists(top) else {}
    found = []
    for name in recorded.keys() | there.keys():
        if name not in there:
            found.append(Difference(name, "gone"))
        elif name not in recorded:
            found.append(Difference(name, "not there before"))
        elif what := _difference(top / name, there[name], recorded[name], thorough):
            found.append(Difference(name, what))
    return tuple(sorted(found, key=lambda one: one.name))


def _difference(path: Path, status: os.stat_result, last: Entry, thorough: bool) -> str | None:
    now = entry(path, status, hashed=False)
    if stat.S_IFMT(now.mode) != stat.S_IFMT(last.mode):
        return "another kind of file"
    if now.size != last.size:
        return f"{now.size:,} bytes instead of {last.size:,}"
    if now.mode != last.mode:
        return "another execute bit"
    read = thorough or now.mtime_ns != last.mtime_ns
    if last.sha256 and read and content(path, status.st_mode) != last.sha256:
        return "other content"
    return None


def is_small(last: Entry) -> bool:
    """Return whether a file is small enough to be read at each look."""
    return stat.S_ISREG(last.mode) and last.size <= _SMALL


def distrusted(recorded: Mapping[str, Entry], names: set[str]) -> dict[str, Entry]:
    """Return a record that makes the next look read the content of the entries ``names``."""
    return {
        name: replace(one, mtime_ns=0) if name in names else one for name, one in recorded.items()
    }


def write(path: Path, recorded: Mapping[str, Entry]) -> str:
    """Write the record of a directory, and return its SHA-256."""
    lines = [
        os.fsencode(f"{one.mode:o} {one.size} {one.mtime_ns} {one.sha256 or '-'} {name}\0")
        for name, one in sorted(recorded.items())
    ]
    raw = b"".join(lines)
    fs.write_atomic(path, raw)
    return hashlib.sha256(raw).hexdigest()


def read(path: Path, sha256: str) -> dict[str, Entry] | None:
    """Read the record of a directory; None if it is missing or has another digest."""
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return None
    if hashlib.sha256(raw).hexdigest() != sha256:
        return None
    recorded = {}
    for line in raw.split(b"\0")[:-1]:
        mode, size, mtime_ns, digest, name = os.fsdecode(line).split(" ", 4)
        recorded[name] = Entry(
            int(mode, 8), int(size), int(mtime_ns), "" if digest == "-" else digest
        )
    return recorded
