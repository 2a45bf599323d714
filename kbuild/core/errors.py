"""Define the errors: each class names the cause of a failure and has its own exit status.

"The network was down" must never look like "the module is broken".  The library raises these
errors and never exits; ``tasks.py`` exits with the status of the error's class.
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

# The exit status of check-updates if the distro has a newer kernel, which is no error.
UPDATE_STATUS = 10
# Errors of the machine, which a retry or an administrator may cure.  Any other OSError is a
# mistake of ours, and keeps its traceback.
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
# The errors that more free space cures.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NUMBER = re.compile(r"\[Errno (\d+)\]")
_HINT = "'./inv doctor' shows free space, owners, and missing packages"


class KbuildError(Exception):
    """A failure: what happened, what was expected, what was found, where the log is, what to do.

    ``what`` is one sentence.  Each keyword argument becomes a line of its own, so that readers
    of a long log find it in the same place every time.  Passwords in URLs are removed from all.
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
    """The fast path's check failed: the image cannot carry the distro's modules."""

    kind = "guard"


class EvidenceError(KbuildError):
    """A release lacks the evidence that a step needs, or the evidence is for other bytes."""

    exit_status = 40
    kind = "evidence"


class IrreproducibleError(KbuildError):
    """A second build gave other bytes than the first."""

    exit_status = 41
    kind = "reproducibility"


class SigningError(KbuildError):
    """A key is missing, expired or another one, or a signature was not made or does not verify."""

    exit_status = 42
    kind = "signing"


class PoolError(KbuildError):
    """The archive has a package of that name and version with other bytes."""

    exit_status = 43
    kind = "pool"


class TrustError(KbuildError):
    """A download differs from what the archive signed (``EX_DATAERR`` of sysexits(3))."""

    exit_status = 65
    kind = "trust"


class ExpiredError(TrustError):
    """A mirror's index is authentic but past its Valid-Until, until the mirror is updated."""

    kind = "expired"


class InfrastructureError(KbuildError):
    """Network, mirror, disk or QEMU failed; this is no verdict on the code (``EX_UNAVAILABLE``)."""

    exit_status = 69
    kind = "infrastructure"


class FullDiskError(InfrastructureError):
    """A file found no room; another mirror or attempt would not help."""

    kind = "full disk"


class ClockError(InfrastructureError):
    """This machine's clock is wrong; servers would refuse an index that it dates."""

    kind = "clock"


class DefectError(KbuildError):
    """This project itself is wrong: an unexpected exception (``EX_SOFTWARE``)."""

    exit_status = 70
    kind = "internal"

    @classmethod
    def of(cls, error: Exception, places: Iterable[str | os.PathLike[str]] = ()) -> KbuildError:
        """Wrap an unexpected exception, where it must not end the rest of a run.

        An error of the disk or the system becomes an InfrastructureError.  ``places`` are the
        directories that the run writes to.
        """
        known = of_the_machine(error, places) if isinstance(error, OSError) else None
        return known or cls(
            f"{type(error).__name__}: {error}",
            hint="this is a defect of the pipeline: report it with the traceback above",
        )


class LostDependencyError(InfrastructureError):
    """A program that the machine needs is missing; ``./inv doctor`` names its package."""

    kind = "missing program"


class KilledError(InfrastructureError):
    """A program was killed by SIGKILL, as the kernel does when memory ends; it gave no verdict."""

    kind = "killed"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the block name ``path``; an error of a write or a flush names no file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def of_the_machine(
    error: OSError, places: Iterable[str | os.PathLike[str]] = ()
) -> InfrastructureError | None:
    """Return the error for a failure of the disk or the system; None for a mistake of ours.

    ``places`` are the directories that the run writes to.  The fullest one is named when the
    error names no file.
    """
    text = str(error)
    number, why = error.errno, error.strerror
    if isinstance(error, shutil.Error) and (found := _NUMBER.search(text)):
        # The text of copytree's error contains one error for each file.
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
    """Return the free bytes at each existing place, the fullest first.

    Among places on one file system, only the first is listed.  Read-only file systems and those
    without blocks (proc) are left out.  A file system without a free inode has 0 free bytes.
    """
    found: dict[int, tuple[int, str]] = {}
    for place in places:
        with contextlib.suppress(OSError, ValueError):
            status, device = os.statvfs(place), Path(place).stat().st_dev
            if status.f_blocks and not status.f_flag & os.ST_RDONLY:
                # A file system's reserve is for root only.
                blocks = status.f_bfree if os.geteuid() == 0 else status.f_bavail
                left = blocks if status.f_ffree or not status.f_files else 0
                found.setdefault(device, (left * status.f_frsize, os.fspath(place)))
    return sorted(found.values())
