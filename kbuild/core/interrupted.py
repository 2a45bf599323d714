"""A make that is cut short leaves half of a file, whose time tells the next make that it is new.

make removes what its commands had begun when one of them fails.  It cannot when it is killed, and
a power cut empties files that were written seconds before.  So a note on disk says that make is at
work; where one is found, whatever changed since its start is made again.
"""

from __future__ import annotations

import contextlib
import logging
import stat
from collections.abc import Iterator
from pathlib import Path

from kbuild.core import contents, fs

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def noted(output: Path) -> Iterator[None]:
    """Note that make writes to ``output``, for as long as the block runs.

    An exception leaves the note: make did not end by itself.  A note that is there already
    stays as it is, so call :func:`recover` first.
    """
    note = _note(output)
    if not note.exists():
        fs.write_atomic(note, "")
    yield
    # The note stands for files that may not be on the disk yet.
    fs.sync(output)
    note.unlink()


def recover(output: Path) -> int:
    """Remove what changed in ``output`` since a make began that was cut short; returns how many.

    Both times of a file count, because a command may set the one that make goes by.  make and
    kbuild make every file again that is missing.  Raises InfrastructureError, and removes nothing,
    where another file system is mounted.
    """
    note = _note(output)
    if not note.exists():
        return 0
    fs.check_unmounted(output)
    start, removed = note.stat().st_mtime_ns, 0
    for name, status in list(contents.walk(output)):
        changed = max(status.st_mtime_ns, status.st_ctime_ns) >= start
        if changed and not stat.S_ISDIR(status.st_mode):
            (output / name).unlink()
            removed += 1
    note.unlink()
    logger.info("the last make was cut short: %d files are made again", removed)
    return removed


def _note(output: Path) -> Path:
    return output.with_name(f"{output.name}.making")
