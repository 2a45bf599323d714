"""Read the module's file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from cplayground.errors import Error, NoModuleError, NotPermittedError, UsageError
from cplayground.parsing import parse
from cplayground.snapshot import Snapshot

PROCFILE: Final = "/proc/cplayground"


def read(path: str | os.PathLike[str] = PROCFILE) -> Snapshot:
    """Read a procfile: the module's own, or a text that was kept in a file.

    Raises NoModuleError, NotPermittedError, RefusedTextError, and UsageError for another file
    that is not there.
    """
    place = os.fspath(path)
    try:
        text = Path(place).read_bytes()
    except OSError as error:
        raise _explained(place, error) from error
    return parse(text, origin=place)


def _explained(place: str, error: OSError) -> Error:
    """Return what open(2) and read(2) mean by an error, as docs/reference/procfile.md has it."""
    missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
    if missing and place == PROCFILE:
        return NoModuleError(
            f"there is no {place}: the module is not loaded",
            hint="cplayground doctor tells the reason and the command that mends it",
        )
    if missing or error.errno == errno.EISDIR:
        return UsageError(f"{place}: {error.strerror}")
    if error.errno == errno.EIO and place == PROCFILE:
        return NoModuleError(
            "the module was unloaded during the reading", hint="load it, and read again"
        )
    if error.errno not in (errno.EACCES, errno.EPERM):
        return Error(f"{place}: {error.strerror}")
    if os.geteuid() == 0:
        hint = "a container may not read it: open it in the host's own PID namespace"
    else:
        hint = "run it as root, or as a member of the file's group"
    return NotPermittedError(f"{place} may not be read", hint=hint)
