"""Draw descriptor tables, open files and vnodes in three columns, with curves between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cplayground.drawing import style
from cplayground.drawing.order import Edge, ordered, placed
from cplayground.drawing.sheet import Box, Row, Sheet, Stack, Table, ranges, several
from cplayground.drawing.text import Font, beginning, clean, shortened, width, wrapped
from cplayground.drawing.writing import element, line, number, rectangle, title

if TYPE_CHECKING:
    from cplayground.findings import Finding

_MARGIN = 32.0
_TOP = 96.0  # below the headings of the columns
_HEADING, _CAPTION = Font("sans", 17, bold=True), Font("sans", 12.5)
_COMMAND, _PID, _ABOUT = Font("mono", 15, bold=True), Font("sans", 13, bold=True), Font("sans", 12)
_FD, _NOTE, _BOLD_NOTE = Font("mono", 14, bold=True), Font("sans", 12), Font("sans", 12, bold=True)
_MODE, _DETAIL = Font("mono", 14.5, bold=True), Font("sans", 12)
_NAME = Font("mono", 13)
_SENTENCE, _BADGE = Font("sans", 14), Font("sans", 12, bold=True)

_HEAD, _TALL_HEAD = 32.0, 48.0
_ROW, _FOLDED_ROW = 28.0, 46.0
_FD_CELL = 44.0  # at least
_TABLE_LEAST, _TABLE_MOST = 200.0, 310.0
_TABLE_GAP, _GROUP_HEAD, _GROUP_PAD, _GROUP_GAP = 26.0, 30.0, 14.0, 28.0
_BOX_LEAST, _BOX_PAD, _BOX_GAP = 176.0, 12.0, 10.0
_LOW_BOX, _TALL_BOX = 32.0, 50.0
_STACK_LEAST, _STACK_MOST, _STACK_TALL, _STACK_GAP = 180.0, 300.0, 48.0, 22.0
_GUTTER, _WIDE_GUTTER, _LINK = 150.0, 260.0, 64.0
_TIP = 9.0  # length of an arrow's head
_ENDS, _ENDS_PAD = 7.0, 8.0  # between the heads at one box, and above the first
_MOST_NOTES = 3  # notes that are told below the picture
_MOST_HIGHLIGHTS = 400  # rules for the pointer; a browser is slow with more


class _Head(NamedTuple):
    """A part of a row's note that has its own look."""

    text: str
    font: Font
    looks: str


class Picture(NamedTuple):
    """Markup with its size in pixels and the rules that it needs."""

    markup: str
    width: float
    height: float
    css: str


class _Place(NamedTuple):
    top: float
    height: float


def row_notes(row: Row) -> list[_Head]:
    """Return what is said of a descriptor in its row."""
    parts = [_Head(note, _NOTE, "soft") for note in row.notes]
    if row.missing:
        mark = "" if row.surely else "?"
        parts.append(_Head(f"missing close(){mark}", _BOLD_NOTE, "flaw-text"))
    if row.waits:
        parts.append(_Head("waits for the end", _BOLD_NOTE, "flaw-text"))
    return parts


def _badges(row: Row) -> tuple[int, ...]:
    return tuple(dict.fromkeys((*row.missing, *row.waits)))


def _row_height(row: Row) -> float:
    return _FOLDED_ROW if row.box is None else _ROW


def _head_height(table: Table) -> float:
    return _TALL_HEAD if table.about else _HEAD


def _table_height(table: Table) -> float:
    return _head_height(table) + (sum(map(_row_height, table.rows)) if table.rows else _ROW)


def _numbers(row: Row) -> str:
    return ranges(row.fds, 3)


def _row_width(row: Row) -> float:
    cell = max(_FD_CELL, width(_numbers(row), _FD) + 24)
    if row.box is None:
        first = width(_numbers(row), _FD) + width(row.notes[0], _NOTE) + 14
        return 24 + max(first, width(row.notes[1], _NOTE))
    said = sum(width(part.text, part.font) + 8 for part in row_notes(row))
    return cell + said + 24 * len(_badges(row)) + 20


def _table_width(tables: Sequence[Table]) -> float:
    found = [_TABLE_LEAST]
    for table in tables:
        pid = width(f"PID {table.process.pid}", _PID)
        command = width(clean(table.process.command.text), _COMMAND)
        found.append(min(command, 190) + pid + 40)
        found.append(width(table.about, _ABOUT) + 24)
        found.extend(map(_row_width, table.rows))
    return min(_TABLE_MOST, max(found))


def _details(box: Box) -> str:
    parts = [f"position {box.position}"] if box.position else []
    return " · ".join((*parts, *box.flags))


def _mode(box: Box) -> str:
    return box.mode if box.files == 1 else several(box.files, "open file")


def _mode_font(box: Box) -> Font:
    return _MODE if box.files == 1 else _BOLD_NOTE


def _holders(box: Box) -> str:
    if box.files > 1:
        return f"{box.holders} holders each"
    return several(box.holders, "holder")


def _box_width(boxes: Sequence[Box]) -> float:
    found = [_BOX_LEAST]
    for box in boxes:
        first = width(_mode(box), _mode_font(box)) + width(_holders(box), _DETAIL) + 28
        first += width(box.end, _DETAIL) + 10 if box.end else 0
        found.append(2 * _BOX_PAD + max(first, width(_details(box), _DETAIL)))
    return max(found)


def _box_height(box: Box, ends: int) -> float:
    least = _TALL_BOX if _details(box) else _LOW_BOX
    return max(least, min(2 * _ENDS_PAD + (ends - 1) * _ENDS, 140.0))


def _stack_width(stacks: Sequence[Stack]) -> float:
    found = [_STACK_LEAST]
    for stack in stacks:
        found.append(width(stack.name, _NAME) + 32)
        found.append(width(stack.about, _DETAIL) + 32)
    return min(_STACK_MOST, max(found))


class _Layout(NamedTuple):
    """Places of everything, in pixels from the top left corner."""

    tables: tuple[_Place, ...]
    boxes: tuple[_Place, ...]
    stacks: tuple[_Place, ...]
    frames: tuple[tuple[int, _Place], ...]
    edges: tuple[Edge, ...]
    tips: Mapping[Edge, float]  # the height at which a curve ends
    table_x: float
    table_width: float
    box_x: float
    box_width: float
    stack_x: float
    stack_width: float
    bottom: float


def _row_centres(table: Table) -> list[float]:
    centres = []
    at = _head_height(table)
    for row in table.rows:
        tall = _row_height(row)
        centres.append(at + tall / 2)
        at += tall
    return centres


def _laid_out(sheet: Sheet) -> _Layout:
    inner = {box: at for stack in sheet.stacks for at, box in enumerate(stack.boxes)}
    edges = tuple(
        Edge(number_, at, sheet.boxes[row.box].stack, inner[row.box])
        for number_, table in enumerate(sheet.tables)
        for at, row in enumerate(table.rows)
        if row.box is not None
    )
    order = ordered(
        edges, [table.group for table in sheet.tables], [len(s.boxes) for s in sheet.stacks]
    )
    framed = len(sheet.groups) > 1 or bool(sheet.groups and sheet.groups[0].name)
    of_stack: list[list[Edge]] = [[] for _ in sheet.stacks]
    for edge in edges:
        of_stack[edge.stack].append(edge)
    ends: dict[tuple[int, int], int] = {}
    for edge in edges:
        ends[edge.stack, edge.box] = ends.get((edge.stack, edge.box), 0) + 1

    # Heights and inner places do not depend on where a box is.
    heights = [_table_height(table) for table in sheet.tables]
    centres = [_row_centres(table) for table in sheet.tables]
    box_tops: list[dict[int, _Place]] = []
    stack_heights = []
    for at, stack in enumerate(sheet.stacks):
        tops: dict[int, _Place] = {}
        below = 0.0
        for box in order.boxes[at]:
            tall = _box_height(sheet.boxes[stack.boxes[box]], ends.get((at, box), 0))
            tops[box] = _Place(below, tall)
            below += tall + _BOX_GAP
        whole = below - _BOX_GAP
        tall = max(whole, _STACK_TALL)
        box_tops.append({b: p._replace(top=p.top + (tall - whole) / 2) for b, p in tops.items()})
        stack_heights.append(tall)

    table_gaps = []
    for at, table in enumerate(order.tables):
        before = order.tables[at - 1] if at else None
        new = before is None or sheet.tables[before].group != sheet.tables[table].group
        pads = (_GROUP_HEAD + _GROUP_PAD + _GROUP_GAP) if framed else _TABLE_GAP + 10
        table_gaps.append(pads if new else _TABLE_GAP)
    ordered_heights = [heights[table] for table in order.tables]
    stack_gaps = [_STACK_GAP] * len(sheet.stacks)
    ordered_stacks = [stack_heights[stack] for stack in order.stacks]

    # Tables stand close together first; then each side goes to where the other one is.
    table_tops = dict(zip(order.tables, placed([0.0] * len(heights), ordered_heights, table_gaps)))
    stack_tops: dict[int, float] = {}
    for turn in range(3):
        wanted = []
        for stack_at in order.stacks:
            aims = [
                table_tops[e.table]
                + centres[e.table][e.row]
                - box_tops[e.stack][e.box].top
                - box_tops[e.stack][e.box].height / 2
                for e in of_stack[stack_at]
            ]
            wanted.append(sum(aims) / len(aims) if aims else 0.0)
        stack_tops = dict(zip(order.stacks, placed(wanted, ordered_stacks, stack_gaps)))
        if turn == 2:
            break
        aims_of: dict[int, list[float]] = {}
        for e in edges:
            place = box_tops[e.stack][e.box]
            aim = stack_tops[e.stack] + place.top + place.height / 2 - centres[e.table][e.row]
            aims_of.setdefault(e.table, []).append(aim)
        middle = [
            sum(aims_of[t]) / len(aims_of[t]) if t in aims_of else table_tops[t]
            for t in order.tables
        ]
        table_tops = dict(zip(order.tables, placed(middle, ordered_heights, table_gaps)))
    highest = min([*table_tops.values(), *stack_tops.values()], default=0.0)
    top = _TOP + (_GROUP_HEAD if framed else 0) - highest
    tables = tuple(_Place(top + table_tops[t], heights[t]) for t in range(len(heights)))
    stacks = tuple(_Place(top + stack_tops[s], stack_heights[s]) for s in range(len(stack_heights)))
    boxes = [_Place(0.0, 0.0)] * len(sheet.boxes)
    for at, stack in enumerate(sheet.stacks):
        for box, place in box_tops[at].items():
            boxes[stack.boxes[box]] = _Place(stacks[at].top + place.top, place.height)

    tips: dict[Edge, float] = {}
    arriving: dict[int, list[Edge]] = {}
    for edge in edges:
        arriving.setdefault(sheet.stacks[edge.stack].boxes[edge.box], []).append(edge)
    for box, some in arriving.items():
        some.sort(key=lambda e: tables[e.table].top + centres[e.table][e.row])
        place = boxes[box]
        step = min(_ENDS, (place.height - 2 * _ENDS_PAD) / max(1, len(some) - 1))
        first = place.top + place.height / 2 - step * (len(some) - 1) / 2
        for at, edge in enumerate(some):
            tips[edge] = first + at * step

    frames = []
    if framed:
        for group in range(len(sheet.groups)):
            inside = [p for t, p in zip(sheet.tables, tables) if t.group == group]
            upper = min(p.top for p in inside) - _GROUP_HEAD
            lower = max(p.top + p.height for p in inside) + _GROUP_PAD
            frames.append((group, _Place(upper, lower - upper)))
    table_width, box_width = _table_width(sheet.tables), _box_width(sheet.boxes)
    if framed:
        widest = max(width(f"{g.name} {g.about}", _PID) for g in sheet.groups)
        table_width = max(table_width, min(widest + 12, _TABLE_MOST))
    gutter = min(_WIDE_GUTTER, _GUTTER + 2.0 * len(edges))
    table_x = _MARGIN + (_GROUP_PAD if framed else 0)
    box_x = table_x + table_width + gutter
    stack_x = box_x + box_width + _LINK
    ends_at = [p.top + p.height for p in (*tables, *stacks)]
    bottom = max([_TOP, *ends_at]) + (_GROUP_PAD if framed else 0)
    return _Layout(
        tables,
        tuple(boxes),
        stacks,
        tuple(frames),
        edges,
        tips,
        table_x,
        table_width,
        box_x,
        box_width,
        stack_x,
        _stack_width(sheet.stacks),
        bottom,
    )


def drawn(sheet: Sheet) -> Picture:
    """Return the three columns, and the findings' sentences below them."""
    lay = _laid_out(sheet)
    wide = lay.stack_x + lay.stack_width + _MARGIN
    parts = [*_headings(lay), *_frames(sheet, lay)]
    parts.extend(_links(sheet, lay))
    parts.extend(_edges(sheet, lay))
    parts.extend(_table(sheet, lay, at) for at in range(len(sheet.tables)))
    parts.extend(_box(sheet, lay, at) for at in range(len(sheet.boxes)))
    parts.extend(_stack(sheet, lay, at) for at in range(len(sheet.stacks)))
    if not sheet.tables:
        parts.append(line(lay.table_x, _TOP + 16, "No process lives in a container.", _SENTENCE))
    told, bottom = sentences(sheet.findings, _MARGIN, lay.bottom + 36, wide - 2 * _MARGIN)
    parts.extend(told)
    below = bottom if told else lay.bottom
    return Picture("\n".join(parts), wide, below + _MARGIN, _highlights(sheet))


def _headings(lay: _Layout) -> Iterator[str]:
    for x, name, caption in (
        (lay.table_x, "Descriptor tables", "one for each process"),
        (lay.box_x, "Open files", "made by open() and pipe()"),
        (lay.stack_x, "Vnodes", "files, pipes, sockets"),
    ):
        yield line(x, 44, name, _HEADING)
        yield line(x, 64, caption, _CAPTION, "soft")


def _frames(sheet: Sheet, lay: _Layout) -> Iterator[str]:
    for at, place in lay.frames:
        group = sheet.groups[at]
        x, wide = lay.table_x - _GROUP_PAD, lay.table_width + 2 * _GROUP_PAD
        name = shortened(group.name, _PID, lay.table_width)
        about = shortened(group.about, _ABOUT, lay.table_width - width(name, _PID) - 12)
        shown = width(about, _ABOUT) > 40
        yield element(
            "g",
            title(f"{group.name} {group.about}"),
            rectangle(x, place.top, wide, place.height, "frame", radius=14),
            line(lay.table_x, place.top + 20, name, _PID),
            line(lay.table_x + lay.table_width, place.top + 20, about, _ABOUT, "soft", anchor="end")
            if shown
            else "",
            class_="group",
        )


def _colour(table: int) -> str:
    return f"c{table % style.COLOURS}"


def _links(sheet: Sheet, lay: _Layout) -> Iterator[str]:
    for at, box in enumerate(sheet.boxes):
        y = lay.boxes[at].top + lay.boxes[at].height / 2
        start, end = lay.box_x + lay.box_width, lay.stack_x
        yield element(
            "g",
            element(
                "path", d=f"M{number(start)} {number(y)}H{number(end - _TIP + 1)}", class_="link"
            ),
            _tip(end, y, "tip-link"),
            class_=f"to-vnode b{at} s{box.stack}",
        )


def _tip(x: float, y: float, looks: str, size: float = 4.5) -> str:
    points = f"M{number(x)} {number(y)}l{number(-_TIP)} {number(-size)}v{number(2 * size)}z"
    return element("path", d=points, class_=looks)


def _edges(sheet: Sheet, lay: _Layout) -> Iterator[str]:
    """Yield the curves; those of a missing close() last, so that they are above the others."""
    late = []
    for edge in lay.edges:
        table = sheet.tables[edge.table]
        row = table.rows[edge.row]
        box = sheet.stacks[edge.stack].boxes[edge.box]
        x0 = lay.table_x + lay.table_width
        y0 = lay.tables[edge.table].top + _row_centres(table)[edge.row]
        x1, y1 = lay.box_x, lay.tips[edge]
        bend = (x1 - x0) * 0.5
        curve = (
            f"M{number(x0)} {number(y0)}C{number(x0 + bend)} {number(y0)} "
            f"{number(x1 - bend)} {number(y1)} {number(x1 - _TIP + 1)} {number(y1)}"
        )
        flaw = bool(row.missing)
        dash = "" if flaw else f"d{edge.table % len(style.DASHES)}"
        markup = element(
            "g",
            title(_sentence(sheet, table, row)),
            element("path", d=curve, class_=f"curve {dash}".rstrip()),
            _tip(x1, y1, "tip", 6 if flaw else 4.5),
            class_=f"edge {_colour(edge.table)} t{edge.table} r{edge.row} b{box} s{edge.stack}"
            + (" flaw" if flaw else ""),
        )
        if flaw:
            late.append(markup)
        else:
            yield markup
    yield from late


def _sentence(sheet: Sheet, table: Table, row: Row) -> str:
    who = f"{clean(table.process.command.text)} (PID {table.process.pid})"
    if row.box is None:
        return f"{who}: descriptors {ranges(row.fds, 20)}: {', '.join(row.notes)}"
    box = sheet.boxes[row.box]
    name = sheet.stacks[box.stack].name
    notes = ", ".join(part.text for part in row_notes(row))
    noun = "descriptor" if len(row.fds) == 1 else "descriptors"
    return f"{who}: {noun} {ranges(row.fds, 20)}{f' ({notes})' if notes else ''} → {name}"


def _table(sheet: Sheet, lay: _Layout, at: int) -> str:
    table, place = sheet.tables[at], lay.tables[at]
    x, wide = lay.table_x, lay.table_width
    head = _head_height(table)
    pid = f"PID {table.process.pid}"
    command = clean(table.process.command.text) or "(no name)"
    short = shortened(command, _COMMAND, wide - width(pid, _PID) - 36)
    outline = f"M{number(x)} {number(place.top + head)}v{number(10 - head)}q0 -10 10 -10"
    outline += f"h{number(wide - 20)}q10 0 10 10v{number(head - 10)}z"
    parts = [
        title(f"{command}, {pid}", table.about),
        rectangle(x, place.top, wide, place.height, "shape", "card", radius=10),
        element("path", d=outline, class_="fill"),
        line(x + 12, place.top + 21, short, _COMMAND, "on"),
        line(x + wide - 12, place.top + 21, pid, _PID, "on", anchor="end"),
    ]
    if table.about:
        about = shortened(table.about, _ABOUT, wide - 24)
        parts.append(line(x + 12, place.top + 39, about, _ABOUT, "on"))
    y = place.top + head
    for number_, row in enumerate(table.rows):
        parts.append(_row(sheet, table, row, number_, (x, y, wide)))
        y += _row_height(row)
    if not table.rows:
        parts.append(line(x + 12, y + 19, "no descriptors", _NOTE, "soft"))
    return element("g", *parts, class_=f"box table {_colour(at)} t{at}")


def _row(sheet: Sheet, table: Table, row: Row, at: int, place: tuple[float, float, float]) -> str:
    x, y, wide = place
    parts = [title(_sentence(sheet, table, row))]
    tall = _row_height(row)
    looks = "flaw-wash" if row.missing else "folded" if row.box is None else "blank"
    last = at == len(table.rows) - 1
    parts.append(
        element("path", d=_cell(x + 1, y, wide - 2, tall - last, 9.0 * last), class_=looks)
    )
    if at:
        parts.append(element("line", x1=x + 1, y1=y, x2=x + wide - 1, y2=y, class_="rule"))
    if row.box is None:
        fds = shortened(_numbers(row), _FD, wide - 24 - width(row.notes[0], _NOTE) - 10)
        parts.append(line(x + 12, y + 18, fds, _FD, "soft"))
        parts.append(line(x + wide - 12, y + 18, row.notes[0], _NOTE, "soft", anchor="end"))
        parts.append(line(x + 12, y + 36, beginning(row.notes[1], _NOTE, wide - 24), _NOTE, "soft"))
        return element("g", *parts, class_="row")
    middle = y + tall / 2
    fds = _numbers(row)
    parts.append(line(x + 14, middle + 5, fds, _FD, "flaw-text" if row.missing else ""))
    at_x = x + max(_FD_CELL, width(fds, _FD) + 24)
    badges = _badges(row)
    for part in row_notes(row):
        room = x + wide - 16 - 24 * len(badges) - at_x
        text = shortened(part.text, part.font, room)
        if room > 30:
            parts.append(line(at_x, middle + 4.5, text, part.font, part.looks))
        at_x += width(text, part.font) + 8
    for place_, finding in enumerate(reversed(badges)):
        parts.append(badge(x + wide - 20 - 24 * place_, middle, finding))
    looks = "flaw-fill" if row.missing else "fill"
    parts.append(element("circle", cx=x + wide, cy=middle, r=4.0, class_=looks))
    return element("g", *parts, class_=f"row b{row.box}")


def _cell(x: float, y: float, wide: float, tall: float, radius: float) -> str:
    """Return the path of a rectangle whose lower corners are round."""
    return (
        f"M{number(x)} {number(y)}h{number(wide)}v{number(tall - radius)}"
        f"q0 {number(radius)} {number(-radius)} {number(radius)}h{number(2 * radius - wide)}"
        f"q{number(-radius)} 0 {number(-radius)} {number(-radius)}z"
    )


def badge(x: float, y: float, finding: int) -> str:
    """Return the number of a finding in a red circle."""
    return element(
        "g",
        element("circle", cx=x, cy=y, r=9.0, class_="flaw-fill"),
        line(x, y + 4.3, str(finding), _BADGE, "on", anchor="middle"),
        class_="badge",
    )


def _box(sheet: Sheet, lay: _Layout, at: int) -> str:
    box, place = sheet.boxes[at], lay.boxes[at]
    x, y, wide = lay.box_x, place.top, lay.box_width
    details = _details(box)
    block = _TALL_BOX if details else _LOW_BOX
    y0 = y + (place.height - block) / 2
    held = [
        f"{clean(table.process.command.text)} (PID {table.process.pid}): {ranges(row.fds)}"
        for table in sheet.tables
        for row in table.rows
        if row.box == at
    ]
    name = sheet.stacks[box.stack].name
    parts = [
        title(f"{_mode(box)} of {name}", details, f"{_holders(box)}:", *held[:40]),
        rectangle(x, y, wide, place.height, "shape", radius=6),
    ]
    if box.missing:
        parts.append(rectangle(x, y, wide, place.height, "flaw-line", radius=6))
    parts.append(line(x + _BOX_PAD, y0 + 21, _mode(box), _mode_font(box)))
    if box.end:
        after = x + _BOX_PAD + width(_mode(box), _mode_font(box)) + 10
        parts.append(line(after, y0 + 21, box.end, _DETAIL, "soft"))
    parts.append(line(x + wide - _BOX_PAD, y0 + 21, _holders(box), _DETAIL, "soft", anchor="end"))
    if details:
        parts.append(line(x + _BOX_PAD, y0 + 39, details, _DETAIL, "soft"))
    return element("g", *parts, class_=f"box file b{at} s{box.stack}")


def _stack(sheet: Sheet, lay: _Layout, at: int) -> str:
    stack, place = sheet.stacks[at], lay.stacks[at]
    x, wide = lay.stack_x, lay.stack_width
    middle = place.top + place.height / 2
    name = shortened(stack.name, _NAME, wide - 32)
    radius = min(22.0, place.height / 2) if stack.pipe else 6.0
    return element(
        "g",
        title(stack.name, stack.about),
        rectangle(x, place.top, wide, place.height, "shape", radius=radius),
        line(x + 16, middle - 3, name, _NAME),
        line(x + 16, middle + 15, shortened(stack.about, _DETAIL, wide - 32), _DETAIL, "soft"),
        class_=f"box vnode s{at}",
    )


def sentences(
    findings: Sequence[Finding], x: float, y: float, wide: float
) -> tuple[list[str], float]:
    """Return the findings' sentences from a height downwards, and where they end."""
    parts = []
    notes = [at for at, finding in enumerate(findings) if finding.level == "note"]
    for at, finding in enumerate(findings, 1):
        if at - 1 in notes[_MOST_NOTES:]:
            continue
        lines = wrapped(clean(finding.sentence), _SENTENCE, wide - 62)
        tall = 20.0 * len(lines) + 18
        flaw = finding.level != "note"
        inside = [rectangle(x, y, wide, tall, "flaw-wash" if flaw else "folded", radius=8)]
        if flaw:
            inside.append(badge(x + 24, y + tall / 2, at))
        inside.extend(
            line(x + 46, y + 24 + 20 * n, text, _SENTENCE) for n, text in enumerate(lines)
        )
        parts.append(element("g", title(finding.level), *inside, class_="box finding"))
        y += tall + 10
    if len(notes) > _MOST_NOTES:
        more = f"and {several(len(notes) - _MOST_NOTES, 'note')} more: cplayground check"
        parts.append(line(x + 46, y + 10, more, _NOTE, "soft"))
        y += 30
    return parts, y - 10


def _highlights(sheet: Sheet) -> str:
    """Return rules that fade the other curves while the pointer is on a box: no script."""
    marks = [
        *(f"table.t{at}" for at in range(len(sheet.tables))),
        *(f"row.b{at}" for at in range(len(sheet.boxes))),
        *(f"file.b{at}" for at in range(len(sheet.boxes))),
        *(f"vnode.s{at}" for at in range(len(sheet.stacks))),
    ]
    if len(marks) > _MOST_HIGHLIGHTS:
        return ""
    return "\n".join(
        f"svg:has(.{mark}:hover) .edge:not(.{mark.partition('.')[2]}){{opacity:.12}}"
        for mark in marks
    )


def facts(sheet: Sheet) -> list[str]:
    """Return the picture in sentences, for a reader who does not see it."""
    return [_sentence(sheet, table, row) for table in sheet.tables for row in table.rows]
