"""Write the picture as text for Graphviz, to be laid out and changed by hand."""

from __future__ import annotations

from html import escape

from cplayground.drawing.layout import row_notes
from cplayground.drawing.sheet import Sheet, ranges, several
from cplayground.drawing.style import COLOURS, DASHES, LIGHT
from cplayground.drawing.text import clean
from cplayground.naming import process_name

_STYLES = ("solid", "dashed", "dotted", "bold")


def _words(text: str) -> str:
    # A backslash begins an escape of Graphviz even there.
    return escape(clean(text)).replace("\\", "&#92;")


def _cell(text: str, **attributes: object) -> str:
    written = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f"<td{written}>{text}</td>"


def _label(rows: list[str], **attributes: object) -> str:
    written = "".join(f' {key}="{value}"' for key, value in attributes.items())
    lines = "".join(f"<tr>{row}</tr>" for row in rows)
    look = 'border="0" cellborder="1" cellspacing="0" cellpadding="5"'
    return f"<<table {look}{written}>{lines}</table>>"


def written(sheet: Sheet) -> str:
    """Return a graph: a node for each process, open file and vnode."""
    said = "<br/>".join(_words(finding.sentence) for finding in sheet.findings)
    lines = [
        "digraph cplayground {",
        '  graph [rankdir=LR, ranksep=1.6, nodesep=0.25, charset="utf-8"];',
        '  node [shape=plain, fontname="Helvetica", fontsize=12];',
        "  edge [arrowsize=0.7];",
        *([f"  label=<{said}>; labelloc=b; labeljust=l; fontname=Helvetica;"] if said else []),
    ]
    for at, table in enumerate(sheet.tables):
        colour = LIGHT.processes[at % COLOURS]
        head = f'<font color="#ffffff"><b>{_words(process_name(table.process))}</b></font>'
        rows = [_cell(head, colspan=2, bgcolor=colour)]
        for row_at, row in enumerate(table.rows):
            notes = _words(", ".join(part.text for part in row_notes(row)))
            ink = f'<font color="{LIGHT.flaw}">{{}}</font>' if row.missing else "{}"
            rows.append(
                _cell(ink.format(_words(ranges(row.fds))))
                + _cell(ink.format(notes), port=f"r{row_at}", align="left")
            )
        lines.append(f"  p{at} [label={_label(rows)}];")
    for at, box in enumerate(sheet.boxes):
        mode = box.mode if box.files == 1 else several(box.files, "open file")
        details = [f"position {box.position}"] if box.position else []
        inside = [f"<b>{_words(mode)}</b>", *map(_words, (*details, *box.flags))]
        rows = [_cell("<br/>".join([*inside, several(box.holders, "holder")]))]
        lines.append(f"  f{at} [label={_label(rows)}];")
    for at, stack in enumerate(sheet.stacks):
        rows = [_cell(f"{_words(stack.name)}<br/>{_words(stack.about)}")]
        lines.append(
            f"  v{at} [label={_label(rows, style='rounded') if stack.pipe else _label(rows)}];"
        )
    for at, table in enumerate(sheet.tables):
        colour, dash = LIGHT.processes[at % COLOURS], _STYLES[at % len(DASHES)]
        for row_at, row in enumerate(table.rows):
            if row.box is not None:
                looks = f'color="{colour}", style={dash}'
                if row.missing:
                    looks = f'color="{LIGHT.flaw}", penwidth=3'
                lines.append(f"  p{at}:r{row_at}:e -> f{row.box}:w [{looks}];")
    lines.extend(f"  f{at}:e -> v{box.stack}:w;" for at, box in enumerate(sheet.boxes))
    for letter, size in (
        ("p", len(sheet.tables)),
        ("f", len(sheet.boxes)),
        ("v", len(sheet.stacks)),
    ):
        if size:
            lines.append(f"  {{ rank=same; {'; '.join(f'{letter}{at}' for at in range(size))}; }}")
    return "\n".join([*lines, "}", ""])
