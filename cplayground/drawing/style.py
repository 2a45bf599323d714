"""Colours, lines and fonts of the pictures: light, dark and on paper, without CSS variables.

Some programs that show SVG know no variables, so each rule has its colours.  Each text has a
contrast of at least 4.5:1 to what is behind it.  The colours of processes also differ for eyes
that see no red, no green or no blue; the dashes tell apart what they do not.
"""

from __future__ import annotations

from typing import NamedTuple

from cplayground.drawing.text import MONO, SANS

COLOURS = 6
DASHES = ("", "10 5", "1 6", "12 5 1 5")


class Scheme(NamedTuple):
    """The colours of one scheme."""

    paper: str
    box: str
    ink: str
    soft: str  # text of less weight
    line: str  # edges of boxes
    rule: str  # between rows
    frame: str  # behind the processes of a container
    fold: str  # behind what is folded
    on_colour: str  # text on the colour of a process
    flaw: str
    flaw_wash: str
    processes: tuple[str, ...]


LIGHT = Scheme(
    paper="#ffffff",
    box="#ffffff",
    ink="#1b1f24",
    soft="#565d66",
    line="#8d949c",
    rule="#d3d6d9",
    frame="#f1f2f0",
    fold="#f6f6f4",
    on_colour="#ffffff",
    flaw="#c4122f",
    flaw_wash="#fdecee",
    processes=("#0f62c6", "#955c00", "#401a86", "#0b6b4f", "#a02f94", "#4a525c"),
)
DARK = Scheme(
    paper="#15181c",
    box="#1d2126",
    ink="#eceeef",
    soft="#aab1b9",
    line="#737c86",
    rule="#3a4149",
    frame="#20252b",
    fold="#23282e",
    on_colour="#101316",
    flaw="#ff7a70",
    flaw_wash="#3a1a1d",
    processes=("#74b5ff", "#f3b13c", "#b79cf5", "#37c39a", "#f79fd6", "#c3cad2"),
)


def css() -> str:
    """Return the rules of a picture."""
    dark = "\n".join(_colours(DARK))
    return "\n".join(
        [
            *_shapes(),
            *_colours(LIGHT),
            f"@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}",
        ]
    )


def _shapes() -> list[str]:
    return [
        f"text{{font-family:{SANS};unicode-bidi:isolate;white-space:pre}}",
        f".mono{{font-family:{MONO}}}",
        ".bold{font-weight:700}",
        ".curve,.link{fill:none;stroke-width:2;stroke-linecap:round}",
        ".edge.flaw .curve{stroke-width:3.5}",
        ".edge:hover .curve{stroke-width:4}",
        # The pointer finds the whole row, not only its text.
        ".blank{fill:none;pointer-events:all}",
        ".edge,.box{transition:opacity .12s}",
        *(f".d{n}{{stroke-dasharray:{dash}}}" for n, dash in enumerate(DASHES) if dash),
    ]


def _colours(scheme: Scheme) -> list[str]:
    return [
        f".paper{{fill:{scheme.paper}}}",
        f"text{{fill:{scheme.ink}}}",
        f".soft{{fill:{scheme.soft}}}",
        f".shape{{fill:{scheme.box};stroke:{scheme.line}}}",
        f".rule{{stroke:{scheme.rule}}}",
        f".plain{{fill:{scheme.box}}}",
        f".frame{{fill:{scheme.frame}}}",
        f".folded{{fill:{scheme.fold}}}",
        f".link{{stroke:{scheme.line}}}",
        f".tip-link{{fill:{scheme.line}}}",
        f".on{{fill:{scheme.on_colour}}}",
        *(
            f".c{n} .curve{{stroke:{colour}}}.c{n} .tip,.c{n} .fill{{fill:{colour}}}"
            f".c{n} .shape.card{{stroke:{colour}}}"
            for n, colour in enumerate(scheme.processes)
        ),
        f".edge.flaw .curve{{stroke:{scheme.flaw}}}.edge.flaw .tip{{fill:{scheme.flaw}}}",
        f".flaw-text{{fill:{scheme.flaw}}}.flaw-fill{{fill:{scheme.flaw}}}",
        f".flaw-wash{{fill:{scheme.flaw_wash}}}",
        f".flaw-line{{fill:none;stroke:{scheme.flaw};stroke-width:2}}",
    ]
