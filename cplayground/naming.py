"""Name processes, descriptors, containers and modes, in the same words in all output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Final

from cplayground.names import harmless
from cplayground.snapshot import Container, Holder, Process, Snapshot

_WHOLE_ID = 64  # digits of a runtime's or a namespace's id; a machine's is its name
# O_* of asm-generic/fcntl.h, as on amd64, which no call drops.  O_LARGEFILE is nearly everywhere.
_FLAGS: Final = (
    ("APPEND", 0o2000),
    ("NONBLOCK", 0o4000),
    ("SYNC", 0o4010000),
    ("DSYNC", 0o10000),
    ("ASYNC", 0o20000),
    ("DIRECT", 0o40000),
    ("TMPFILE", 0o20200000),
    ("DIRECTORY", 0o200000),
    ("NOFOLLOW", 0o400000),
    ("NOATIME", 0o1000000),
    ("PATH", 0o10000000),
)
_LARGEFILE = 0o100000
_O_PATH = 0o10000000


def mode(flags: int) -> str:
    """Return how a file is open: r, w, rw, path, or none for neither."""
    return "path" if flags & _O_PATH else ("r", "w", "rw", "none")[flags & 3]


def flag_names(flags: int) -> str:
    """Return the flags of open(2) but the mode and O_LARGEFILE; unknown bits are octal."""
    rest, names = flags & ~(_LARGEFILE | 3), []
    for name, bits in _FLAGS:
        if rest & bits == bits:
            rest &= ~bits
            names.append(name)
    return "|".join([*names, f"0{rest:o}"] if rest else names)


def places(snapshot: Snapshot) -> dict[int, Container]:
    """Return the container of each process, by global pid.

    A process without one, as in a text that was kept, is in its PID namespace.
    """
    found = {pid: one for one in snapshot.containers for pid in one.global_pids}
    bare: dict[str, list[int]] = {}
    for process in snapshot.processes:
        if process.global_pid not in found:
            bare.setdefault(process.namespace, []).append(process.global_pid)
    for namespace, pids in bare.items():
        one = Container(namespace[:12], namespace, "", "", tuple(pids))
        found.update(dict.fromkeys(pids, one))
    return found


def by_container(
    processes: Iterable[Process], where: Mapping[int, Container]
) -> list[tuple[Container, list[Process]]]:
    """Return processes by container, in the order of the first ones."""
    groups: dict[str, tuple[Container, list[Process]]] = {}
    for process in processes:
        one = where[process.global_pid]
        groups.setdefault(one.id, (one, []))[1].append(process)
    return list(groups.values())


def title(container: Container) -> str:
    """Return a line that names a container."""
    name, id = harmless(container.name), harmless(container.id)
    id = id[:12] if len(id) == _WHOLE_ID else id
    known = [container.runtime or "namespace", *([id] if id != name else [])]
    pod = f", pod {harmless(container.pod)}" if container.pod else ""
    return f"{name} ({' '.join(map(harmless, known))}{pod})"


def process_name(process: Process) -> str:
    """Return COMMAND:PID with the pid in the container."""
    return f"{process.command.text}:{process.pid}"


def holder_name(process: Process, fds: str | int) -> str:
    """Return COMMAND:PID/FD with the pid in the container."""
    return f"{process_name(process)}/{fds}"


def holder_names(
    holders: Iterable[Holder], where: Mapping[int, Container], home: str = ""
) -> list[str]:
    """Return one name for each process, with all its descriptors.

    With the id of a container as ``home``, a process elsewhere has its container's name.
    """
    names = []
    for _pid, group in groupby(holders, key=lambda one: one.process.global_pid):
        own = list(group)
        process = own[0].process
        place = where[process.global_pid]
        away = f" ({harmless(place.name)})" if home and place.id != home else ""
        names.append(holder_name(process, ",".join(str(o.descriptor.fd) for o in own)) + away)
    return names
