"""The guest's console as QEMU wrote it down: kernel text, cut where the marks are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# How a mark in the kernel's log begins; nothing else there says this.
MARK = "cplayground-mark:"

_BANNER = re.compile(r"Linux version (\S+)")


@dataclass(frozen=True)
class Console:
    """The file that receives the first serial port."""

    path: Path

    def size(self) -> int:
        """Return how many bytes have come so far."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def text(self, since: int = 0) -> str:
        """Return what came from byte offset ``since`` on, with plain newlines."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(since)
                raw = stream.read()
        except FileNotFoundError:
            return ""
        return raw.decode(errors="replace").replace("\r\n", "\n")

    def tail(self, lines: int = 30) -> str:
        """Return the last lines."""
        return "\n".join(self.text().splitlines()[-lines:])


def banner(text: str) -> str | None:
    """Return the release in a kernel's first line, or None when no kernel has spoken."""
    found = _BANNER.search(text)
    return found.group(1) if found else None


def mark_line(event: str, name: str) -> str:
    """Return the text of a mark: ``event`` is begin or end."""
    return f"{MARK} {event} {name}"


def between_marks(text: str, name: str) -> str:
    """Return the lines between the last begin mark of ``name`` and its end mark.

    Without an end mark (the guest died in the test) everything after the beginning; without
    either, nothing.
    """
    begin, end = mark_line("begin", name), mark_line("end", name)
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line.endswith(begin)]
    if not starts:
        return ""
    rest = lines[starts[-1] + 1 :]
    stop = next((i for i, line in enumerate(rest) if line.endswith(end)), len(rest))
    return "\n".join(rest[:stop])
