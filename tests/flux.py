"""Parse the readings of tests/guest/flux.c, and check them for the module's invariants.

The numbers of the invariants are those of docs/reference/procfile.md.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kbuild.lab.procfile import OpenFile, Process
from tests.topology.topology import O_APPEND, O_LARGEFILE, O_NONBLOCK

# As in flux.c.
CONTAINERS = 3
FDS = 100
USED = 70
_O_RDWR = 2
# position and flags of each of a container's two open files
_FILES = {b"a": (11, _O_RDWR | O_APPEND | O_LARGEFILE), b"b": (22, O_NONBLOCK | O_LARGEFILE)}
_NAMES = frozenset((b"init", b"one", b"two", b"flux"))


@dataclass(frozen=True)
class Readings:
    """The output of flux: pids of the containers' first processes, and all readings."""

    firsts: tuple[int, ...]
    readings: tuple[bytes, ...]
    workers: int
    hosted: int  # processes of the host that started and ended meanwhile


def parse(output: bytes) -> Readings:
    """Parse the output of flux; raises ValueError if it is cut off."""
    firsts: list[int] = []
    readings: list[bytes] = []
    at = 0
    while (end := output.find(b"\n", at)) >= 0:
        line, at = output[at:end], end + 1
        match line.split(b" "):
            case [b"container", number, pid] if int(number) == len(firsts) + 1:
                firsts.append(int(pid))
            case [b"read", size]:
                readings.append(output[at : at + int(size)])
                at += int(size)
            case [b"made", workers, hosted] if at == len(output):
                return Readings(tuple(firsts), tuple(readings), int(workers), int(hosted))
            case _:
                raise ValueError(f"flux printed {line!r}")
    raise ValueError("the output of flux is cut off")


def violations(listing: Sequence[Process], firsts: Sequence[int], place: bytes) -> list[str]:
    """Return the violations of the invariants in one reading, one line each."""
    by_pid = {process.pid: process for process in listing}
    found = []
    containers: dict[str, int] = {}
    for number, pid in enumerate(firsts, 1):
        first = by_pid.get(pid)
        if first is None:
            found.append(f"7: container {number}: its first process {pid} is not shown")
        else:
            containers[first.namespace] = number
    if len(containers) != len(firsts):
        found.append(f"6: {len(firsts)} containers have {len(containers)} namespaces")
    files: dict[tuple[int, bytes], str] = {}
    for process in listing:
        where = f"process {process.pid} ({process.ns_pid}, {process.command!r})"
        container = containers.get(process.namespace)
        if container is None:
            found.append(f"2: {where} is in no container")
            continue
        found += [f"{line[:2]} {where}: {line[3:]}" for line in _header(process)]
        fds = {file.fd for file in process.files}
        if process.pid in firsts and not {FDS * container, FDS * container + 1} <= fds:
            found.append(f"7: {where}: a descriptor that was open all the time is not shown")
        if fds and not fds & {FDS * container + 2, FDS * container + 3}:
            shown = ", ".join(str(fd) for fd in sorted(fds))
            found.append(
                f"4: {where}: a file that was on one of two numbers is on neither: {shown}"
            )
        for file in process.files:
            at = f"{where}, descriptor {file.fd}"
            if not FDS * container <= file.fd < FDS * container + USED:
                found.append(f"5: {at}: container {container} never had it")
            else:
                execs = process.ns_pid != 1
                problems = _file(file, container, place, execs=execs)
                found += [f"{line[:2]} {at}: {line[3:]}" for line in problems]
                known = files.setdefault((container, file.path), file.id)
                if known != file.id:
                    found.append(f"6: {at}: the same open file has two ids")
    if len(set(files.values())) != len(files):
        found.append("6: two open files have the same id")
    return found


def _header(process: Process) -> Iterator[str]:
    if process.command not in _NAMES:
        yield "2: no process has this name"
    if (process.ns_pid == 1) != (process.ns_ppid == 0):
        yield f"2: the parent is {process.ns_ppid}"
    if process.ns_pid == 1 and process.command != b"init":
        yield "2: the first process has another name"
    if process.ns_pgid not in (0, process.ns_pid):
        yield f"2: the group is {process.ns_pgid}"
    if process.extended is not None and process.extended.state in "ZX" and process.files:
        yield "5: it has ended, but has descriptors"


def _file(file: OpenFile, container: int, place: bytes, *, execs: bool) -> Iterator[str]:
    prefix = b"%s/%d/" % (place, container)
    name = file.path.removeprefix(prefix)
    if prefix + name != file.path or name not in _FILES:
        yield f"5: its path is {file.path!r}"
        return
    if (file.position, file.flags) != _FILES[name]:
        yield f"3: {name!r} has position {file.position} and flags {file.flags:o}"
    always = file.fd - FDS * container
    if always < 2:
        if file.cloexec or name != (b"a", b"b")[always]:
            yield f"3: it is {name!r} with close-on-exec {file.cloexec}"
    elif execs and always >= 4 and name == b"a" and not file.cloexec:
        # execve(2) clears close-on-exec of 64 descriptors at once, and then closes them one by
        # one without the table's lock: do_close_on_exec() in fs/file.c.
        return
    elif file.cloexec != (name == b"a") or (always < 4 and name != b"b"):
        yield f"3: it is {name!r} with close-on-exec {file.cloexec}"


def summary(listings: Sequence[Sequence[Process]]) -> Counter[str]:
    """Count the contents of the readings; with too few, they prove nothing."""
    count: Counter[str] = Counter(readings=len(listings))
    pids: dict[int, set[str]] = {}
    for listing in listings:
        for process in listing:
            count["records"] += 1
            count["descriptors"] += len(process.files)
            count["zombies"] += process.extended is not None and process.extended.state == "Z"
            pids.setdefault(process.pid, set()).add(process.namespace)
    count["processes"] = len(pids)
    count["changes"] = sum(one != two for one, two in itertools.pairwise(listings))
    # A pid that was in one container and then in another could be confused.
    count["reused pids"] = sum(len(namespaces) > 1 for namespaces in pids.values())
    return count
