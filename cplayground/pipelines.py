"""Show both ends of a pipe, and follow the pipeline from its sources as a tree."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from cplayground.errors import UsageError
from cplayground.names import harmless
from cplayground.naming import holder_names, places, process_name
from cplayground.snapshot import Container, Holder, Name, Pipe, Process, Snapshot
from cplayground.tables import BOLD, NONE_SHOWN, PLAIN, Style, wrapped

# A line of a tree, and what is below it; called when the line is drawn.
Node = Callable[[], "tuple[str, list[Node]]"]
Ends = Mapping[Name, Sequence[Holder]]

_PIPE: Final = re.compile(r"pipe:\[[0-9]+\]")


class Pipeline(NamedTuple):
    """The pipes of a snapshot, and which process has which ends, by global pid."""

    pipes: Mapping[Name, Pipe]
    reads: Mapping[int, Ends]
    writes: Mapping[int, Ends]
    where: Mapping[int, Container]


def pipe(whole: Snapshot, target: str, style: Style = PLAIN) -> Iterator[str]:
    """Yield the pipeline of a pid on the host, or both ends of pipe:[N] and its pipeline.

    Raises UsageError if the target is not shown.
    """
    plan = _pipeline(whole)
    if target.isascii() and target.isdigit():
        process = next((p for p in whole.processes if str(p.global_pid) == target), None)
        if process is None:
            raise UsageError(
                f"there is no process {target}", hint="the column HOST of cplayground ls has pids"
            )
        if process.global_pid not in plan.reads and process.global_pid not in plan.writes:
            yield f"{_called(process)} has no pipe."
            return
        yield from _tree(plan, [process], style)
        return
    if not _PIPE.fullmatch(target):
        raise UsageError(f"{target} is not a pid or pipe:[N]")
    found = plan.pipes.get(Name(target.encode("ascii")))
    if found is None:
        raise UsageError(
            f"no process holds {target}", hint="cplayground ls --kind pipe shows the pipes"
        )
    yield style.paint(target, BOLD)
    for text, ends in (("write end", found.writers), ("read end", found.readers)):
        names = holder_names(ends, plan.where) or [NONE_SHOWN]
        yield from wrapped(names, f"  {text}: ", style)
    yield ""
    yield from _tree(plan, [one.process for one in found.writers or found.readers], style)


def _pipeline(whole: Snapshot) -> Pipeline:
    pipes = {one.path: one for one in whole.pipes()}
    reads: dict[int, dict[Name, list[Holder]]] = {}
    writes: dict[int, dict[Name, list[Holder]]] = {}
    for path, one in pipes.items():
        for side, holders in ((reads, one.readers), (writes, one.writers)):
            for holder in holders:
                own = side.setdefault(holder.process.global_pid, {})
                own.setdefault(path, []).append(holder)
    return Pipeline(pipes, reads, writes, places(whole))


def _called(process: Process) -> str:
    return f"{process_name(process)} (host {process.global_pid})"


def _sources(plan: Pipeline, processes: Iterable[Process]) -> tuple[list[Pipe], list[Process]]:
    """Return the pipes without a shown writer, and the processes, from which data comes to these.

    The processes that read no other's pipe are first; others are there because data may go in a
    circle.  A process that holds both ends of a pipe, as each of GNU make's jobs does, gets
    nothing from the others that hold them.
    """
    seen = {process.global_pid: process for process in processes}
    todo, dry, later = list(seen.values()), {}, set()
    while todo:
        pid = todo.pop().global_pid
        for path in plan.reads.get(pid, ()):
            if path in plan.writes.get(pid, ()):
                continue
            later.add(pid)
            for writer in plan.pipes[path].writers:
                if writer.process.global_pid not in seen:
                    seen[writer.process.global_pid] = writer.process
                    todo.append(writer.process)
            if not plan.pipes[path].writers:
                dry[path] = plan.pipes[path]
    return list(dry.values()), [seen[pid] for pid in sorted(seen, key=lambda p: (p in later, p))]


def _tree(plan: Pipeline, processes: Sequence[Process], style: Style) -> Iterator[str]:
    """Yield the lines of the tree; each pipe and each process is followed once."""
    home = plan.where[processes[0].global_pid].id
    followed: set[object] = set()
    right = style.arrow("→")

    def fds(holders: Iterable[Holder]) -> str:
        return ",".join(str(one.descriptor.fd) for one in holders)

    def again(thing: object) -> str:
        known = thing in followed
        followed.add(thing)
        return " (above)" if known else ""

    def process_node(process: Process, entry: str) -> Node:
        def draw() -> tuple[str, list[Node]]:
            place = plan.where[process.global_pid]
            away = f" in {harmless(place.name)}" if place.id != home else ""
            known = again(process.global_pid)
            ends = {} if known else plan.writes.get(process.global_pid, {})
            below = [pipe_node(plan.pipes[path], fds(own)) for path, own in ends.items()]
            return f"{entry}{style.paint(_called(process), BOLD)}{away}{known}", below

        return draw

    def pipe_node(one: Pipe, exit: str) -> Node:
        def draw() -> tuple[str, list[Node]]:
            label = (
                f"{exit}{right} {one.path.text}" if exit else f"{one.path.text} of no shown writer"
            )
            known = again(one.path)
            if known:
                return label + known, []
            readers = {reader.process.global_pid: reader.process for reader in one.readers}
            below = [
                process_node(process, f"{right}{fds(plan.reads[pid][one.path])} ")
                for pid, process in readers.items()
            ]
            return label + ("" if below else f" {right} {NONE_SHOWN}"), below

        return draw

    dry, sources = _sources(plan, processes)
    for one in dry:
        yield from _drawn(pipe_node(one, ""), style)
    for process in sources:
        if process.global_pid not in followed:
            yield from _drawn(process_node(process, ""), style)


def _drawn(root: Node, style: Style) -> Iterator[str]:
    """Yield the lines of a tree, without recursion: it can be deeper than Python's stack."""
    todo = [("", "", root)]
    while todo:
        beginning, following, node = todo.pop()
        label, below = node()
        yield beginning + label
        for place, one in reversed(list(enumerate(below, 1))):
            last = place == len(below)
            todo.append(
                (
                    following + style.arrow("└─" if last else "├─"),
                    following + ("   " if last else style.arrow("│ ") + " "),
                    one,
                )
            )
