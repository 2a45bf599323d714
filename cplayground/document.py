"""Write a snapshot as JSON, in the schema cplayground/1 (cplayground-1.schema.json).

The schema is additive: a reader must ignore keys and types of lines that it does not know.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, Final

from cplayground.kinds import kind
from cplayground.names import harmless
from cplayground.naming import mode, places
from cplayground.snapshot import Container, Descriptor, Process, Shared, Snapshot

SCHEMA: Final = "cplayground/1"
# Beyond it, a JavaScript number and jq's are not exact.
_EXACT: Final = 1 << 53
_AT_ONCE: Final = 1000  # descriptors in one piece of text
# The default separators have spaces; ensure_ascii is the default.
dumped: Final = json.JSONEncoder(separators=(",", ":")).encode


def whole(source: str, all_read: Snapshot, part: Snapshot) -> Iterator[str]:
    """Yield the text of one JSON object, in pieces; each record and container has one line.

    ``source`` is "module", "walk" or "file"; ``part`` is what the filters leave of ``all_read``.
    """
    head = dumped(_head(source, part))
    yield head[:-1]
    numbers = _numbers(all_read)
    for key, lines in (
        ("containers", _containers(all_read, part, numbers)),
        ("shared", _shared(all_read, part)),
    ):
        yield f',\n"{key}":['
        yield from _separated(map(dumped, lines))
        yield "]"
    yield ',\n"processes":['
    where = places(all_read)
    for count, process in enumerate(part.processes):
        yield ",\n" if count else "\n"
        yield from _process(process, numbers[where[process.global_pid].id])
    yield "]}\n"


def lines(source: str, all_read: Snapshot, part: Snapshot) -> Iterator[str]:
    """Yield the same objects, one a line, in pieces of text; "type" tells which it is."""
    yield _line("snapshot", _head(source, part))
    numbers = _numbers(all_read)
    for one in _containers(all_read, part, numbers):
        yield _line("container", one)
    for one in _shared(all_read, part):
        yield _line("shared", one)
    where = places(all_read)
    for process in part.processes:
        yield '{"type":"process",'
        pieces = _process(process, numbers[where[process.global_pid].id])
        yield next(pieces)[1:]
        yield from pieces
        yield "\n"


def descriptor(one: Descriptor) -> dict[str, Any]:
    """Return the object of a descriptor."""
    return {
        "fd": one.fd,
        "close_on_exec": one.close_on_exec,
        "file": one.file.number,
        "position": position(one.position),
        "flags": one.flags,
        "mode": mode(one.flags),
        "kind": kind(one.path),
        "path": one.path.text,
    }


def position(value: int) -> int | str:
    """Return a position as a number, or as text where a number would not be exact."""
    return value if -_EXACT <= value <= _EXACT else str(value)


def process_head(process: Process, container: int) -> dict[str, Any]:
    """Return the object of a process without its descriptors."""
    head: dict[str, Any] = {
        "container": container,
        "namespace_id": process.namespace,
        "global_pid": process.global_pid,
        "pid": process.pid,
        "ppid": process.ppid,
        "pgid": process.pgid,
    }
    if process.state is not None:
        head.update(state=process.state, blocked=process.blocked, pending=process.pending)
    head["command"] = process.command.text
    return head


def _line(type: str, value: dict[str, Any]) -> str:
    return dumped({"type": type, **value}) + "\n"


def _head(source: str, part: Snapshot) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "source": source,
        "fields": "extended" if part.extended else "basic",
    }


def _known(snapshot: Snapshot) -> list[Container]:
    """Return the containers in the order of their first processes."""
    return list({one.id: one for one in places(snapshot).values()}.values())


def _numbers(snapshot: Snapshot) -> dict[str, int]:
    return {one.id: number for number, one in enumerate(_known(snapshot), 1)}


def _containers(
    all_read: Snapshot, part: Snapshot, numbers: dict[str, int]
) -> Iterator[dict[str, Any]]:
    where = places(all_read)
    shown = {where[process.global_pid].id for process in part.processes}
    for one in _known(all_read):
        if one.id in shown:
            yield {
                "container": numbers[one.id],
                "name": harmless(one.name),
                "id": harmless(one.id),
                "runtime": harmless(one.runtime),
                "pod": harmless(one.pod),
            }


def _shared(all_read: Snapshot, part: Snapshot) -> Iterator[dict[str, Any]]:
    where = places(all_read)
    chosen = {one.number for one in part.files}
    for number, one in enumerate(all_read.shared(), 1):
        if one.file.number in chosen:
            yield _shared_file(number, one, where)


def _shared_file(number: int, one: Shared, where: dict[int, Container]) -> dict[str, Any]:
    processes = Counter(holder.process.global_pid for holder in one.holders)
    return {
        "file": one.file.number,
        "shown_as": f"#{number}",
        "mode": mode(one.file.flags),
        "kind": kind(one.file.path),
        "path": one.file.path.text,
        "descriptors": len(one.holders),
        "processes": len(processes),
        "containers": len({where[pid].id for pid in processes}),
    }


def _process(process: Process, container: int) -> Iterator[str]:
    """Yield the object of a process in pieces, because it may have a million descriptors."""
    yield dumped(process_head(process, container))[:-1] + ',"descriptors":['
    todo = iter(process.descriptors)
    between = ""
    while piece := list(islice(todo, _AT_ONCE)):
        yield between + dumped(list(map(descriptor, piece)))[1:-1]
        between = ","
    yield "]}"


def _separated(texts: Iterable[str]) -> Iterator[str]:
    todo = iter(texts)
    for first in islice(todo, 1):
        yield f"\n{first}"
    yield from chain.from_iterable((",\n", text) for text in todo)
