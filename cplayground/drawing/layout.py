"""Measure the three columns, and give each table, box and curve its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from cplayground.drawing.order import Edge, Order, ordered, placed
from cplayground.drawing.sheet import Box, Row, Sheet, Stack, Table, ranges, several
from cplayground.drawing.text import Font, clean, width, wrapped
from cplayground.naming import process_name

MARGIN = 32.0
TOP = 96.0  # below the headings of the columns
COMMAND, PID, ABOUT = Font("mono", 15, bold=True), Font("sans", 13, bold=True), Font("sans", 12)
FD, NOTE, BOLD_NOTE = Font("mono", 14, bold=True), Font("sans", 12), Font("sans", 12, bold=True)
MODE, DETAIL = Font("mono", 14.5, bold=True), Font("sans", 12)
NAME = Font("mono", 13)

HEAD, TALL_HEAD = 32.0, 48.0
ROW, FOLDED_ROW, FOLDED_LINE = 28.0, 46.0, 17.0
FD_CELL = 44.0  # at least
TABLE_LEAST, TABLE_MOST = 200.0, 310.0
TABLE_GAP, GROUP_HEAD, GROUP_PAD, GROUP_GAP = 26.0, 30.0, 14.0, 28.0
BOX_LEAST, BOX_PAD, BOX_GAP = 176.0, 12.0, 10.0
LOW_BOX, TALL_BOX = 32.0, 50.0
STACK_LEAST, STACK_MOST, STACK_TALL, STACK_GAP = 180.0, 300.0, 48.0, 22.0
GUTTER, WIDE_GUTTER, LINK = 150.0, 260.0, 64.0
TIP = 9.0  # length of an arrow's head
_MOST_BADGES = 3
_TURNS = 2  # in which the columns are placed; more change little
ENDS, ENDS_PAD = 7.0, 8.0  # between the heads at one box, and above the first


class Part(NamedTuple):
    """A part of a row's note that has its own look."""

    text: str
    font: Font
    looks: str


class Place(NamedTuple):
    """Where something begins in its column, and how tall it is."""

    top: float
    height: float


def row_notes(row: Row) -> list[Part]:
    """Return what is said of a descriptor in its row."""
    parts = [Part(note, NOTE, "soft") for note in row.notes]
    if row.missing:
        mark = "" if row.surely else "?"
        parts.append(Part(f"missing close(){mark}", BOLD_NOTE, "flaw-text"))
    if row.waits:
        parts.append(Part("waits for the end", BOLD_NOTE, "flaw-text"))
    return parts


def badges(row: Row) -> tuple[int, ...]:
    """Return the numbers of findings that a row is marked with."""
    return tuple(dict.fromkeys((*row.missing, *row.waits)))[:_MOST_BADGES]


def row_height(row: Row) -> float:
    """Return the height of a row."""
    if row.box is not None:
        return ROW
    return FOLDED_ROW + FOLDED_LINE * (len(folded_kinds(row)) - 1)


def folded_kinds(row: Row) -> tuple[str, ...]:
    """Return the lines that tell what is folded in a row."""
    return wrapped(row.notes[1], NOTE, TABLE_MOST - 24, listed=True)


def head_height(table: Table) -> float:
    """Return the height of a table's head."""
    return TALL_HEAD if table.about else HEAD


def table_height(table: Table) -> float:
    """Return the height of a table."""
    return head_height(table) + (sum(map(row_height, table.rows)) if table.rows else ROW)


def numbers(row: Row) -> str:
    """Return a row's descriptors in short."""
    return ranges(row.fds, 3)


def row_width(row: Row) -> float:
    """Return the width that a row needs."""
    cell = max(FD_CELL, width(numbers(row), FD) + 24)
    if row.box is None:
        first = width(numbers(row), FD) + width(row.notes[0], NOTE) + 14
        return 24 + max(first, *(width(text, NOTE) for text in folded_kinds(row)))
    said = sum(width(part.text, part.font) + 8 for part in row_notes(row))
    return cell + said + 24 * len(badges(row)) + 20


def tables_width(tables: Sequence[Table]) -> float:
    """Return the width of all tables."""
    found = [TABLE_LEAST]
    for table in tables:
        found.append(width(clean(process_name(table.process)), COMMAND) + 24)
        found.append(width(table.about, ABOUT) + 24)
        found.extend(map(row_width, table.rows))
    return min(TABLE_MOST, max(found))


def details(box: Box) -> str:
    """Return the second line of an open file."""
    parts = [f"position {box.position}"] if box.position else []
    return " · ".join((*parts, *box.flags))


def box_mode(box: Box) -> str:
    """Return the first words of an open file."""
    return box.mode if box.files == 1 else several(box.files, "open file")


def mode_font(box: Box) -> Font:
    """Return the font of an open file's first words."""
    return MODE if box.files == 1 else BOLD_NOTE


def holders(box: Box) -> str:
    """Return how many descriptors stand for an open file."""
    if box.files > 1:
        return f"{box.holders} holders each"
    return several(box.holders, "holder")


def boxes_width(boxes: Sequence[Box]) -> float:
    """Return the width of all open files."""
    found = [BOX_LEAST]
    for box in boxes:
        first = width(box_mode(box), mode_font(box)) + width(holders(box), DETAIL) + 28
        first += width(box.end, DETAIL) + 10 if box.end else 0
        found.append(2 * BOX_PAD + max(first, width(details(box), DETAIL)))
    return max(found)


def box_height(box: Box, ends: int) -> float:
    """Return the height of an open file at which so many curves end."""
    least = TALL_BOX if details(box) else LOW_BOX
    return max(least, min(2 * ENDS_PAD + (ends - 1) * ENDS, 140.0))


def stacks_width(stacks: Sequence[Stack]) -> float:
    """Return the width of all vnodes."""
    found = [STACK_LEAST]
    for stack in stacks:
        found.append(width(stack.name, NAME) + 32)
        found.append(width(stack.about, DETAIL) + 32)
    return min(STACK_MOST, max(found))


class Run(NamedTuple):
    """A curve: of one row, or of rows in a row that stand for the same open file."""

    edge: Edge  # with the first of the rows
    rows: tuple[int, ...]
    height: float  # of its begin, from the top of the table


class Layout(NamedTuple):
    """Places of everything, in pixels from the top left corner."""

    tables: tuple[Place, ...]
    boxes: tuple[Place, ...]
    stacks: tuple[Place, ...]
    frames: tuple[Place, ...]  # of the groups; none if they are not framed
    runs: tuple[Run, ...]
    tips: Mapping[Edge, float]  # the heights at which curves end
    table_x: float
    table_width: float
    box_x: float
    box_width: float
    stack_x: float
    stack_width: float
    bottom: float


class _Stacked(NamedTuple):
    """A stack with the boxes in it, from its own top."""

    height: float
    boxes: Mapping[int, Place]  # by their places in Stack.boxes


def row_centres(table: Table) -> list[float]:
    """Return the heights of the rows' centres, from the top of the table."""
    centres = []
    at = head_height(table)
    for row in table.rows:
        tall = row_height(row)
        centres.append(at + tall / 2)
        at += tall
    return centres


def _runs(sheet: Sheet) -> tuple[Run, ...]:
    inner = {box: at for stack in sheet.stacks for at, box in enumerate(stack.boxes)}
    runs = []
    for number, table in enumerate(sheet.tables):
        centres = row_centres(table)
        rows = [(row.box, bool(row.missing), at) for at, row in enumerate(table.rows)]
        for (box, _), some in groupby(rows, key=itemgetter(0, 1)):
            if box is not None:
                found = tuple(at for _, _, at in some)
                edge = Edge(number, found[0], sheet.boxes[box].stack, inner[box])
                height = sum(centres[at] for at in found) / len(found)
                runs.append(Run(edge, found, height))
    return tuple(runs)


def _stacked(sheet: Sheet, order: Order, runs: Sequence[Run]) -> list[_Stacked]:
    ends = Counter((run.edge.stack, run.edge.box) for run in runs)
    found = []
    for at, stack in enumerate(sheet.stacks):
        boxes: dict[int, Place] = {}
        below = 0.0
        for box in order.boxes[at]:
            tall = box_height(sheet.boxes[stack.boxes[box]], ends[at, box])
            boxes[box] = Place(below, tall)
            below += tall + BOX_GAP
        inside = below - BOX_GAP
        whole = max(inside, STACK_TALL)
        shift = (whole - inside) / 2
        centred = {box: Place(place.top + shift, place.height) for box, place in boxes.items()}
        found.append(_Stacked(whole, centred))
    return found


def _columns(
    order: Order,
    runs: Sequence[Run],
    heights: Sequence[float],
    gaps: Sequence[float],
    stacks: Sequence[_Stacked],
) -> tuple[dict[int, float], dict[int, float]]:
    """Return the tops of tables and stacks: each side goes to where the other one is."""
    of_table: dict[int, list[Run]] = {}
    of_stack: dict[int, list[Run]] = {}
    for run in runs:
        of_table.setdefault(run.edge.table, []).append(run)
        of_stack.setdefault(run.edge.stack, []).append(run)
    tall = [heights[table] for table in order.tables]
    tall_stacks = [stacks[stack].height for stack in order.stacks]

    def centre(edge: Edge) -> float:
        place = stacks[edge.stack].boxes[edge.box]
        return place.top + place.height / 2

    def beside(tables: Mapping[int, float]) -> dict[int, float]:
        wanted = [
            _mean([tables[run.edge.table] + run.height - centre(run.edge) for run in some])
            for some in (of_stack.get(stack, []) for stack in order.stacks)
        ]
        return dict(zip(order.stacks, placed(wanted, tall_stacks, [STACK_GAP] * len(wanted))))

    # Tables stand close together first.
    tops = dict(zip(order.tables, placed([0.0] * len(tall), tall, gaps)))
    for _ in range(_TURNS):
        facing = beside(tops)
        wanted = []
        for table in order.tables:
            some = of_table.get(table, [])
            aims = [facing[run.edge.stack] + centre(run.edge) - run.height for run in some]
            wanted.append(_mean(aims) if aims else tops[table])
        tops = dict(zip(order.tables, placed(wanted, tall, gaps)))
    return tops, beside(tops)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def laid_out(sheet: Sheet) -> Layout:
    """Return the places of everything."""
    runs = _runs(sheet)
    order = ordered(
        [run.edge for run in runs],
        [table.group for table in sheet.tables],
        [len(stack.boxes) for stack in sheet.stacks],
    )
    framed = len(sheet.groups) > 1 or bool(sheet.groups and sheet.groups[0].name)
    heights = [table_height(table) for table in sheet.tables]
    gaps = []
    for before, table in zip((None, *order.tables), order.tables):
        new = before is None or sheet.tables[before].group != sheet.tables[table].group
        gaps.append(GROUP_HEAD + GROUP_PAD + GROUP_GAP if new and framed else TABLE_GAP)
    inside = _stacked(sheet, order, runs)
    table_tops, stack_tops = _columns(order, runs, heights, gaps, inside)
    highest = min([*table_tops.values(), *stack_tops.values()], default=0.0)
    top = TOP + (GROUP_HEAD if framed else 0) - highest
    tables = tuple(Place(top + table_tops[at], tall) for at, tall in enumerate(heights))
    stacks = tuple(Place(top + stack_tops[at], one.height) for at, one in enumerate(inside))
    boxes = [Place(0.0, 0.0)] * len(sheet.boxes)
    for stack, outer, one in zip(sheet.stacks, stacks, inside):
        for at, place in one.boxes.items():
            boxes[stack.boxes[at]] = Place(outer.top + place.top, place.height)
    frames = _frames(sheet, tables) if framed else ()
    wide = _tables_width(sheet, framed)
    table_x = MARGIN + (GROUP_PAD if framed else 0)
    box_x = table_x + wide + min(WIDE_GUTTER, GUTTER + 2.0 * len(runs))
    stack_x = box_x + boxes_width(sheet.boxes) + LINK
    return Layout(
        tables=tables,
        boxes=tuple(boxes),
        stacks=stacks,
        frames=frames,
        runs=runs,
        tips=_tips(sheet, runs, tables, boxes),
        table_x=table_x,
        table_width=wide,
        box_x=box_x,
        box_width=boxes_width(sheet.boxes),
        stack_x=stack_x,
        stack_width=stacks_width(sheet.stacks),
        bottom=max([TOP, *(one.top + one.height for one in (*tables, *stacks, *frames))]),
    )


def _tips(
    sheet: Sheet, runs: Sequence[Run], tables: Sequence[Place], boxes: Sequence[Place]
) -> dict[Edge, float]:
    """Return where curves end: at each box in the order of the heights that they come from."""
    arriving: dict[int, list[Run]] = {}
    for run in runs:
        arriving.setdefault(sheet.stacks[run.edge.stack].boxes[run.edge.box], []).append(run)
    tips = {}
    for box, some in arriving.items():
        some.sort(key=lambda run: tables[run.edge.table].top + run.height)
        place = boxes[box]
        step = min(ENDS, (place.height - 2 * ENDS_PAD) / max(1, len(some) - 1))
        first = place.top + place.height / 2 - step * (len(some) - 1) / 2
        for at, run in enumerate(some):
            tips[run.edge] = first + at * step
    return tips


def _frames(sheet: Sheet, tables: Sequence[Place]) -> tuple[Place, ...]:
    frames = []
    for group in range(len(sheet.groups)):
        inside = [p for table, p in zip(sheet.tables, tables) if table.group == group]
        upper = min(place.top for place in inside) - GROUP_HEAD
        lower = max(place.top + place.height for place in inside) + GROUP_PAD
        frames.append(Place(upper, lower - upper))
    return tuple(frames)


def _tables_width(sheet: Sheet, framed: bool) -> float:
    wide = tables_width(sheet.tables)
    if not framed:
        return wide
    widest = max(width(f"{group.name} {group.about}", PID) for group in sheet.groups)
    return max(wide, min(widest + 12, TABLE_MOST))
