"""Compare two snapshots: opened, closed and replaced descriptors, and positions that moved."""

from __future__ import annotations

from typing import NamedTuple

from cplayground.snapshot import Descriptor, Holder, Process, Snapshot

_ACCESS_MODE = 3  # O_ACCMODE: how open(2) was called, which nothing changes afterwards


class Change(NamedTuple):
    """A difference of one descriptor."""

    what: str  # "opened", "closed", "replaced" or "moved"
    before: Holder | None  # None if opened
    after: Holder | None  # None if closed


def diff(before: Snapshot, after: Snapshot) -> tuple[Change, ...]:
    """Return the changes by global pid and descriptor.

    A process that began or ended has opened or closed its descriptors.  A descriptor is replaced
    if it is of another open file.  A file that was closed and opened again between the readings
    often has its old id, and is then not told from one that stayed open.

    An open file that moved is shown once, by its first descriptor that is in both snapshots.
    """
    old = {_key(process): process for process in before.processes}
    new = {_key(process): process for process in after.processes}
    changes: list[Change] = []
    moved: set[int] = set()
    for key in sorted(old.keys() | new.keys(), key=lambda key: (key[1], key not in old, key)):
        then, now = old.get(key), new.get(key)
        had = {} if then is None else {one.fd: one for one in then.descriptors}
        has = {} if now is None else {one.fd: one for one in now.descriptors}
        for fd in sorted(had.keys() | has.keys()):
            first, second = had.get(fd), has.get(fd)
            what = _what(first, second, moved)
            if what:
                changes.append(Change(what, _holder(then, first), _holder(now, second)))
    return tuple(changes)


def _key(process: Process) -> tuple[str, int, int]:
    """Return what a process keeps for all of its life."""
    return process.namespace, process.global_pid, process.pid


def _what(before: Descriptor | None, after: Descriptor | None, moved: set[int]) -> str:
    if before is None:
        return "opened"
    if after is None:
        return "closed"
    if before.file.id != after.file.id or (before.flags ^ after.flags) & _ACCESS_MODE:
        return "replaced"
    if before.position != after.position and after.file.number not in moved:
        moved.add(after.file.number)
        return "moved"
    return ""


def _holder(process: Process | None, descriptor: Descriptor | None) -> Holder | None:
    return None if process is None or descriptor is None else Holder(process, descriptor)
