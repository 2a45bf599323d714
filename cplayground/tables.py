"""Write what a snapshot shows as lines for a person: tables, trees, findings.

No name reaches a line but in the form of :func:`cplayground.names.shown`.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

from cplayground.kinds import kind
from cplayground.names import harmless
from cplayground.naming import by_container, flag_names, holder_names, mode, places, title
from cplayground.snapshot import (
    Container,
    Descriptor,
    Holder,
    Name,
    Pipe,
    Process,
    Shared,
    Snapshot,
)

if TYPE_CHECKING:
    from cplayground.findings import Finding


class Style(NamedTuple):
    """How lines look."""

    color: bool = False
    width: int = 0  # columns of the terminal; 0: lines are not cut
    unicode: bool = True

    def paint(self, text: str, code: str) -> str:
        """Return a text in a colour, or as it is."""
        return f"\033[{code}m{text}\033[0m" if self.color and code and text else text

    def arrow(self, sign: str) -> str:
        """Return an arrow or a branch in the characters that the terminal has."""
        return sign if self.unicode else _ASCII[sign]


PLAIN: Final = Style()
BOLD, DIM, RED, GREEN, YELLOW, CYAN = "1", "2", "31", "32", "33", "36"
_ASCII: Final = {"→": "->", "←": "<-", "…": "...", "├─": "|-", "└─": "`-", "│ ": "| "}
_LEVELS: Final = {"error": RED, "warning": YELLOW, "note": CYAN}
_PEERS = 3  # of a pipe's end in a table
NONE_SHOWN = "none shown"


# Lines and columns


def columns(text: str) -> int:
    """Return the columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.category(one) in ("Mn", "Me")
        else 1 + (unicodedata.east_asian_width(one) in "WF")
        for one in text
    )


def fit(text: str, width: int, dots: str = "…") -> str:
    """Return a text with its middle left out, if it takes more columns."""
    if columns(text) <= width:
        return text
    room = max(width - len(dots), 0)
    head, tail = _head(text, room - room // 2), _head(text[::-1], room // 2)[::-1]
    return head + dots[: max(width, 0)] + tail


def _head(text: str, width: int) -> str:
    taken, at = 0, 0
    while at < len(text) and (taken := taken + columns(text[at])) <= width:
        at += 1
    return text[:at]


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - columns(text))
    return space + text if right else text + space


def _lines(
    cells: Iterable[Sequence[str]], widths: Sequence[int], right: Sequence[bool]
) -> Iterator[str]:
    for row in cells:
        padded = map(_pad, row, widths, right)
        yield "  ".join(padded).rstrip()


def _heading(text: str, style: Style) -> str:
    return style.paint(fit(text, style.width, style.arrow("…")) if style.width else text, BOLD)


def table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool], style: Style
) -> Iterator[str]:
    """Yield a small table; its last column is cut to the terminal."""
    widths = [max(map(columns, column)) for column in zip(titles, *rows)]
    first = True
    for line in _lines([titles, *rows], widths, right):
        if style.width:
            line = fit(line, style.width, style.arrow("…"))
        yield style.paint(line, BOLD if first else "")
        first = False


def wrapped(items: Iterable[str], indent: str, style: Style) -> Iterator[str]:
    """Yield items in lines that the terminal holds."""
    line = indent
    for item in items:
        if line != indent and style.width and columns(line) + 2 + columns(item) > style.width:
            yield line
            line = indent
        line += item if line == indent else f"  {item}"
    if line != indent:
        yield line


# ls


class _Column(NamedTuple):
    title: str
    cell: Callable[..., str]  # of a process or of a descriptor
    right: bool = False
    width: int = 0
    code: str = ""


def ls(
    whole: Snapshot, part: Snapshot, style: Style = PLAIN, *, long: bool = False
) -> Iterator[str]:
    """Yield the table of the descriptors of ``part``.

    ``whole`` is all that was read: it has the other holders of open files and of pipes.
    """
    numbers = {one.file.number: f"#{n}" for n, one in enumerate(whole.shared(), 1)}
    pipes = {pipe.path: pipe for pipe in whole.pipes()}
    where = places(whole)
    # The widths are looked for first, so that the lines of a large table are never in memory.
    own = [_measured(one, part.processes) for one in _process_columns(long, part.extended)]
    each = [_measured(one, _descriptors(part)) for one in _descriptor_columns(numbers, long)]
    each = [one for one in each if one.width]
    head = "  ".join(_pad(one.title, one.width, one.right) for one in (*own, *each))
    room = style.width - columns(head) - 2 if style.width and not long else 0
    for count, (container, processes) in enumerate(by_container(part.processes, where)):
        if count:
            yield ""
        yield _heading(title(container), style)
        yield style.paint(f"{head}  FILE", BOLD)
        for process in processes:
            cells = [_pad(one.cell(process), one.width, one.right) for one in own]
            if not process.descriptors:
                cells[-1] = style.paint(cells[-1], BOLD)
                yield "  ".join([*cells, _pad("-", each[0].width, True)])
            for place, descriptor in enumerate(process.descriptors):
                row = [*cells]
                if not place:
                    row[-1] = style.paint(row[-1], BOLD)
                row += [
                    style.paint(_pad(one.cell(descriptor), one.width, one.right), one.code)
                    for one in each
                ]
                row.append(_file(process, descriptor, pipes, where, room, style))
                yield "  ".join(row)


def _process_columns(long: bool, extended: bool) -> list[_Column]:
    """Return the columns of a process; the last one is its name."""
    more = [
        _Column("PPID", lambda one: str(one.ppid), True),
        _Column("PGID", lambda one: str(one.pgid), True),
        *([_Column("STATE", lambda one: one.state)] if extended else []),
    ]
    return [
        _Column("PID", lambda one: str(one.pid), True),
        _Column("HOST", lambda one: str(one.global_pid), True),
        *(more if long else []),
        _Column("COMMAND", lambda one: one.command.text),
    ]


def _descriptor_columns(numbers: Mapping[int, str], long: bool) -> list[_Column]:
    more = [
        _Column("CLOEXEC", lambda one: "yes" if one.close_on_exec else ""),
        _Column("POSITION", lambda one: str(one.position), True),
        _Column("FLAGS", lambda one: flag_names(one.flags)),
    ]
    return [
        _Column("FD", lambda one: str(one.fd), True),
        _Column("MODE", lambda one: mode(one.flags)),
        *(more if long else []),
        _Column("", lambda one: numbers.get(one.file.number, ""), True, code=YELLOW),
    ]


def _measured(column: _Column, things: Iterable[object]) -> _Column:
    longest = max((columns(column.cell(one)) for one in things), default=0)
    return column._replace(width=max(longest, columns(column.title)))


def _descriptors(snapshot: Snapshot) -> Iterator[Descriptor]:
    return (one for process in snapshot.processes for one in process.descriptors)


def _file(
    process: Process,
    descriptor: Descriptor,
    pipes: Mapping[Name, Pipe],
    where: Mapping[int, Container],
    room: int,
    style: Style,
) -> str:
    """Return the path, and the other ends of a pipe."""
    dots = style.arrow("…")
    path = descriptor.path.text
    ends = pipes.get(descriptor.path)
    if ends is None:
        return fit(path, max(room, 8), dots) if room else path
    own = mode(descriptor.flags)
    peers = [
        f"{style.arrow(sign)} {_peers(process, descriptor, others, where)}"
        for sign, access, others in (("←", "r", ends.writers), ("→", "w", ends.readers))
        if own in (access, "rw")
    ]
    tail = " ".join(peers)
    if room:
        tail = fit(tail, max(room - columns(path) - 1, 8), dots)
    return f"{path} {style.paint(tail, CYAN)}"


def _peers(
    process: Process,
    descriptor: Descriptor,
    others: Sequence[Holder],
    where: Mapping[int, Container],
) -> str:
    # Many processes can hold an end: look at a few, so that a table stays linear.
    few = [
        one
        for one in others[: _PEERS + 1]
        if (one.process.global_pid, one.descriptor.fd) != (process.global_pid, descriptor.fd)
    ]
    if not few:
        return NONE_SHOWN
    names = holder_names(few[:_PEERS], where, where[process.global_pid].id)
    more = len(others) - len(few[:_PEERS]) - (len(few) < len(others[: _PEERS + 1]))
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


# ps


def alike(process: Process) -> tuple[object, ...]:
    """Return what the processes of a group have in common: the command, and what is open as what.

    Only the kinds of open files count: each of many compilers has a source of its own.
    """
    opened = tuple((one.fd, mode(one.flags), kind(one.path)) for one in process.descriptors)
    return process.command, process.state == "Z", opened


def ps(part: Snapshot, style: Style = PLAIN) -> Iterator[str]:
    """Yield the containers with their groups of alike processes."""
    for count, (container, processes) in enumerate(by_container(part.processes, places(part))):
        if count:
            yield ""
        files = {one.file.number for process in processes for one in process.descriptors}
        descriptors = sum(len(process.descriptors) for process in processes)
        counts = ", ".join(
            (
                _count(len(processes), "process", "processes"),
                _count(descriptors, "descriptor"),
                _count(len(files), "open file"),
            )
        )
        yield _heading(f"{title(container)}: {counts}", style)
        groups: dict[tuple[object, ...], list[Process]] = {}
        for process in processes:
            groups.setdefault(alike(process), []).append(process)
        rows = [_ps_row(group) for group in groups.values()]
        yield from table(
            ("COUNT", "PID", "COMMAND", "FDS", "OPEN"),
            rows,
            (True, True, False, True, False),
            style,
        )


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _ps_row(group: Sequence[Process]) -> tuple[str, ...]:
    first = group[0]
    kinds = Counter(kind(one.path) for one in first.descriptors)
    opened = ", ".join(f"{number} {name}" for name, number in kinds.most_common())
    return (
        str(len(group)),
        _ranges([process.pid for process in group]),
        first.command.text,
        str(len(first.descriptors)),
        "ended, not waited for" if first.state == "Z" else opened,
    )


def _ranges(numbers: Iterable[int]) -> str:
    """Return numbers as ranges, at most three."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] + 1 == number:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in ranges]
    return ",".join(texts if len(texts) <= 3 else [*texts[:2], "..", texts[-1]])


# shared


def shared(
    whole: Snapshot, part: Snapshot, style: Style = PLAIN, *, across: bool = False
) -> Iterator[str]:
    """Yield the open files with several descriptors, of which ``part`` holds at least one."""
    where = places(whole)
    chosen = {one.number for one in part.files}
    first = True
    for number, one in enumerate(whole.shared(), 1):
        homes = by_container((holder.process for holder in one.holders), where)
        if one.file.number not in chosen or (across and len(homes) < 2):
            continue
        if not first:
            yield ""
        first = False
        yield from _shared_file(number, one, len(homes), where, style)


def _shared_file(
    number: int, one: Shared, homes: int, where: Mapping[int, Container], style: Style
) -> Iterator[str]:
    processes = len({holder.process.global_pid for holder in one.holders})
    counts = [_count(len(one.holders), "descriptor"), _count(processes, "process", "processes")]
    if homes > 1:
        counts.append(_count(homes, "container"))
    facts = ", ".join([mode(one.file.flags), f"position {one.file.position}", *counts])
    yield (
        f"{style.paint(f'#{number}', YELLOW)}  {style.paint(one.file.path.text, BOLD)}  ({facts})"
    )
    home = lambda holder: where[holder.process.global_pid].id  # noqa: E731
    for _id, group in groupby(sorted(one.holders, key=home), key=home):
        own = list(group)
        place = where[own[0].process.global_pid]
        indent = f"    {harmless(place.name)}: " if homes > 1 else "    "
        yield from wrapped(holder_names(own, where), indent, style)


# check and doctor


def findings(found: Iterable[Finding], style: Style = PLAIN) -> Iterator[str]:
    """Yield findings with their evidence."""
    for count, one in enumerate(found):
        if count:
            yield ""
        yield f"{style.paint(f'{one.level}:', _LEVELS[one.level])} {harmless(one.sentence)}"
        for fact in one.evidence:
            yield f"    {harmless(fact)}"
