"""Read again and again, and tell what changed: at little cost, which is told, too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Final, NamedTuple

from cplayground.differences import Change, diff
from cplayground.document import SCHEMA, descriptor, dumped
from cplayground.errors import UsageError
from cplayground.names import harmless
from cplayground.naming import holder_name, mode, places
from cplayground.selecting import Filter, select
from cplayground.snapshot import Container, Holder, Snapshot
from cplayground.tables import CYAN, DIM, GREEN, RED, YELLOW, Style, fit

# At most this part of the time goes into reading, comparing and telling.
MOST: Final = 0.05
_BATCH = 32  # descriptors that the module copies at once (docs/reference/procfile.md)
_CODES: Final = {"opened": GREEN, "closed": RED, "replaced": YELLOW, "moved": CYAN}


class Clock(NamedTuple):
    """The time; tests have their own."""

    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


CLOCK: Final = Clock()


class Reading(NamedTuple):
    """One reading, and what changed in a part of it since the last one."""

    wall: float  # seconds since 1970
    took: float  # seconds of reading and parsing
    elapsed: float  # seconds since the last reading; 0 for the first one
    whole: Snapshot
    changes: tuple[Change, ...]
    where: Mapping[int, Container]  # by global pid, also of the last reading's processes


def readings(
    read: Callable[[], Snapshot], chosen: Filter, seconds: float, clock: Clock = CLOCK
) -> Iterator[Reading]:
    """Yield a reading every ``seconds``, or later if they would take too much of the time.

    Changes are those of the part that is chosen.  Raises UsageError if a container or process is
    not there in the first reading; later it may end.
    """
    last: Snapshot | None = None
    last_at = 0.0
    known: dict[int, Container] = {}
    while True:
        start = clock.now()
        whole = read()
        end = clock.now()
        part = select(whole, chosen) if last is None else _if_there(whole, chosen)
        changes = () if last is None else diff(last, part)
        elapsed = 0.0 if last is None else start - last_at
        now = places(whole)
        yield Reading(clock.wall(), end - start, elapsed, whole, changes, {**known, **now})
        last, last_at, known = part, start, now
        spent = clock.now() - start
        clock.sleep(max(seconds - spent, spent * (1 / MOST - 1)))


def _if_there(whole: Snapshot, chosen: Filter) -> Snapshot:
    """Choose a part, which is empty once the container or the process has ended."""
    try:
        return select(whole, chosen)
    except UsageError:
        return Snapshot((), ())


def with_names(
    read: Callable[[], Snapshot], named: Callable[[Snapshot], Snapshot]
) -> Callable[[], Snapshot]:
    """Return a ``read`` that asks for the containers' names only if processes came or went."""
    last: list[Snapshot] = []

    def reading() -> Snapshot:
        snapshot = read()
        if last and _processes(last[0]) == _processes(snapshot):
            snapshot = replace(snapshot, containers=last[0].containers)
        else:
            snapshot = named(snapshot)
        last[:] = [snapshot]
        return snapshot

    return reading


def _processes(snapshot: Snapshot) -> list[tuple[str, int, int]]:
    return [(one.namespace, one.global_pid, one.pid) for one in snapshot.processes]


def cost(one: Reading, seconds: float, *, walk: bool) -> str:
    """Return sentences about the cost of a reading, for the observed and for the machine."""
    processes = one.whole.processes
    descriptors = sum(len(process.descriptors) for process in processes)
    batches = sum(1 + max(len(process.descriptors) - 1, 0) // _BATCH for process in processes)
    period = max(seconds, one.took / MOST)
    facts = [
        f"A reading of {descriptors} descriptors of {len(processes)} processes "
        f"takes {_seconds(one.took)}, every {period:.3g} s."
    ]
    if walk:
        facts.append("It opens the directory of each process in /proc, and compares by kcmp(2).")
    elif batches:
        facts.append(
            f"A process waits only if it opens or closes while its descriptors are copied, "
            f"up to {_BATCH} at once: less than {_seconds(one.took / batches)} on average."
        )
    return " ".join(facts)


def text(one: Reading, style: Style) -> Iterator[str]:
    """Yield a line for each change; a process that began or ended has one for all descriptors."""
    clock = time.strftime("%H:%M:%S", time.localtime(one.wall))
    several = len({place.id for place in one.where.values()}) > 1
    alive = {
        (process.namespace, process.global_pid, process.pid) for process in one.whole.processes
    }
    for (what, key), group in groupby(one.changes, key=lambda change: (change.what, _key(change))):
        own = list(group)
        process = _holder(own[0]).process
        if what == "closed" and key not in alive:
            rows = [(_fds(own), "the process has ended")]
        elif what == "opened" and len(own) == len(process.descriptors) > 1:
            files = (f"{_holder(c).descriptor.fd} {_file(_holder(c))}" for c in own)
            rows = [(_fds(own), ", ".join(files))]
        else:
            rows = [(_fds([change]), _told(change, one.elapsed, style)) for change in own]
        place = f" ({harmless(one.where[process.global_pid].name)})" if several else ""
        room = style.width - len(clock) - 12 if style.width else 0
        for fds, told in rows:
            line = f"{holder_name(process, fds)}{place}  {told}"
            if room > 0:
                line = fit(line, room, style.arrow("…"))
            painted = style.paint(f"{what:8}", _CODES.get(what, ""))
            yield f"{style.paint(clock, DIM)}  {painted}  {line}"


def _holder(change: Change) -> Holder:
    """Return the descriptor after a change, or the one before if it was closed."""
    holder = change.after or change.before
    assert holder is not None
    return holder


def _key(change: Change) -> tuple[str, int, int]:
    process = _holder(change).process
    return process.namespace, process.global_pid, process.pid


def _fds(changes: Sequence[Change]) -> str:
    return ",".join(str(_holder(change).descriptor.fd) for change in changes)


def head_json(seconds: float) -> str:
    """Return the first line of JSON."""
    return dumped({"type": "watch", "schema": SCHEMA, "seconds": seconds}) + "\n"


def json_lines(one: Reading) -> Iterator[str]:
    """Yield a line of JSON for the reading, and one for each change."""
    stamp = _stamp(one.wall)
    yield _line(
        type="reading",
        time=stamp,
        elapsed=round(one.elapsed, 6),
        took=round(one.took, 6),
        processes=len(one.whole.processes),
        descriptors=sum(len(process.descriptors) for process in one.whole.processes),
        changes=len(one.changes),
    )
    for change in one.changes:
        process = _holder(change).process
        facts: dict[str, Any] = {
            "type": "change",
            "time": stamp,
            "change": change.what,
            "container": harmless(one.where[process.global_pid].name),
            "global_pid": process.global_pid,
            "pid": process.pid,
            "command": process.command.text,
            "before": None if change.before is None else descriptor(change.before.descriptor),
            "after": None if change.after is None else descriptor(change.after.descriptor),
        }
        if change.what == "moved":
            facts["bytes_per_second"] = round(speed(change, one.elapsed), 1)
        yield _line(**facts)


def speed(change: Change, elapsed: float) -> float:
    """Return the bytes per second by which a position moved; negative for backwards."""
    if change.before is None or change.after is None or elapsed <= 0:
        return 0.0
    return (change.after.descriptor.position - change.before.descriptor.position) / elapsed


def _told(change: Change, elapsed: float, style: Style) -> str:
    before = "" if change.before is None else _file(change.before)
    after = "" if change.after is None else _file(change.after)
    if change.what == "moved" and change.after is not None:
        rate = _bytes(speed(change, elapsed))
        return f"{after}  {rate}/s, now at {change.after.descriptor.position}"
    if change.what == "replaced":
        return f"{before} {style.arrow('→')} {after}"
    return after or before


def _file(holder: Holder) -> str:
    return f"{mode(holder.descriptor.flags)} {holder.descriptor.path.text}"


def _bytes(value: float) -> str:
    size, unit = abs(value), 0
    while size >= 1000 and unit < 5:
        size, unit = size / 1000, unit + 1
    number = f"{size:.0f}" if unit == 0 else f"{size:.1f}"
    return f"{'-' if value < 0 else '+'}{number} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[unit]}"


def _seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.1f} s"
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"


def _stamp(wall: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(wall))
    return f"{whole}.{int(wall * 1000) % 1000:03d}Z"


def _line(**facts: Any) -> str:  # noqa: ANN401
    return dumped(facts) + "\n"
