"""The guest's console as QEMU wrote it down: kernel text, cut where the marks are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# No guest of ours has come near to it; one that floods its console is ended there.
LIMIT = 16 << 20
_TAIL_BYTES = 64 << 10
# How a mark in the kernel's log begins; nothing else there says this.
MARK = "cplayground-mark:"

_BANNER = re.compile(r"Linux version (\S+)")
_OOM_KILL = re.compile(r"(Out of memory|Memory cgroup out of memory): Killed process \d+ \(.*?\)")


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

    @property
    def over_limit(self) -> bool:
        """Whether more has come than any sound guest prints."""
        return self.size() > LIMIT

    def text(self, since: int = 0) -> str:
        """Return what came from byte offset ``since`` on, with plain newlines, up to the limit."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(since)
                raw = stream.read(LIMIT)
        except FileNotFoundError:
            return ""
        return raw.decode(errors="replace").replace("\r\n", "\n")

    def tail(self, lines: int = 30) -> str:
        """Return the last lines."""
        last = self.text(max(0, self.size() - _TAIL_BYTES))
        return "\n".join(last.splitlines()[-lines:])


def oom_kill(text: str) -> str:
    """Return the kernel's last word of a process that it killed for its memory, or ""."""
    found = list(_OOM_KILL.finditer(text))
    return found[-1].group() if found else ""


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
