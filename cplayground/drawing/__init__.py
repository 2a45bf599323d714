"""Draw a snapshot: descriptor tables, open files and vnodes, as SVG, HTML or for Graphviz.

The pictures are laid out here, and are the same for the same snapshot.  Names of any bytes are
shown in their reversible form, shortened in the middle, and whole in a ``<title>``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cplayground.drawing import cards, page, style, tables
from cplayground.drawing import dot as graphviz
from cplayground.drawing.crowd import crowd
from cplayground.drawing.sheet import several, sheet
from cplayground.drawing.text import clean
from cplayground.drawing.writing import element, number, words
from cplayground.snapshot import Snapshot

if TYPE_CHECKING:
    from cplayground.findings import Finding

FOLD = 6  # descriptors of a process that nobody shares; more become one row
MANY = 24  # processes; more become cards
_SAID = 60  # sentences that describe a picture to a reader who does not see it


class _Drawn(NamedTuple):
    picture: tables.Picture
    title: str
    facts: Sequence[str]
    told: Callable[[], str]  # the facts as tables of HTML


def svg(snapshot: Snapshot, findings: Sequence[Finding] = (), *, fold: int | None = FOLD) -> str:
    """Return a picture as SVG, which needs no other file.

    More than ``fold`` descriptors of a process that nobody shares become one row, and more than
    MANY processes become cards for each container.  With None nothing is left out.
    """
    return _svg(_drawn(snapshot, findings, fold), findings)


def html(snapshot: Snapshot, findings: Sequence[Finding] = (), *, fold: int | None = FOLD) -> str:
    """Return a page with the picture of :func:`svg`, and the same facts as text.

    It needs no other file and no script.
    """
    drawn = _drawn(snapshot, findings, fold)
    picture = _svg(drawn, findings)
    return page.page(drawn.title, picture, drawn.picture.width, findings, drawn.told())


def dot(snapshot: Snapshot, findings: Sequence[Finding] = (), *, fold: int | None = FOLD) -> str:
    """Return the three columns as text for Graphviz, also of many processes."""
    return graphviz.written(sheet(snapshot, findings, fold=fold))


def _drawn(snapshot: Snapshot, findings: Sequence[Finding], fold: int | None) -> _Drawn:
    processes = several(len(snapshot.processes), "process")
    if len(snapshot.processes) > MANY and fold is not None:
        many = crowd(snapshot, findings)
        title = f"{processes} in {several(len(many.cards), 'container')}"
        return _Drawn(cards.drawn(many), title, cards.facts(many), lambda: page.of_crowd(many))
    few = sheet(snapshot, findings, fold=fold)
    title = f"{processes}, {several(len(snapshot.files), 'open file')}"
    return _Drawn(tables.drawn(few), title, tables.facts(few), lambda: page.of_sheet(few))


def _svg(drawn: _Drawn, findings: Sequence[Finding]) -> str:
    picture = drawn.picture
    said = [finding.sentence for finding in findings]
    said.extend(drawn.facts[:_SAID])
    if len(drawn.facts) > _SAID:
        said.append(f"{len(drawn.facts) - _SAID:,} more")
    described = " ".join(f"{one.rstrip('.')}." for one in said)
    # Two pictures in one page need ids of their own.
    mark = hashlib.sha256(picture.markup.encode()).hexdigest()[:8]
    wide, tall = number(picture.width), number(picture.height)
    return element(
        "svg",
        element("title", words(clean(drawn.title)), id=f"t{mark}"),
        element("desc", words(described), id=f"d{mark}") if described else "",
        element("style", f"\n{style.css()}\n{picture.css}\n"),
        element("rect", class_="paper", width="100%", height="100%"),
        "\n",
        picture.markup,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {wide} {tall}",
        width=wide,
        height=tall,
        role="img",
        aria_labelledby=f"t{mark} d{mark}" if described else f"t{mark}",
    )
