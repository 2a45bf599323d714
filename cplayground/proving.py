"""Prove that processes wait for each other for ever, from facts about all of the host's.

A process is *stuck* if none of its threads can go on by itself.  A thread cannot in two cases:

- It reads a pipe.  Every write end of the pipe is held by processes that are stuck.
- It waits for a child that is stuck, or for any child.  Then all descendants are stuck.

The largest set of processes for which this holds is the result.  Each of them slept all the time
from before the ends were read until after.  There was a moment at which all slept, so none of
them was about to write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Union

from cplayground.facts import End, Host, Moment, Seen, Thread, wait
from cplayground.snapshot import Name

_DEAD = ("Z", "X")


class Waiting(NamedTuple):
    """A thread that sleeps, and the pipe that it reads or the processes that it waits for."""

    thread: Thread
    moment: Moment
    call: str
    fd: int | None
    pipe: Name | None
    children: tuple[int, ...]
    anybody: bool = False  # any child, and after it those that it leaves


class Ring(NamedTuple):
    """Processes that wait for each other, directly or through the pipes between them."""

    waiting: dict[int, tuple[Waiting, ...]]  # by pid: all that are stuck, also outside of the ring
    pids: frozenset[int]
    pipes: tuple[Name, ...]


def alive(process: Seen) -> tuple[Thread, ...]:
    """Return the threads that have not exited."""
    return tuple(
        thread
        for thread in process.threads
        if not (thread.before and thread.after)
        or thread.before.state not in _DEAD
        or thread.after.state not in _DEAD
    )


def rings(host: Host) -> tuple[Ring, ...]:
    """Return the rings of stuck processes; a process that waits for itself is one too.

    No process of a ring waits for one outside of it.  Others are stuck behind a ring, and may go
    on by themselves when the ring does: nothing is said of them.
    """
    stuck = _stuck(host)
    holders: dict[Name, set[int]] = {}
    for end in host.ends:
        if end.writes:
            holders.setdefault(end.pipe, set()).add(end.pid)
    edges: dict[_Node, list[_Node]] = {}
    for pid, waits in stuck.items():
        onward: list[_Node] = edges.setdefault(pid, [])
        for one in waits:
            onward.extend(child for child in one.children if child in stuck)
            if one.pipe is not None:
                onward.append(one.pipe)
                edges[one.pipe] = sorted(holders[one.pipe])
    found = []
    for part in _components(edges):
        inside = set(part)
        pipes = tuple(sorted(node for node in part if isinstance(node, Name)))
        if pipes and all(inside.issuperset(edges[node]) for node in part):
            pids = frozenset(node for node in part if isinstance(node, int))
            found.append(Ring(stuck, pids, pipes))
    return tuple(sorted(found, key=lambda ring: min(ring.pids)))


def _stuck(host: Host) -> dict[int, tuple[Waiting, ...]]:
    """Return the stuck processes: drop those that can go on, until none is left that can."""
    known = {process.pid: process for process in host.processes}
    relatives: dict[int, list[Seen]] = {}
    for process in host.processes:
        relatives.setdefault(process.parent, []).append(process)
        if process.tracer not in (0, process.parent):
            relatives.setdefault(process.tracer, []).append(process)
    table: dict[tuple[int, int, int], set[End]] = {}
    holds: dict[int, set[Name]] = {}
    for end in host.ends:
        table.setdefault((end.pid, end.table, end.fd), set()).add(end)
        if end.writes:
            holds.setdefault(end.pid, set()).add(end.pipe)
    written = set().union(*holds.values())

    stuck: dict[int, tuple[Waiting, ...]] = {}
    going = []  # that can go on, and what depends on them is to be dropped
    for process in host.processes:
        waits = _waits(host.machine, process, table, relatives.get(process.pid, ()))
        # A reader whose pipe nobody writes to would see the end: there is an end somewhere else.
        if waits and all(one.pipe is None or one.pipe in written for one in waits):
            stuck[process.pid] = waits
        elif waits != ():
            going.append(process.pid)
    going.extend({end.pid for end in host.ends if end.pid not in known})

    readers: dict[Name, set[int]] = {}
    waiters: dict[int, set[int]] = {}
    patient = set()  # that wait for any child
    for pid, waits in stuck.items():
        for one in waits:
            if one.pipe is not None:
                readers.setdefault(one.pipe, set()).add(pid)
            for child in one.children:
                waiters.setdefault(child, set()).add(pid)
            if one.anybody:
                patient.add(pid)
    above: set[int] = set()  # ancestors of those that can go on
    while going:
        pid = going.pop()
        freed = set(waiters.get(pid, ()))
        for pipe in holds.get(pid, ()):
            freed |= readers.pop(pipe, set())
        parent = known[pid].parent if pid in known else 0
        while parent in known and parent not in above:
            above.add(parent)
            freed |= {parent} & patient
            parent = known[parent].parent
        for one_freed in freed:
            if stuck.pop(one_freed, None) is not None:
                going.append(one_freed)
    return stuck


def _waits(
    machine: str,
    process: Seen,
    table: Mapping[tuple[int, int, int], set[End]],
    relatives: Iterable[Seen],
) -> tuple[Waiting, ...] | None:
    """Return what the threads of a process wait for: None if one can go on, () if all are dead."""
    found = []
    threads = alive(process)
    if not process.threads:
        return None
    for thread in threads:
        moment = thread.before
        if moment is None or moment != thread.after:
            return None
        one = wait(machine, moment)
        if one is None:
            return None
        if one.fd is not None:
            ends = table.get((process.pid, thread.table, one.fd), set())
            # A pipe that is open for both is read by programs that never want its end.
            if len(ends) != 1 or any(end.writes or not end.reads for end in ends):
                return None
            (end,) = ends
            found.append(Waiting(thread, moment, one.call, one.fd, end.pipe, ()))
            continue
        level = len(process.pids) - 1
        children = tuple(
            child.pid
            for child in relatives
            if not one.child or (len(child.pids) > level and child.pids[level] == one.child)
        )
        if not children:
            return None
        found.append(Waiting(thread, moment, one.call, None, None, children, not one.child))
    return tuple(found)


_Node = Union[int, Name]


def _components(edges: Mapping[_Node, Iterable[_Node]]) -> list[list[_Node]]:
    """Return the strongly connected components of a graph, by Tarjan's algorithm."""
    index: dict[_Node, int] = {}
    low: dict[_Node, int] = {}
    path: list[_Node] = []
    on_path: set[_Node] = set()
    found = []
    for root in edges:
        if root in index:
            continue
        work = [(root, iter(edges.get(root, ())))]
        index[root] = low[root] = len(index)
        path.append(root)
        on_path.add(root)
        while work:
            node, onward = work[-1]
            for other in onward:
                if other not in index:
                    index[other] = low[other] = len(index)
                    path.append(other)
                    on_path.add(other)
                    work.append((other, iter(edges.get(other, ()))))
                    break
                if other in on_path:
                    low[node] = min(low[node], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    part: list[_Node] = []
                    while not part or part[-1] != node:
                        part.append(path.pop())
                    on_path.difference_update(part)
                    found.append(part)
    return found
