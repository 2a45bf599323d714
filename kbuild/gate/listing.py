"""Compare all files of a server's tree before and after packages came and went."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import contents

# Apt and dpkg write these in each run: logs, caches, and the state of the last run.
OF_THE_TOOLS = (
    r"var/log/(dpkg|alternatives)\.log",
    r"var/log/apt(/.*)?",
    r"var/cache/apt(/.*)?",
    r"var/cache/debconf(/.*)?",
    r"var/lib/apt/(daily_lock|extended_states|listchanges.*|lists(/.*)?|periodic(/.*)?)",
    r"var/lib/dpkg/(status-old|lock.*|available.*|triggers/Lock)",
    r"var/lib/dpkg/(diversions|alternatives)-old",
)


# Contents that were read before, by name, mode, size and time of change.
Read = dict[tuple[str, int, int, int], str]


@dataclass(frozen=True)
class Entry:
    """A file, link or directory of a tree; times do not count."""

    mode: int  # st_mode
    uid: int
    gid: int
    sha256: str  # of a file's content or a link's target, else ""


def record(tree: Path, read: Read | None = None) -> dict[str, Entry]:
    """Return everything in a tree by its name relative to the tree.

    A file that has the same name, mode, size and time of change as one in ``read`` has the same
    content.  Copies of one tree share most files, and reading all takes seconds.
    """
    known: Read = {} if read is None else read
    found = {}
    for name, status in contents.walk(tree):
        mode, digest = status.st_mode, ""
        if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
            key = (name, mode, status.st_size, status.st_mtime_ns)
            digest = known.get(key) or contents.content(tree / name, mode)
            known[key] = digest
        found[name] = Entry(mode, status.st_uid, status.st_gid, digest)
    return found


def differences(
    before: Mapping[str, Entry],
    after: Mapping[str, Entry],
    *,
    allowed: Iterable[str] = (),
    changing: Iterable[str] = (),
) -> list[str]:
    """Return each difference in a line, sorted by name.

    ``allowed`` are regular expressions for the whole name of an entry that may differ, next to
    those of :data:`OF_THE_TOOLS`.  ``changing`` are those of files that must be there before and
    after, and may have another content.
    """
    may, change = (
        re.compile("|".join(f"(?:{one})" for one in names) or "(?!)")
        for names in ((*OF_THE_TOOLS, *allowed), (*changing,))
    )
    found = []
    for name in sorted(before.keys() | after.keys()):
        one, two = before.get(name), after.get(name)
        if one == two or may.fullmatch(name):
            continue
        if one is None:
            found.append(f"/{name} is left over")
        elif two is None:
            found.append(f"/{name} is gone")
        elif _what(one, two) != "content" or not change.fullmatch(name):
            found.append(f"/{name} has another {_what(one, two)}")
    return found


def _what(one: Entry, two: Entry) -> str:
    if stat.S_IFMT(one.mode) != stat.S_IFMT(two.mode):
        return "kind"
    if one.sha256 != two.sha256:
        return "content"
    return "mode" if one.mode != two.mode else "owner"
