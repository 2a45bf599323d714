"""Choose a part of a snapshot: containers, processes, open files."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from cplayground.errors import UsageError
from cplayground.kinds import KINDS, kind
from cplayground.snapshot import Container, Descriptor, Process, Snapshot

# A shorter beginning of an id is more likely a typing error.
_ID_LEAST = 4


@dataclass(frozen=True)
class Filter:
    """Conditions on a snapshot.  An empty one is none; of several values one must fit.

    Commands and paths are globs of the shell, compared byte by byte.
    """

    containers: tuple[str, ...] = ()  # names, ids, or the beginnings of ids
    pids: tuple[int, ...] = ()  # global
    ns_pids: tuple[int, ...] = ()
    commands: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


def select(snapshot: Snapshot, chosen: Filter) -> Snapshot:
    """Return the processes and descriptors for which all conditions hold.

    With a condition on paths or kinds, processes without such a descriptor are left out.  Open
    files keep their numbers.  Raises UsageError for a container or a pid that the snapshot does
    not have, and for a kind that does not exist.
    """
    if chosen == Filter():
        return snapshot
    unknown = set(chosen.kinds).difference(KINDS)
    if unknown:
        raise UsageError(
            f"there is no kind {min(unknown)}", hint=f"the kinds are {', '.join(KINDS)}"
        )
    pids = _pids(snapshot, chosen)
    commands = tuple(map(os.fsencode, chosen.commands))
    processes = []
    for process in snapshot.processes:
        if (
            (pids is None or process.global_pid in pids)
            and (not chosen.ns_pids or process.pid in chosen.ns_pids)
            and (not commands or any(fnmatchcase(process.command, glob) for glob in commands))
        ):
            processes.append(process)
    if chosen.paths or chosen.kinds:
        processes = _with_descriptors(processes, chosen)
    return _part(snapshot, processes)


def container(snapshot: Snapshot, name: str) -> Snapshot:
    """Return the part of one container, by its name, its id, or the beginning of its id.

    Raises UsageError if none or several are meant.
    """
    return select(snapshot, Filter(containers=(name,)))


def _pids(snapshot: Snapshot, chosen: Filter) -> frozenset[int] | None:
    """Return the global pids that the containers and the pids leave; None for all of them."""
    pids = None
    if chosen.containers:
        pids = frozenset().union(*(_members(snapshot, name) for name in chosen.containers))
    if chosen.pids:
        there = {process.global_pid for process in snapshot.processes}
        for pid in chosen.pids:
            if pid not in there:
                raise UsageError(
                    f"there is no process {pid}",
                    hint="-p takes the pid on the host; --ns-pid takes the one in a container",
                )
        asked = frozenset(chosen.pids)
        pids = asked if pids is None else pids & asked
    return pids


def _members(snapshot: Snapshot, name: str) -> frozenset[int]:
    known = snapshot.containers or _namespaces(snapshot)
    found = [one for one in known if name in (one.name, one.id)]
    if not found and len(name) >= _ID_LEAST:
        found = [one for one in known if one.id.startswith(name)]
    if not found:
        raise UsageError(
            f"there is no container {name}",
            hint="cplayground ps shows those that there are",
        )
    if len(found) > 1:
        ids = ", ".join(one.id[:12] for one in found)
        raise UsageError(f"{name} means several containers: {ids}", hint="give the id")
    return frozenset(found[0].global_pids)


def _namespaces(snapshot: Snapshot) -> tuple[Container, ...]:
    """Return the PID namespaces as containers, for a snapshot without names."""
    members: dict[str, list[int]] = {}
    for process in snapshot.processes:
        members.setdefault(process.namespace, []).append(process.global_pid)
    return tuple(Container(id[:12], id, "", "", tuple(pids)) for id, pids in members.items())


def _with_descriptors(processes: list[Process], chosen: Filter) -> list[Process]:
    paths = tuple(map(os.fsencode, chosen.paths))

    def fits(descriptor: Descriptor) -> bool:
        path = descriptor.path
        return (not chosen.kinds or kind(path) in chosen.kinds) and (
            not paths or any(fnmatchcase(path, glob) for glob in paths)
        )

    cut = (p._replace(descriptors=tuple(filter(fits, p.descriptors))) for p in processes)
    return [process for process in cut if process.descriptors]


def _part(snapshot: Snapshot, processes: list[Process]) -> Snapshot:
    numbers = {one.file.number for process in processes for one in process.descriptors}
    there = {process.global_pid for process in processes}
    groups = (
        replace(one, global_pids=tuple(filter(there.__contains__, one.global_pids)))
        for one in snapshot.containers
    )
    return replace(
        snapshot,
        processes=tuple(processes),
        files=tuple(file for file in snapshot.files if file.number in numbers),
        containers=tuple(one for one in groups if one.global_pids),
    )
