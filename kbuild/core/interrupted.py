"""Recover from a make that was cut short, so that its half-written files are made again.

A half-written file has a new time, so the next make takes it for finished.  make removes the
targets of a command that fails.  It cannot do so when it is killed, and a power cut empties
files that were written seconds before.  So a note on disk says that make is at work.  If a run
finds the note, everything that changed since is made again.
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
    """Keep a note on disk, while the block runs, that make writes to ``output``.

    An exception leaves the note, because make did not end by itself.  An existing note stays as
    it is, so call :func:`recover` first.
    """
    note = _note(output)
    if not note.exists():
        fs.write_atomic(note, "")
    yield
    # The note covers files that may not be on the disk yet.
    fs.sync(output)
    note.unlink()


def recover(output: Path) -> int:
    """Remove files that changed in ``output`` since an interrupted make began; return the number.

    Both times of a file count, because a command may set the time that make compares.  make and
    kbuild rebuild every missing file.  Raises InfrastructureError, and removes nothing, if
    another file system is mounted there.
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
