"""Damage to files as by a power cut, a bad disk or an editor: names stay, contents do not."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path


def emptied(path: Path) -> None:
    """Leave the name and no content, as a power cut does to a file that was just written."""
    os.truncate(path, 0)


def cut(path: Path) -> None:
    """Leave the first half."""
    os.truncate(path, path.stat().st_size // 2)


def edited(path: Path) -> None:
    """Change the content and keep the size."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def rotten(path: Path) -> None:
    """Change the content and keep size and time: only who reads it all can tell."""
    status = path.stat()
    edited(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def lost(path: Path) -> None:
    """Lose the name too."""
    path.unlink()


# Those that a look at sizes and times finds.
VISIBLE: Mapping[str, Callable[[Path], None]] = {
    one.__name__: one for one in (emptied, cut, edited, lost)
}
EVERY = {**VISIBLE, "rotten": rotten}
