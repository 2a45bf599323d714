"""Draw descriptor tables, open files and vnodes in three columns, with curves between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cplayground.drawing import style
from cplayground.drawing.layout import (
    ABOUT,
    BOX_PAD,
    COMMAND,
    DETAIL,
    FD,
    FD_CELL,
    FOLDED_LINE,
    GROUP_PAD,
    LOW_BOX,
    MARGIN,
    NAME,
    NOTE,
    PID,
    TALL_BOX,
    TIP,
    TOP,
    Layout,
    Run,
    badges,
    box_mode,
    details,
    folded_kinds,
    head_height,
    holders,
    laid_out,
    mode_font,
    numbers,
    row_centres,
    row_height,
    row_notes,
)
from cplayground.drawing.sheet import Row, Sheet, Table, ranges, several
from cplayground.drawing.text import Font, clean, shortened, width, wrapped
from cplayground.drawing.writing import element, line, number, rectangle, title
from cplayground.naming import holder_name, process_name

if TYPE_CHECKING:
    from cplayground.findings import Finding

_HEADING, _CAPTION = Font("sans", 17, bold=True), Font("sans", 12.5)
_SENTENCE, _BADGE = Font("sans", 14), Font("sans", 12, bold=True)
_MEET = 26.0  # from a table to where the curves of several rows meet
_MOST_NOTES = 3  # notes that are told below the picture
_MOST_HIGHLIGHTS = 400  # rules for the pointer; a browser is slow with more


class Picture(NamedTuple):
    """Markup with its size in pixels and the rules that it needs."""

    markup: str
    width: float
    height: float
    css: str


def drawn(sheet: Sheet) -> Picture:
    """Return the three columns, and the findings' sentences below them."""
    lay = laid_out(sheet)
    wide = lay.stack_x + lay.stack_width + MARGIN
    parts = [*_headings(lay), *_frames(sheet, lay)]
    parts.extend(_links(sheet, lay))
    parts.extend(_edges(sheet, lay))
    parts.extend(_table(sheet, lay, at) for at in range(len(sheet.tables)))
    parts.extend(_box(sheet, lay, at) for at in range(len(sheet.boxes)))
    parts.extend(_stack(sheet, lay, at) for at in range(len(sheet.stacks)))
    if not sheet.tables:
        parts.append(line(lay.table_x, TOP + 16, "No process lives in a container.", _SENTENCE))
    told, bottom = sentences(sheet.findings, MARGIN, lay.bottom + 36, wide - 2 * MARGIN)
    parts.extend(told)
    below = bottom if told else lay.bottom
    return Picture("\n".join(parts), wide, below + MARGIN, _highlights(sheet))


def _headings(lay: Layout) -> Iterator[str]:
    for x, name, caption in (
        (lay.table_x, "Descriptor tables", "one for each process, command:pid"),
        (lay.box_x, "Open file table", "made by open() and pipe()"),
        (lay.stack_x, "Vnode table", "files, pipes, sockets"),
    ):
        yield line(x, 44, name, _HEADING)
        yield line(x, 64, caption, _CAPTION, "soft")


def _frames(sheet: Sheet, lay: Layout) -> Iterator[str]:
    for group, place in zip(sheet.groups, lay.frames):
        x, wide = lay.table_x - GROUP_PAD, lay.table_width + 2 * GROUP_PAD
        name = shortened(group.name, PID, lay.table_width)
        about = shortened(group.about, ABOUT, lay.table_width - width(name, PID) - 12)
        shown = width(about, ABOUT) > 40
        yield element(
            "g",
            title(f"{group.name} {group.about}"),
            rectangle(x, place.top, wide, place.height, "frame", radius=14),
            line(lay.table_x, place.top + 20, name, PID),
            line(lay.table_x + lay.table_width, place.top + 20, about, ABOUT, "soft", anchor="end")
            if shown
            else "",
            class_="group",
        )


def _colour(table: int) -> str:
    return f"c{table % style.COLOURS}"


def _links(sheet: Sheet, lay: Layout) -> Iterator[str]:
    for at, box in enumerate(sheet.boxes):
        y = lay.boxes[at].top + lay.boxes[at].height / 2
        start, end = lay.box_x + lay.box_width, lay.stack_x
        yield element(
            "g",
            element(
                "path", d=f"M{number(start)} {number(y)}H{number(end - TIP + 1)}", class_="link"
            ),
            _tip(end, y, "tip-link"),
            class_=f"to-vnode b{at} s{box.stack}",
        )


def _tip(x: float, y: float, looks: str, size: float = 4.5) -> str:
    points = f"M{number(x)} {number(y)}l{number(-TIP)} {number(-size)}v{number(2 * size)}z"
    return element("path", d=points, class_=looks)


def _edges(sheet: Sheet, lay: Layout) -> Iterator[str]:
    """Yield the curves; those of a missing close() last, so that they are above the others."""
    markup = [(_edge(sheet, lay, run), _is_flaw(sheet, run)) for run in lay.runs]
    yield from (one for one, flaw in markup if not flaw)
    yield from (one for one, flaw in markup if flaw)


def _is_flaw(sheet: Sheet, run: Run) -> bool:
    return bool(sheet.tables[run.edge.table].rows[run.rows[0]].missing)


def _edge(sheet: Sheet, lay: Layout, run: Run) -> str:
    """Return a curve to an open file; before it, the curves of several rows meet."""
    edge, flaw = run.edge, _is_flaw(sheet, run)
    table, top = sheet.tables[edge.table], lay.tables[edge.table].top
    box = sheet.stacks[edge.stack].boxes[edge.box]
    x, y = lay.table_x + lay.table_width, top + run.height
    parts = [title(*(_sentence(sheet, table, table.rows[at]) for at in run.rows))]
    looks = "" if flaw else f" d{edge.table % len(style.DASHES)}"
    if len(run.rows) == 1:
        looks += f" r{run.rows[0]}"
    else:
        centres = row_centres(table)
        for at in run.rows:
            bow = _curve(x, top + centres[at], x + _MEET, y, 0.7)
            parts.append(element("path", d=bow, class_=f"curve bow r{at}"))
        x += _MEET
    tip = lay.tips[edge]
    parts.append(
        element("path", d=_curve(x, y, lay.box_x - TIP + 1, tip, 0.5), class_=f"curve way{looks}")
    )
    parts.append(_tip(lay.box_x, tip, "tip", 6 if flaw else 4.5))
    names = f"edge {_colour(edge.table)} t{edge.table} b{box} s{edge.stack}"
    return element("g", *parts, class_=f"{names} flaw" if flaw else names)


def _curve(x0: float, y0: float, x1: float, y1: float, bend: float) -> str:
    """Return the path of a curve that begins and ends level."""
    reach = (x1 - x0) * bend
    return (
        f"M{number(x0)} {number(y0)}C{number(x0 + reach)} {number(y0)} "
        f"{number(x1 - reach)} {number(y1)} {number(x1)} {number(y1)}"
    )


def _sentence(sheet: Sheet, table: Table, row: Row) -> str:
    who = clean(holder_name(table.process, ranges(row.fds, 20)))
    if row.box is None:
        return f"{who}: {', '.join(row.notes)}"
    box = sheet.boxes[row.box]
    name = sheet.stacks[box.stack].name
    notes = ", ".join(part.text for part in row_notes(row))
    return f"{who}{f' ({notes})' if notes else ''} → {name}"


def _table(sheet: Sheet, lay: Layout, at: int) -> str:
    table, place = sheet.tables[at], lay.tables[at]
    x, wide = lay.table_x, lay.table_width
    head = head_height(table)
    name = clean(process_name(table.process))
    short = shortened(name, COMMAND, wide - 24)
    outline = f"M{number(x)} {number(place.top + head)}v{number(10 - head)}q0 -10 10 -10"
    outline += f"h{number(wide - 20)}q10 0 10 10v{number(head - 10)}z"
    parts = [
        title(name, table.about),
        rectangle(x, place.top, wide, place.height, "shape", "card", radius=10),
        element("path", d=outline, class_="fill"),
        line(x + 12, place.top + 21, short, COMMAND, "on"),
    ]
    if table.about:
        about = shortened(table.about, ABOUT, wide - 24)
        parts.append(line(x + 12, place.top + 39, about, ABOUT, "on"))
    y = place.top + head
    for number_, row in enumerate(table.rows):
        parts.append(_row(sheet, table, row, number_, (x, y, wide)))
        y += row_height(row)
    if not table.rows:
        parts.append(line(x + 12, y + 19, "no descriptors", NOTE, "soft"))
    return element("g", *parts, class_=f"box table {_colour(at)} t{at}")


def _row(sheet: Sheet, table: Table, row: Row, at: int, place: tuple[float, float, float]) -> str:
    x, y, wide = place
    parts = [title(_sentence(sheet, table, row))]
    tall = row_height(row)
    looks = "flaw-wash" if row.missing else "folded" if row.box is None else "blank"
    last = at == len(table.rows) - 1
    parts.append(
        element("path", d=_cell(x + 1, y, wide - 2, tall - last, 9.0 * last), class_=looks)
    )
    if at:
        parts.append(element("line", x1=x + 1, y1=y, x2=x + wide - 1, y2=y, class_="rule"))
    if row.box is None:
        fds = shortened(numbers(row), FD, wide - 24 - width(row.notes[0], NOTE) - 10)
        parts.append(line(x + 12, y + 18, fds, FD, "soft"))
        parts.append(line(x + wide - 12, y + 18, row.notes[0], NOTE, "soft", anchor="end"))
        parts.extend(
            line(x + 12, y + 36 + FOLDED_LINE * at, text, NOTE, "soft")
            for at, text in enumerate(folded_kinds(row))
        )
        return element("g", *parts, class_="row")
    middle = y + tall / 2
    fds = numbers(row)
    parts.append(line(x + 14, middle + 5, fds, FD, "flaw-text" if row.missing else ""))
    at_x = x + max(FD_CELL, width(fds, FD) + 24)
    marks = badges(row)
    for part in row_notes(row):
        room = x + wide - 16 - 24 * len(marks) - at_x
        text = shortened(part.text, part.font, room)
        if room > 30:
            parts.append(line(at_x, middle + 4.5, text, part.font, part.looks))
        at_x += width(text, part.font) + 8
    for place_, finding in enumerate(reversed(marks)):
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
    radius = max(9.0, width(str(finding), _BADGE) / 2 + 3)
    return element(
        "g",
        element("circle", cx=x, cy=y, r=radius, class_="flaw-fill"),
        line(x, y + 4.3, str(finding), _BADGE, "on", anchor="middle"),
        class_="badge",
    )


def _box(sheet: Sheet, lay: Layout, at: int) -> str:
    box, place = sheet.boxes[at], lay.boxes[at]
    x, y, wide = lay.box_x, place.top, lay.box_width
    more = details(box)
    block = TALL_BOX if more else LOW_BOX
    y0 = y + (place.height - block) / 2
    held = [
        clean(holder_name(table.process, ranges(row.fds)))
        for table in sheet.tables
        for row in table.rows
        if row.box == at
    ]
    name = sheet.stacks[box.stack].name
    parts = [
        title(f"{box_mode(box)} of {name}", more, f"{holders(box)}:", *held[:40]),
        rectangle(x, y, wide, place.height, "shape", radius=6),
    ]
    if box.missing:
        parts.append(rectangle(x, y, wide, place.height, "flaw-line", radius=6))
    parts.append(line(x + BOX_PAD, y0 + 21, box_mode(box), mode_font(box)))
    if box.end:
        after = x + BOX_PAD + width(box_mode(box), mode_font(box)) + 10
        parts.append(line(after, y0 + 21, box.end, DETAIL, "soft"))
    parts.append(line(x + wide - BOX_PAD, y0 + 21, holders(box), DETAIL, "soft", anchor="end"))
    if more:
        parts.append(line(x + BOX_PAD, y0 + 39, more, DETAIL, "soft"))
    return element("g", *parts, class_=f"box file b{at} s{box.stack}")


def _stack(sheet: Sheet, lay: Layout, at: int) -> str:
    stack, place = sheet.stacks[at], lay.stacks[at]
    x, wide = lay.stack_x, lay.stack_width
    middle = place.top + place.height / 2
    name = shortened(stack.name, NAME, wide - 32)
    radius = min(22.0, place.height / 2) if stack.pipe else 6.0
    return element(
        "g",
        title(stack.name, stack.about),
        rectangle(x, place.top, wide, place.height, "shape", radius=radius),
        line(x + 16, middle - 3, name, NAME),
        line(x + 16, middle + 15, shortened(stack.about, DETAIL, wide - 32), DETAIL, "soft"),
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
            line(x + (46 if flaw else 24), y + 24 + 20 * n, text, _SENTENCE)
            for n, text in enumerate(lines)
        )
        parts.append(element("g", title(finding.level), *inside, class_="box finding"))
        y += tall + 10
    if len(notes) > _MOST_NOTES:
        more = f"and {several(len(notes) - _MOST_NOTES, 'note')} more: cplayground check"
        parts.append(line(x + 24, y + 10, more, NOTE, "soft"))
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
