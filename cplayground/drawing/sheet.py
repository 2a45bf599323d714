"""Turn a snapshot into rows, boxes for open files, and stacks for vnodes, without places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cplayground.drawing.text import clean
from cplayground.kinds import kind
from cplayground.names import shown
from cplayground.naming import mode, process_name
from cplayground.snapshot import Descriptor, Holder, Process, Snapshot

if TYPE_CHECKING:
    from cplayground.findings import Finding

_O_APPEND, _O_NONBLOCK = 0o2000, 0o4000
_END = {"r": "read end", "w": "write end", "rw": "both ends"}
_STANDARD = {0: "stdin", 1: "stdout", 2: "stderr"}
_WITH_POSITION = frozenset({"file", "deleted", "memfd", "device"})
_PLURALS = {"process": "processes", "inotify": "inotify", "fanotify": "fanotify", "perf": "perf"}
_NOUNS = {"deleted": "deleted file", "anonymous": "anonymous file"}

Ends = Mapping[tuple[int, int], tuple[int, ...]]  # (global pid, fd): numbers of findings


class Group(NamedTuple):
    """Processes that are drawn in one frame: a container or a PID namespace."""

    name: str  # "" if there is no other
    about: str


class Row(NamedTuple):
    """A row of a descriptor table: a descriptor, or several that are folded."""

    fds: tuple[int, ...]
    notes: tuple[str, ...]  # stdin, close-on-exec
    box: int | None  # its open file; None for folded ones that nobody shares
    missing: tuple[int, ...] = ()  # numbers of the findings that want it closed
    waits: tuple[int, ...] = ()  # numbers of the findings in which it waits
    surely: bool = True  # a finding that wants it closed is an error


class Table(NamedTuple):
    """A process with its rows."""

    process: Process
    group: int
    about: str
    rows: tuple[Row, ...]


class Box(NamedTuple):
    """An open file, or several that are folded, which have no mode here."""

    mode: str  # r, w, rw
    flags: tuple[str, ...]  # append, nonblock
    end: str  # of a pipe: read end, write end
    position: str  # "" for a file without one
    holders: int
    files: int
    stack: int
    missing: bool


class Stack(NamedTuple):
    """A vnode with the boxes of its open files."""

    name: str
    about: str  # its kind and what is to be noted
    pipe: bool
    boxes: tuple[int, ...]


class Sheet(NamedTuple):
    """The whole picture, before it has an order and places."""

    groups: tuple[Group, ...]
    tables: tuple[Table, ...]
    boxes: tuple[Box, ...]
    stacks: tuple[Stack, ...]
    findings: tuple[Finding, ...]


class _Vnode(NamedTuple):
    """Open files of one vnode, by number, with their holders."""

    name: bytes
    kind: str
    files: dict[int, list[Holder]]


def extras(flags: int) -> tuple[str, ...]:
    """Return the flags that a picture names, other than the access mode."""
    named = ((_O_APPEND, "append"), (_O_NONBLOCK, "nonblock"))
    return tuple(name for bit, name in named if flags & bit)


def position(holders: Sequence[Holder]) -> str:
    """Return the position of an open file, or from where to where it moved in the reading."""
    found = {holder.descriptor.position for holder in holders}
    low, high = min(found), max(found)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def several(count: int, noun: str) -> str:
    """Return a number with its noun: 1 file, 2 files."""
    return f"{count:,} {noun if count == 1 else _PLURALS.get(noun, noun + 's')}"


def kinds(paths: Iterable[bytes], first: Iterable[str] = ()) -> str:
    """Return what kinds paths are, the most frequent first: 40 files, 12 sockets.

    Those of ``first`` come before them, even if there are none: no sockets, 40 files.
    """
    counts = Counter(kind(path) for path in paths)
    most = sorted(counts, key=lambda name: (-counts[name], name))
    nouns = {name: _NOUNS.get(name, name) for name in (*first, *most)}
    return ", ".join(
        several(counts[name], noun) if counts[name] else f"no {noun}"
        for name, noun in nouns.items()
    )


def ranges(numbers: Iterable[int], most: int = 4) -> str:
    """Return ascending numbers in short: 3–7, 9; after ``most`` parts …"""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    shown = [
        str(a) if a == b else f"{a}–{b}" if b > a + 1 else f"{a}, {b}" for a, b in parts[:most]
    ]
    return ", ".join([*shown, *(["…"] if len(parts) > most else [])])


def grouped(snapshot: Snapshot) -> tuple[tuple[Group, ...], Mapping[int, int]]:
    """Return groups in the order of their first process, and each global pid's group."""
    of_pid = {pid: container for container in snapshot.containers for pid in container.global_pids}
    groups: dict[tuple[str, str], Group] = {}
    found: dict[int, int] = {}
    places: dict[tuple[str, str], int] = {}
    for process in snapshot.processes:
        container = of_pid.get(process.global_pid)
        if container is None:
            key = ("", process.namespace)
            group = Group(process.namespace[:12], "PID namespace")
        else:
            key = (container.runtime, container.id)
            kept = (container.runtime or "PID namespace", container.pod)
            about = " · ".join(part for part in kept if part)
            group = Group(clean(container.name), clean(about))
        groups.setdefault(key, group)
        found[process.global_pid] = places.setdefault(key, len(places))
    return tuple(groups.values()), found


def sheet(
    snapshot: Snapshot, findings: Sequence[Finding] = (), *, fold: int | None = None
) -> Sheet:
    """Return what a picture shows.

    More than ``fold`` descriptors of a process that nobody shares become one row.  So do more
    than ``fold`` that the same processes share, each at the same number, as fork(2) leaves them.
    With None nothing is folded.
    """
    groups, group_of = grouped(snapshot)
    vnodes = _vnodes(snapshot, group_of)
    missing, waiting = _ends(findings, "missing_close"), _ends(findings, "waiting")
    kept, folded = _folded(vnodes, fold, {*missing, *waiting})
    rows: dict[int, list[Row]] = {process.global_pid: [] for process in snapshot.processes}
    boxes: list[Box] = []
    stacks: list[Stack] = []

    def add(
        fds: tuple[int, ...], process: Process, notes: tuple[str, ...], box: int | None
    ) -> None:
        key = (process.global_pid, fds[0])
        lacking = missing.get(key, ()) if len(fds) == 1 else ()
        surely = any(findings[number - 1].level == "error" for number in lacking)
        waits = waiting.get(key, ()) if len(fds) == 1 else ()
        rows[process.global_pid].append(Row(fds, notes, box, lacking, waits, surely))

    for vnode in kept:
        first = len(boxes)
        for holders in vnode.files.values():
            head = holders[0].descriptor
            flaw = any((h.process.global_pid, h.descriptor.fd) in missing for h in holders)
            boxes.append(
                Box(
                    mode(head.flags),
                    extras(head.flags),
                    _END.get(mode(head.flags), "") if vnode.kind == "pipe" else "",
                    _position(vnode.kind, holders),
                    len(holders),
                    1,
                    len(stacks),
                    flaw,
                )
            )
            for holder in holders:
                notes = _notes(holder.descriptor)
                add((holder.descriptor.fd,), holder.process, notes, len(boxes) - 1)
        made = tuple(range(first, len(boxes)))
        about = _about(vnode)
        stacks.append(Stack(clean(shown(vnode.name)), about, vnode.kind == "pipe", made))
    for owners, some in folded:
        paths = [vnode.name for vnode in some]
        fds = {
            owner.global_pid: tuple(
                sorted(
                    holder.descriptor.fd
                    for vnode in some
                    for holders in vnode.files.values()
                    for holder in holders
                    if holder.process is owner
                )
            )
            for owner in owners
        }
        files = sum(len(vnode.files) for vnode in some)
        if len(owners) == 1:
            (owner,) = owners
            count = len(fds[owner.global_pid])
            add(fds[owner.global_pid], owner, (f"{count:,} that nobody shares", kinds(paths)), None)
            continue
        boxes.append(Box("", (), "", "", len(owners), files, len(stacks), False))
        stacks.append(Stack(several(len(some), "vnode"), kinds(paths), False, (len(boxes) - 1,)))
        for owner in owners:
            numbers = fds[owner.global_pid]
            add(numbers, owner, (f"{len(numbers):,} shared alike",), len(boxes) - 1)
    commands = {(p.namespace, p.pid): p for p in snapshot.processes}
    tables = tuple(
        Table(
            process,
            group_of[process.global_pid],
            _family(process, commands),
            tuple(sorted(rows[process.global_pid])),
        )
        for process in sorted(snapshot.processes, key=lambda one: group_of[one.global_pid])
    )
    named = groups if len(groups) > 1 or snapshot.containers else (Group("", ""),)
    return Sheet(named, tables, tuple(boxes), tuple(stacks), tuple(findings))


def _position(sort: str, holders: Sequence[Holder]) -> str:
    """Return a position, if files of this kind have one; a device shows one that it uses."""
    written = position(holders)
    if sort == "device" and written == "0":
        return ""
    return written if sort in _WITH_POSITION else ""


def _vnodes(snapshot: Snapshot, group_of: Mapping[int, int]) -> list[_Vnode]:
    """Return the vnodes in the order of the text.

    A pipe and a socket are known by the number in their name, a file by its path within a
    container.  Paths of deleted files, and names of anonymous ones, do not tell two apart.
    """
    found: dict[tuple[object, ...], _Vnode] = {}
    key_of: dict[int, tuple[object, ...]] = {}
    for process in snapshot.processes:
        for one in process.descriptors:
            number = one.file.number
            key = key_of.get(number)
            if key is None:
                sort = kind(one.path)
                if sort in ("pipe", "socket"):
                    key = (one.path,)
                elif sort in ("file", "device", "terminal") and one.path.startswith(b"/"):
                    key = (one.path, group_of[process.global_pid])
                else:
                    key = (one.path, "open file", number)
                key_of[number] = key
                found.setdefault(key, _Vnode(one.path, sort, {}))
            found[key].files.setdefault(number, []).append(Holder(process, one))
    return list(found.values())


def _folded(
    vnodes: Sequence[_Vnode], fold: int | None, marked: set[tuple[int, int]]
) -> tuple[list[_Vnode], list[tuple[tuple[Process, ...], list[_Vnode]]]]:
    """Part vnodes into those that are drawn, and those of the same owners that are folded."""
    if fold is None:
        return list(vnodes), []
    alike: dict[tuple[int, ...], list[int]] = {}
    owners: dict[tuple[int, ...], tuple[Process, ...]] = {}
    for place, vnode in enumerate(vnodes):
        found = _owners(vnode, marked)
        if found is not None:
            key = tuple(owner.global_pid for owner in found)
            alike.setdefault(key, []).append(place)
            owners[key] = found
    many = {key: places for key, places in alike.items() if len(places) > fold}
    hidden = {place for places in many.values() for place in places}
    kept = [vnode for place, vnode in enumerate(vnodes) if place not in hidden]
    return kept, [(owners[key], [vnodes[at] for at in places]) for key, places in many.items()]


def _owners(vnode: _Vnode, marked: set[tuple[int, int]]) -> tuple[Process, ...] | None:
    """Return the processes that hold a vnode in the same way, or None if it is to be drawn.

    A vnode of one process is nobody else's, if that holds each open file of it once.  A vnode
    of several is theirs alike, if it has one open file that all hold once, at one number.
    """
    holders = [holder for some in vnode.files.values() for holder in some]
    if any((one.process.global_pid, one.descriptor.fd) in marked for one in holders):
        return None
    if any(one.descriptor.fd in _STANDARD for one in holders):
        return None
    first = holders[0].process
    if all(one.process is first for one in holders):
        return (first,) if len(holders) == len(vnode.files) else None
    processes = tuple(one.process for one in holders)
    once = len({process.global_pid for process in processes}) == len(processes)
    level = len({one.descriptor.fd for one in holders}) == 1
    return processes if len(vnode.files) == 1 and once and level else None


def _ends(findings: Sequence[Finding], field: str) -> Ends:
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for number, finding in enumerate(findings, 1):
        if finding.level == "note":
            continue
        for holder in getattr(finding, field):
            key = (holder.process.global_pid, holder.descriptor.fd)
            found[key] = (*found.get(key, ()), number)
    return found


def _notes(descriptor: Descriptor) -> tuple[str, ...]:
    standard = _STANDARD.get(descriptor.fd)
    named = (standard,) if standard else ()
    return (*named, "close-on-exec") if descriptor.close_on_exec else named


def _about(vnode: _Vnode) -> str:
    if vnode.kind != "pipe":
        return "deleted file" if vnode.kind == "deleted" else vnode.kind
    modes = {mode(holders[0].descriptor.flags) for holders in vnode.files.values()}
    if not modes & {"w", "rw"}:
        return "pipe, no write end here"
    return "pipe" if modes & {"r", "rw"} else "pipe, no read end here"


def _family(process: Process, known: Mapping[tuple[str, int], Process]) -> str:
    parent = known.get((process.namespace, process.ppid))
    host = f"{process.global_pid} on the host" if process.global_pid != process.pid else ""
    child = f"child of {clean(process_name(parent))}" if parent else ""
    return " · ".join(part for part in (child, host) if part)
