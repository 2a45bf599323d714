"""The error taxonomy: every failure says whose it is, and exits with its own status.

"The network was down" must never look like "the module is broken", so each class
carries the exit status that ``tasks.py`` turns into the process's own.  The library
raises; it never exits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from kbuild.core.secrets import redact

# Errors of the machine under us, against which a retry or an administrator may help; any
# other OSError is a mistake of ours, and keeps its traceback.
_MACHINE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
)
# Those of them that making room helps against.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NUMBER = re.compile(r"\[Errno (\d+)\]")
_HINT = "'./inv doctor' shows space, owners, and what is lacking"


class KbuildError(Exception):
    """A failure that says what was expected, what was found, where to look and what to do.

    ``what`` is one sentence; the keyword arguments become lines of their own, so that a
    reader of a long log finds them in the same place every time.  Passwords in URLs are left
    out of all of them.
    """

    exit_status = 1
    kind = "error"

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        log: Path | None = None,
        hint: str | None = None,
    ) -> None:
        self.what = redact(what)
        self.expected = None if expected is None else redact(expected)
        self.found = None if found is None else redact(found)
        self.log = log
        self.hint = None if hint is None else redact(hint)
        super().__init__(self.what)

    def __str__(self) -> str:
        lines = [self.what]
        for label, value in (
            ("expected", self.expected),
            ("found", self.found),
            ("log", self.log),
            ("do", self.hint),
        ):
            if value is not None:
                head, *rest = str(value).splitlines() or [""]
                lines.append(f"  {label + ':':<10}{head}")
                lines.extend(f"  {'':<10}{line}" for line in rest)
        return "\n".join(lines)


class UserError(KbuildError):
    """The request makes no sense: an unknown suite, a bad option, a missing package."""

    exit_status = 2
    kind = "usage"


class BuildError(KbuildError):
    """Source, patch, configuration, compiler or packaging failed."""

    exit_status = 3
    kind = "build"


class GuardError(BuildError):
    """The fast path's proof did not hold: the image may not carry the distro's modules."""

    kind = "guard"


class TrustError(KbuildError):
    """Something downloaded is not what the archive signed (``EX_DATAERR`` of sysexits(3))."""

    exit_status = 65
    kind = "trust"


class InfrastructureError(KbuildError):
    """Network, mirror, disk or QEMU failed; says nothing about the code (``EX_UNAVAILABLE``)."""

    exit_status = 69
    kind = "infrastructure"


class FullDiskError(InfrastructureError):
    """There was no room for a file; no other mirror or attempt helps."""

    kind = "full disk"


class DefectError(KbuildError):
    """This project itself is wrong: an exception that nobody foresaw (``EX_SOFTWARE``)."""

    exit_status = 70
    kind = "internal"

    @classmethod
    def of(cls, error: Exception, places: Iterable[str | os.PathLike[str]] = ()) -> KbuildError:
        """Wrap such an exception, where the rest of a run must not be lost to it.

        An error of the disk or the system is one of the infrastructure; ``places`` are what the
        run writes to.
        """
        known = of_the_machine(error, places) if isinstance(error, OSError) else None
        return known or cls(
            f"{type(error).__name__}: {error}",
            hint="this is a defect of the pipeline: report it with the traceback above",
        )


class LostDependencyError(InfrastructureError):
    """A program that the machine should have is missing; ``invoke doctor`` names its package."""

    kind = "missing program"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the block name ``path``: one of a write or a flush names no file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def of_the_machine(
    error: OSError, places: Iterable[str | os.PathLike[str]] = ()
) -> InfrastructureError | None:
    """Return what to say of an error of the disk or the system, None for a mistake of ours.

    ``places`` are what the run writes to; the fullest is named when the error names no file.
    """
    text = str(error)
    number, why = error.errno, error.strerror
    if isinstance(error, shutil.Error) and (found := _NUMBER.search(text)):
        # copytree's error has one error in words for each file.
        number, why = int(found[1]), text
    elif number == errno.ENOENT and "No usable temporary directory" in text:
        number = errno.ENOSPC
    if number not in _MACHINE:
        return None
    files = [str(name) for name in (error.filename, error.filename2) if name]
    if not files and number in _NO_ROOM:
        files = [path for _, path in room(places)][:1]
    kind = FullDiskError if number in _NO_ROOM else InfrastructureError
    return kind(": ".join([*files[-1:], str(why)]), hint=_HINT)


def room(places: Iterable[str | os.PathLike[str]]) -> list[tuple[int, str]]:
    """Return the free bytes at each of some places that exist, the fullest first.

    Of several places on one file system the first counts.  File systems without blocks (proc)
    and those that are read-only do not count, and one without a free inode has no free bytes.
    """
    found: dict[int, tuple[int, str]] = {}
    for place in places:
        with contextlib.suppress(OSError, ValueError):
            status, device = os.statvfs(place), Path(place).stat().st_dev
            if status.f_blocks and not status.f_flag & os.ST_RDONLY:
                # The reserve of a file system is for root.
                blocks = status.f_bfree if os.geteuid() == 0 else status.f_bavail
                left = blocks if status.f_ffree or not status.f_files else 0
                found.setdefault(device, (left * status.f_frsize, os.fspath(place)))
    return sorted(found.values())
