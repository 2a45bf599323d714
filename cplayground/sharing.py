"""Find who shares what: pipes with their two ends, and open files with several descriptors."""

from __future__ import annotations

import os
from collections.abc import Iterator

from cplayground.kinds import kind
from cplayground.snapshot import Descriptor, Holder, Name, Pipe, Shared, Snapshot

_O_PATH = 0o10000000  # a text may be read on a system that has no os.O_PATH
_ACCESS_MODE = 3  # O_ACCMODE


def reads(descriptor: Descriptor) -> bool:
    """Tell whether read(2) is allowed by the mode of the open file."""
    return _mode(descriptor) in (os.O_RDONLY, os.O_RDWR)


def writes(descriptor: Descriptor) -> bool:
    """Tell whether write(2) is allowed by the mode of the open file."""
    return _mode(descriptor) in (os.O_WRONLY, os.O_RDWR)


def _mode(descriptor: Descriptor) -> int:
    """Return the access mode; O_ACCMODE, which allows neither, for O_PATH."""
    return _ACCESS_MODE if descriptor.flags & _O_PATH else descriptor.flags & _ACCESS_MODE


def holders(snapshot: Snapshot) -> Iterator[Holder]:
    """Yield all descriptors with their processes, in the order of the text."""
    for process in snapshot.processes:
        for descriptor in process.descriptors:
            yield Holder(process, descriptor)


def pipes(snapshot: Snapshot) -> tuple[Pipe, ...]:
    """Return the pipes in the order of the text.

    A pipe is known by its inode's number, so two open files of one end, as open(2) of
    /proc/PID/fd/N makes them, are in one pipe.  FIFOs with a name are not told from files.
    """
    found: dict[Name, tuple[list[Holder], list[Holder]]] = {}
    for holder in holders(snapshot):
        path = holder.descriptor.path
        if kind(path) == "pipe":
            readers, writers = found.setdefault(path, ([], []))
            if reads(holder.descriptor):
                readers.append(holder)
            if writes(holder.descriptor):
                writers.append(holder)
    return tuple(Pipe(path, tuple(r), tuple(w)) for path, (r, w) in found.items())


def shared(snapshot: Snapshot) -> tuple[Shared, ...]:
    """Return the open files that several descriptors hold, by number."""
    # Counted first: of a million open files most have one holder, and need no list of them.
    counts = [0] * (1 + max((file.number for file in snapshot.files), default=0))
    for process in snapshot.processes:
        for descriptor in process.descriptors:
            counts[descriptor.file.number] += 1
    held: dict[int, list[Holder]] = {}
    for holder in holders(snapshot):
        number = holder.descriptor.file.number
        if counts[number] > 1:
            held.setdefault(number, []).append(holder)
    return tuple(
        Shared(file, tuple(held[file.number])) for file in snapshot.files if file.number in held
    )
