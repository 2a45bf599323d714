"""Write one HTML file: the picture, the findings with their evidence, and the facts as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from cplayground.drawing import style
from cplayground.drawing.crowd import Crowd
from cplayground.drawing.layout import row_notes
from cplayground.drawing.sheet import Sheet, Table, ranges, several
from cplayground.drawing.text import MONO, SANS, clean
from cplayground.drawing.writing import element, words
from cplayground.naming import process_name

if TYPE_CHECKING:
    from cplayground.findings import Finding

_LEAST = 0.72  # of a picture's own size; on a narrow screen it is moved, not made smaller

_LEVELS = {"error": "Error", "warning": "Warning", "note": "Note"}
_HOW = (
    "Each process has a table of descriptors. A row is a descriptor, and its curve leads to the "
    "open file that it stands for. Neighbours that stand for the same one meet in one curve.",
    "An open file has a mode (r, w, rw), flags, and a position. dup() and fork() make more "
    "descriptors of one open file: these share its position. open() makes a new one.",
    "A vnode is the file, pipe or socket itself. A pipe has two open files: its read end and its "
    "write end. A reader sees the end when each write end is closed.",
    "close-on-exec: execve() closes this descriptor. Each process has its own colour and dashes.",
)
_APART = "A path in two containers is drawn twice, because each has files of its own."
_POINT = "Point at a process, an open file or a vnode to see only its curves."
_HOW_CARDS = (
    "A card is a container. A row is a group of processes with the same command and descriptors "
    "of the same kinds.",
    "For the descriptors of one container or process: cplayground draw -c NAME, or -p PID.",
)


def css(wide: float) -> str:
    """Return the rules of the page."""
    light, dark = style.LIGHT, style.DARK
    return "\n".join(
        [
            f"body{{margin:0 auto;padding:24px 20px 48px;max-width:{max(wide, 900):.0f}px;"
            f"font:16px/1.55 {SANS};overflow-wrap:break-word}}",
            "h1{font-size:1.6em;line-height:1.25;margin:.3em 0 .6em}",
            "h2{font-size:1.15em;margin:2em 0 .6em}",
            "figure{margin:0}",
            ".scroll+.scroll{margin-top:2em}",
            ".scroll{overflow-x:auto}",
            f".scroll svg{{display:block;width:100%;min-width:{wide * _LEAST:.0f}px;"
            f"max-width:{wide:.0f}px;height:auto}}",
            "table{border-collapse:collapse;width:100%;min-width:720px;font-size:.9em}",
            "caption{text-align:left;padding-bottom:.5em}",
            "th,td{text-align:left;vertical-align:top;padding:.3em .7em .3em 0;"
            "border-bottom:1px solid;font-weight:400;white-space:nowrap}",
            "thead th{font-weight:700}",
            "th.number,td.number{text-align:right;padding-right:2em}",
            "td.long{white-space:normal;overflow-wrap:anywhere;min-width:12em}",
            f"code{{font-family:{MONO};font-size:.92em}}",
            "ul{padding-left:1.2em}li{margin:.35em 0}",
            ".finding-text{border-left:4px solid;padding:.1em 0 .1em 1em;margin:1em 0}",
            *_page_colours(light),
            "@media screen and (prefers-color-scheme: dark) {",
            *_page_colours(dark),
            "}",
            "@media print{body{padding:0;max-width:none}.scroll{overflow:visible}"
            ".scroll svg{min-width:0;max-height:24cm}table{min-width:0;font-size:8pt}"
            "th,td,td.long{white-space:normal;overflow-wrap:anywhere;min-width:0}"
            "tr,.finding-text{break-inside:avoid}thead{display:table-header-group}"
            ".screen-only{display:none}}",
        ]
    )


def _page_colours(scheme: style.Scheme) -> list[str]:
    return [
        f"html{{background:{scheme.paper};color:{scheme.ink}}}",
        f"th,td{{border-color:{scheme.rule}}}",
        f".level{{color:{scheme.flaw};font-weight:700}}",
        f".finding-text{{border-color:{scheme.flaw}}}",
        f".finding-text.note{{border-color:{scheme.line}}}.note .level{{color:{scheme.ink}}}",
        f"a{{color:{scheme.processes[0]}}}",
    ]


def _code(text: str) -> str:
    """Return a name as markup, which cannot change the direction of what is around it."""
    return element("bdi", element("code", words(text)), dir="ltr")


def _findings(findings: Sequence[Finding]) -> str:
    parts = []
    for number, finding in enumerate(findings, 1):
        level = _LEVELS.get(finding.level, finding.level)
        evidence = [element("li", words(clean(one))) for one in finding.evidence]
        parts.append(
            element(
                "div",
                element(
                    "p",
                    element("span", words(f"{level} {number}: "), class_="level"),
                    words(finding.sentence),
                ),
                element("ul", *evidence) if evidence else "",
                class_=f"finding-text {'note' if finding.level == 'note' else ''}".strip(),
            )
        )
    return element("section", element("h2", "Findings and their evidence"), *parts) if parts else ""


def _table(caption: str, heads: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; ``heads`` has names and classes, the first cell of a row is its head."""
    head = [element("th", words(name), scope="col", class_=kind) for name, kind in heads]
    body = []
    for row in rows:
        cells = [
            f"<td{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{cell}</td>"
            for cell, (_, kind) in zip(row[1:], heads[1:])
        ]
        body.append(element("tr", f'<th scope="row">{row[0]}</th>', *cells))
    return element(
        "div",
        element(
            "table",
            element("caption", words(caption)),
            element("thead", element("tr", *head)),
            "<tbody>",
            "\n".join(body),
            "</tbody>",
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=caption,
    )


def _process(sheet: Sheet, table: Table) -> str:
    name = _code(process_name(table.process))
    group = sheet.groups[table.group].name
    return f"{name} in {element('bdi', words(group))}" if group else name


def _rows(sheet: Sheet) -> Iterator[Sequence[str]]:
    for table in sheet.tables:
        process = _process(sheet, table)
        if not table.rows:
            yield process, "none", "", "", "", "", "", ""
        for row in table.rows:
            said = [words(part.text) for part in row_notes(row)]
            if row.box is None:
                yield process, words(ranges(row.fds, 50)), "", "", "", "", "", ", ".join(said)
                continue
            box = sheet.boxes[row.box]
            yield (
                process,
                words(ranges(row.fds, 50)),
                str(row.box + 1) if box.files == 1 else several(box.files, "open file"),
                words(" ".join((box.mode, *box.flags))),
                words(box.position),
                str(box.holders),
                _code(sheet.stacks[box.stack].name),
                ", ".join(said),
            )


def of_sheet(sheet: Sheet) -> str:
    """Return the facts of a picture of tables, as text."""
    heads = (
        ("Process", ""),
        ("Descriptor", ""),
        ("Open file", ""),
        ("Mode", ""),
        ("Position", "number"),
        ("Holders", "number"),
        ("Vnode", "long"),
        ("Remarks", "long"),
    )
    told = _table(
        "Processes",
        (("Process", ""), ("On the host", "number"), ("Parent", "number")),
        (
            (_process(sheet, one), str(one.process.global_pid), str(one.process.ppid or "outside"))
            for one in sheet.tables
        ),
    )
    told += _table("Descriptors: rows with the same open file share it", heads, _rows(sheet))
    how = (*_HOW, _APART) if len(sheet.groups) > 1 else _HOW
    return _section(told, how, _POINT)


def of_crowd(crowd: Crowd) -> str:
    """Return the facts of a picture of cards, as text."""
    heads = (
        ("Container", ""),
        ("Processes", "number"),
        ("Command", ""),
        ("PIDs", ""),
        ("On the host", ""),
        ("Descriptors", "long"),
        ("Shares", ""),
    )
    told = _table(
        "Groups of alike processes",
        heads,
        (
            (
                f"{element('bdi', words(card.group.name))} {words(card.group.about)}".rstrip(),
                f"{row.size:,}",
                _code(row.command),
                words(row.pids),
                words(row.host),
                words(row.descriptors),
                " ".join(f"#{number}" for number in row.shares),
            )
            for card in crowd.cards
            for row in card.alike
        ),
    )
    if crowd.common:
        told += _table(
            "Shared between containers",
            (("Number", ""), ("Name", "long"), ("Mode", "long"), ("Containers", "long")),
            (
                (
                    f"#{number}",
                    _code(one.name),
                    words(one.how),
                    words(", ".join(f"{name} ({size:,})" for name, size in one.holders)),
                )
                for number, one in enumerate(crowd.common, 1)
            ),
        )
    return _section(told, _HOW_CARDS)


def _section(told: str, how: Sequence[str], on_screen: str = "") -> str:
    lines = [element("li", words(one)) for one in how]
    lines += [element("li", words(on_screen), class_="screen-only")] if on_screen else []
    return element("section", element("h2", "How to read the picture"), element("ul", *lines)) + (
        element("section", element("h2", "The picture as text"), told)
    )


def page(title: str, picture: str, wide: float, findings: Sequence[Finding], told: str) -> str:
    """Return the page around a picture."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            '<head><meta charset="utf-8"/>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
            '<meta name="color-scheme" content="light dark"/>',
            # Nothing may be fetched, and no script may run, even if a name slipped through.
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; style-src 'unsafe-inline'\"/>",
            element("title", words(title)),
            f"<style>\n{css(wide)}\n</style></head>",
            f"<body><main><h1>{words(title)}</h1>",
            element(
                "figure",
                element(
                    "div", picture, class_="scroll", tabindex=0, role="region", aria_label="Picture"
                ),
            ),
            _findings(findings),
            told,
            "</main></body></html>\n",
        ]
    )
