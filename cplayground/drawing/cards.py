"""Draw many processes: a card for each container, and a list of what containers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cplayground.drawing import style
from cplayground.drawing.crowd import Alike, Card, Common, Crowd
from cplayground.drawing.sheet import several
from cplayground.drawing.tables import Picture, badge, sentences
from cplayground.drawing.text import Font, beginning, shortened, width
from cplayground.drawing.writing import element, line, rectangle, title

_MARGIN, _GAP, _COLUMNS, _CARD = 32.0, 20.0, 3, 352.0
_TOP = 92.0
_HEAD, _ROW, _COMMON_ROW = 50.0, 48.0, 30.0
_HEADING, _CAPTION = Font("sans", 17, bold=True), Font("sans", 12.5)
_NAME, _ABOUT = Font("sans", 14.5, bold=True), Font("sans", 12)
_COUNT, _COMMAND, _DETAIL = Font("mono", 14, bold=True), Font("mono", 14), Font("sans", 12)
_PATH = Font("mono", 13)
_MOST_ROWS, _MOST_COMMON = 12, 40
_MANY = 6  # containers; of more, those that are alike become one card


class _Merged(NamedTuple):
    """A card, and the names of the containers that it stands for."""

    card: Card
    names: tuple[str, ...]


def _more(count: int, noun: str) -> str:
    return f"and {several(count, noun)} more"


def _merged(cards: Sequence[Card]) -> list[_Merged]:
    """Return the cards to draw: of many, those that differ in nothing but their pids are one."""
    found: dict[object, list[Card]] = {}
    for at, card in enumerate(cards):
        rows = tuple((row.command, row.size, row.descriptors) for row in card.alike)
        plain = len(cards) > _MANY and not any(row.shares or row.marks for row in card.alike)
        found.setdefault((card.group.about, rows) if plain else at, []).append(card)
    return [_Merged(some[0], tuple(card.group.name for card in some)) for some in found.values()]


def _height(card: Card) -> float:
    rows = min(len(card.alike), _MOST_ROWS)
    return _HEAD + rows * _ROW + (28.0 if len(card.alike) > rows else 6.0)


def drawn(crowd: Crowd) -> Picture:
    """Return the cards in columns, what is shared below them, and the findings' sentences."""
    count = sum(card.processes for card in crowd.cards)
    merged = _merged(crowd.cards)
    groups = sum(len(one.card.alike) for one in merged)
    columns = max(2, min(_COLUMNS, len(merged)))
    wide = 2 * _MARGIN + columns * _CARD + (columns - 1) * _GAP
    heading = f"{several(count, 'process')} in {several(len(crowd.cards), 'container')}"
    caption = f"Alike processes are one row: {groups:,} in all."
    if crowd.common:
        caption += " #1, #2: shared with another container, listed at the end."
    parts = [
        line(_MARGIN, 44, heading, _HEADING),
        line(_MARGIN, 64, caption, _CAPTION, "soft"),
    ]
    bottoms = [_TOP] * columns
    for at, one in enumerate(merged):
        column = bottoms.index(min(bottoms))
        x = _MARGIN + column * (_CARD + _GAP)
        parts.append(_card(one, at, x, bottoms[column]))
        bottoms[column] += _height(one.card) + _GAP
    y = max(bottoms)
    if crowd.common:
        shared, y = _shared(crowd.common, y + 12, wide - 2 * _MARGIN)
        parts.extend(shared)
    told, bottom = sentences(crowd.findings, _MARGIN, y + 12, wide - 2 * _MARGIN)
    return Picture("\n".join([*parts, *told]), wide, (bottom if told else y) + _MARGIN, "")


def _card(merged: _Merged, at: int, x: float, y: float) -> str:
    card, names = merged
    said, below = card.group.name, several(card.processes, "process")
    if len(names) > 1:
        said, below = f"{len(names):,} containers alike", f"{below} each: {', '.join(names)}"
    about = shortened(card.group.about, _ABOUT, _CARD - 44 - min(width(said, _NAME), 170.0))
    name = shortened(said, _NAME, _CARD - 44 - width(about, _ABOUT) - 10)
    below = beginning(below, _DETAIL, _CARD - 44)
    parts = [
        title(said, card.group.about, *names[:200]),
        rectangle(x, y, _CARD, _height(card), "frame", radius=12),
        rectangle(x + 14, y + 12, 5.0, 30.0, "fill", radius=2.5),
        line(x + 28, y + 23, name, _NAME),
        line(x + _CARD - 14, y + 23, about, _ABOUT, "soft", anchor="end") if about else "",
        line(x + 28, y + 41, below, _DETAIL, "soft"),
    ]
    top = y + _HEAD
    for row in card.alike[:_MOST_ROWS]:
        parts.append(_alike(row, x, top, len(names)))
        top += _ROW
    rest = card.alike[_MOST_ROWS:]
    if rest:
        text = _more(sum(one.size for one in rest), "process")
        parts.append(line(x + 28, top + 17, text, _DETAIL, "soft"))
    return element("g", *parts, class_=f"box card c{at % style.COLOURS}")


def _alike(row: Alike, x: float, y: float, containers: int) -> str:
    inner = _CARD - 16
    count = f"{row.size:,} ×"
    cell = max(56.0, width(count, _COUNT) + 16)
    shares = " ".join(f"#{number}" for number in row.shares[:4])
    shares += " …" if len(row.shares) > 4 else ""
    pids = f"{'PID' if row.size == 1 else 'PIDs'} {row.pids}"
    where = f"{pids}, {row.host} on the host"
    if containers > 1:
        pids = where = "in each"
    pids = beginning(pids, _DETAIL, 150)
    room = inner - cell - width(pids, _DETAIL) - 20 - 24 * len(row.marks)
    details = beginning(row.kinds, _DETAIL, inner - cell - width(shares, _DETAIL) - 24)
    parts = [
        title(f"{count} {row.command}", where, row.descriptors),
        rectangle(x + 8, y, inner, _ROW - 4, "flaw-wash" if row.marks else "plain", radius=7),
        line(x + 8 + cell - 8, y + 19, count, _COUNT, anchor="end") if row.size > 1 else "",
        line(x + 8 + cell, y + 19, shortened(row.command, _COMMAND, room), _COMMAND),
        line(x + 8 + cell, y + 36, details, _DETAIL, "soft"),
        line(x + 8 + inner - 10, y + 36, shares, _DETAIL, anchor="end") if shares else "",
    ]
    for at, finding in enumerate(row.marks):
        parts.append(
            badge(x + 8 + inner - 18 - width(pids, _DETAIL) - 12 - 24 * at, y + 15, finding)
        )
    parts.append(line(x + 8 + inner - 10, y + 19, pids, _DETAIL, "soft", anchor="end"))
    return element("g", *parts, class_="alike box")


def _shared(common: tuple[Common, ...], y: float, wide: float) -> tuple[list[str], float]:
    """Return the list of what is shared, from a height downwards, and where it ends."""
    parts = [line(_MARGIN, y + 20, "Shared between containers", _HEADING)]
    y += 36
    number_wide, how_wide = 44.0, 120.0
    name_wide = (wide - number_wide - how_wide) * 0.5
    for number, one in enumerate(common[:_MOST_COMMON], 1):
        holders = ", ".join(f"{name} ({several(size, 'process')})" for name, size in one.holders)
        holders_x = _MARGIN + number_wide + how_wide + name_wide
        room = _MARGIN + wide - 14 - holders_x
        parts.append(
            element(
                "g",
                title(one.name, one.how, holders),
                rectangle(_MARGIN, y, wide, _COMMON_ROW - 4, "shape", radius=6),
                line(_MARGIN + 12, y + 18, f"#{number}", _DETAIL),
                line(
                    _MARGIN + number_wide,
                    y + 18,
                    shortened(one.name, _PATH, name_wide - 12),
                    _PATH,
                ),
                line(
                    _MARGIN + number_wide + name_wide,
                    y + 18,
                    shortened(one.how, _DETAIL, how_wide - 12),
                    _DETAIL,
                    "soft",
                ),
                line(holders_x, y + 18, shortened(holders, _DETAIL, room), _DETAIL),
                class_="box common",
            )
        )
        y += _COMMON_ROW
    if len(common) > _MOST_COMMON:
        text = _more(len(common) - _MOST_COMMON, "open file")
        parts.append(line(_MARGIN + 12, y + 16, text, _DETAIL, "soft"))
        y += 24
    return parts, y


def facts(crowd: Crowd) -> list[str]:
    """Return the picture in sentences."""
    said = []
    for card in crowd.cards:
        rows = "; ".join(
            f"{row.size:,} × {row.command} (PIDs {row.pids}), {row.descriptors}"
            for row in card.alike[:_MOST_ROWS]
        )
        said.append(f"{card.group.name}: {several(card.processes, 'process')}: {rows}")
    for number, one in enumerate(crowd.common, 1):
        holders = ", ".join(name for name, _ in one.holders)
        said.append(f"#{number}, {one.name}, is shared by {holders}")
    return said
