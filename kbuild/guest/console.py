"""The file with the guest's console, and the lines in it that others look for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# Sound guests print much less.  A guest that prints more is ended.
LIMIT = 16 << 20
_TAIL_BYTES = 64 << 10
# The beginning of each mark in the kernel's log; the kernel itself never prints it.
MARK = "cplayground-mark:"

_BANNER = re.compile(r"Linux version (\S+)")
_OOM_KILL = re.compile(r"(Out of memory|Memory cgroup out of memory): Killed process \d+ \(.*?\)")


@dataclass(frozen=True)
class Console:
    """The file that receives the first serial port."""

    path: Path

    def size(self) -> int:
        """Return the number of bytes so far."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def over_limit(self) -> bool:
        """True if the file is larger than a sound guest's console."""
        return self.size() > LIMIT

    def text(self, since: int = 0) -> str:
        """Return the text from byte offset ``since`` on, with plain newlines, up to the limit."""
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
    """Return the kernel's last message about a process that it killed for its memory, or ""."""
    found = list(_OOM_KILL.finditer(text))
    return found[-1].group() if found else ""


def banner(text: str) -> str | None:
    """Return the release in a kernel's first line, or None without such a line."""
    found = _BANNER.search(text)
    return found.group(1) if found else None


def banners(text: str) -> tuple[str, ...]:
    """Return the releases in the first lines of all kernels on a console, the oldest first."""
    return tuple(_BANNER.findall(text))


def mark_line(event: str, name: str) -> str:
    """Return the text of a mark for an event, such as begin, end or restored."""
    return f"{MARK} {event} {name}"
