"""The error taxonomy: every failure says whose it is, and exits with its own status.

"The network was down" must never look like "the module is broken", so each class
carries the exit status that ``tasks.py`` turns into the process's own.  The library
raises; it never exits.
"""

from __future__ import annotations

import errno
from pathlib import Path

from kbuild.secrets import redact

# Errors of the machine under us, against which a retry or an administrator may help; any
# other OSError is a mistake of ours, and keeps its traceback.
_MACHINE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
)


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


class DefectError(KbuildError):
    """This project itself is wrong: an exception that nobody foresaw (``EX_SOFTWARE``)."""

    exit_status = 70
    kind = "internal"

    @classmethod
    def of(cls, error: Exception) -> KbuildError:
        """Wrap such an exception, where the rest of a run must not be lost to it.

        An error of the disk or the system is one of the infrastructure.
        """
        known = of_the_machine(error) if isinstance(error, OSError) else None
        return known or cls(
            f"{type(error).__name__}: {error}",
            hint="this is a defect of the pipeline: report it with the traceback above",
        )


class LostDependencyError(InfrastructureError):
    """A program that the machine should have is missing; ``invoke doctor`` names its package."""

    kind = "missing program"


def of_the_machine(error: OSError) -> InfrastructureError | None:
    """Return what to say of an error of the disk or the system, None for a mistake of ours."""
    if error.errno not in _MACHINE:
        return None
    place = f"{error.filename}: " if error.filename else ""
    return InfrastructureError(
        f"{place}{error.strerror}", hint="'./inv doctor' shows space, owners, and what is lacking"
    )
