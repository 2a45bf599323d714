"""A make that is cut short leaves half of a file, whose time tells the next make that it is new.

make removes what its commands had begun when one of them fails.  It cannot when it is killed, and
a power cut empties files that were written seconds before.  So a note on disk says that make is at
work; where one is found, whatever changed since its start is made again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from kbuild import fs
from kbuild.errors import InfrastructureError
from kbuild.run import run

logger = logging.getLogger(__name__)

_SYNC_TIMEOUT_S = 1800.0


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
    run(["sync", "--file-system", output], timeout_s=_SYNC_TIMEOUT_S, error=InfrastructureError)
    note.unlink()


def recover(output: Path) -> int:
    """Remove what changed in ``output`` since a make began that was cut short; returns how many.

    Both times of a file count, because a command may set the one that make goes by.  make and
    kbuild make every file again that is missing.
    """
    note = _note(output)
    if not note.exists():
        return 0
    start, removed = note.stat().st_mtime_ns, 0
    for path in _files(output, output.lstat().st_dev):
        status = path.lstat()
        if max(status.st_mtime_ns, status.st_ctime_ns) >= start:
            path.unlink()
            removed += 1
    note.unlink()
    logger.info("the last make was cut short: %d files are made again", removed)
    return removed


def _note(output: Path) -> Path:
    return output.with_name(f"{output.name}.making")


def _files(directory: Path, device: int) -> Iterator[Path]:
    """Yield what lies below a directory and is none, as far as its file system goes."""
    with os.scandir(directory) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                yield Path(entry.path)
            elif status.st_dev == device:
                yield from _files(Path(entry.path), device)
