"""Group alike processes of a container, and list what containers share: a picture of many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cplayground.drawing.sheet import Group, extras, grouped, kinds, ranges, several
from cplayground.drawing.text import clean
from cplayground.kinds import kind
from cplayground.names import shown
from cplayground.naming import mode
from cplayground.snapshot import Holder, Process, Snapshot

if TYPE_CHECKING:
    from cplayground.findings import Finding

_MOST_ALIKE = 8  # groups of one container, before a command is enough to be alike


class Alike(NamedTuple):
    """Processes of one command, with descriptors of the same kinds if they are not too many."""

    command: str
    pids: str  # in short
    host: str  # the global pids, in short
    size: int  # number of processes
    descriptors: str  # their number and kinds
    kinds: str
    shares: tuple[int, ...]  # numbers of what other containers have too
    marks: tuple[int, ...]  # numbers of findings that want a close() here


class Card(NamedTuple):
    """A container with its groups."""

    group: Group
    processes: int
    alike: tuple[Alike, ...]


class Common(NamedTuple):
    """A file or a pipe that processes of several containers hold."""

    name: str
    how: str  # r, w, append
    holders: tuple[tuple[str, int], ...]  # containers, and how many of their processes


class Crowd(NamedTuple):
    """The whole picture, before it has places."""

    cards: tuple[Card, ...]
    common: tuple[Common, ...]
    findings: tuple[Finding, ...]


def crowd(snapshot: Snapshot, findings: Sequence[Finding] = ()) -> Crowd:
    """Return what a picture of many processes shows."""
    groups, group_of = grouped(snapshot)
    common, shares = _common(snapshot, groups, group_of)
    marks: dict[int, tuple[int, ...]] = {}
    for number, finding in enumerate(findings, 1):
        if finding.level != "note":
            for pid in {holder.process.global_pid for holder in finding.missing_close}:
                marks[pid] = (*marks.get(pid, ()), number)
    members: list[list[Process]] = [[] for _ in groups]
    for process in snapshot.processes:
        members[group_of[process.global_pid]].append(process)
    cards = []
    for group, inside in zip(groups, members):
        parts = _parted(inside)
        unlike = _unlike(parts)
        rows = tuple(_alike(some, shares, marks, unlike[some[0].command]) for some in parts)
        cards.append(Card(group, len(inside), rows))
    return Crowd(tuple(cards), common, tuple(findings))


def _parted(processes: Sequence[Process]) -> list[list[Process]]:
    """Part the processes of a container into groups of alike ones, the largest first.

    Two are alike with the same command and as many descriptors of each kind and mode.
    """
    by_kind: dict[object, list[Process]] = {}
    by_command: dict[object, list[Process]] = {}
    for process in processes:
        shape = tuple(sorted((kind(one.path), mode(one.flags)) for one in process.descriptors))
        by_kind.setdefault((process.command, shape), []).append(process)
        by_command.setdefault(process.command, []).append(process)
    parts = by_kind if len(by_kind) <= _MOST_ALIKE else by_command
    return sorted(parts.values(), key=lambda some: (-len(some), some[0].global_pid))


def _most(processes: Iterable[Process]) -> Process:
    """Return the process that stands for the others, which have less of the same."""
    return max(processes, key=lambda process: len(process.descriptors))


def _unlike(parts: Iterable[Sequence[Process]]) -> Mapping[bytes, list[str]]:
    """Return the kinds in which groups of one command differ."""
    found: dict[bytes, list[Counter[str]]] = {}
    for some in parts:
        one = _most(some)
        counts = Counter(kind(descriptor.path) for descriptor in one.descriptors)
        found.setdefault(one.command, []).append(counts)
    return {
        command: [
            name
            for name in sorted(set().union(*groups))
            if len({counts[name] for counts in groups}) > 1
        ]
        for command, groups in found.items()
    }


def _alike(
    processes: Sequence[Process],
    shares: Mapping[int, Sequence[int]],
    marks: Mapping[int, Sequence[int]],
    unlike: Sequence[str],
) -> Alike:
    counts = [len(process.descriptors) for process in processes]
    low, high = min(counts), max(counts)
    number = several(low, "descriptor") if low == high else f"{low:,} to {high:,} descriptors"
    what = kinds((one.path for one in _most(processes).descriptors), unlike)
    common = sorted({n for process in processes for n in shares.get(process.global_pid, ())})
    found = sorted({n for process in processes for n in marks.get(process.global_pid, ())})
    return Alike(
        clean(processes[0].command.text) or "(no name)",
        ranges((process.pid for process in processes), 3),
        ranges((process.global_pid for process in processes), 3),
        len(processes),
        f"{number}: {what}" if what else number,
        what or number,
        tuple(common),
        tuple(found),
    )


def _common(
    snapshot: Snapshot, groups: Sequence[Group], group_of: Mapping[int, int]
) -> tuple[tuple[Common, ...], Mapping[int, Sequence[int]]]:
    """Return what is held in several containers, and by global pid the numbers of these."""
    held: dict[object, list[Holder]] = {}
    for process in snapshot.processes:
        for one in process.descriptors:
            # Both ends of a pipe are one thing that is shared.
            key = one.path if kind(one.path) == "pipe" else one.file.number
            held.setdefault(key, []).append(Holder(process, one))
    common: list[Common] = []
    shares: dict[int, list[int]] = {}
    for holders in held.values():
        inside = Counter(
            {(group_of[h.process.global_pid], h.process.global_pid): 1 for h in holders}
        )
        where = Counter(group for group, _ in inside)
        if len(where) < 2:
            continue
        ways = {(mode(h.descriptor.flags), *extras(h.descriptor.flags)) for h in holders}
        how = " and ".join(", ".join(way) for way in sorted(ways))
        name = clean(shown(holders[0].descriptor.path))
        named = tuple((groups[group].name, count) for group, count in sorted(where.items()))
        common.append(Common(name, how, named))
        for _, pid in inside:
            shares.setdefault(pid, []).append(len(common))
    return tuple(common), shares
