"""The pictures in headless Chromium: they fit, are legible, and say the same to a screen reader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from cplayground import drawing
from cplayground.drawing.text import MONO, SANS, Font, width
from tests.browser import Browser, Tab, chromium
from tests.unit.drawings import SCENES, chance

STORIES = sorted((Path(__file__).resolve().parents[1] / "stories").glob("*.svg"))
NARROW, WIDE, PAPER = 360, 1600, 720
LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3
TALL = 6000  # of a window in which each picture is visible as a whole

# Functions for the questions below.  Boxes are compared by the first shape in them.
LOOKS = """
const all = (what, inside = document) => [...inside.querySelectorAll(what)];
const rect = one => one.getBoundingClientRect();
const shape = box => rect(box.querySelector(':scope > rect'));
const told = one => one.outerHTML.replace(/<title>.*?<.title>/gs, '').slice(0, 160);
const meet = (a, b, by) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > by
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > by;
const within = (a, b, by) => a.left >= b.left - by && a.right <= b.right + by
  && a.top >= b.top - by && a.bottom <= b.bottom + by;
const pairs = many => many.flatMap((one, at) => many.slice(at + 1).map(two => [one, two]));
"""
OVERLAPPING = (
    LOOKS
    + """
pairs(all('.box')).filter(([a, b]) => !a.contains(b) && !b.contains(a)
  && meet(shape(a), shape(b), 0.5)).map(pair => pair.map(told))
"""
)
# A text lies in its innermost box, a box in its outer one, and everything in the picture.
OUTSIDE = (
    LOOKS
    + """
const svg = document.querySelector('svg');
all('text').filter(one => {
  const box = one.closest('.box, .group');
  return !within(rect(one), box ? shape(box) : rect(svg), 0.5);
}).concat(all('.box').filter(one => {
  const outer = one.parentElement.closest('.box');
  return !within(shape(one), outer ? shape(outer) : rect(svg), 0.5);
})).map(told)
"""
)
TEXTS_THAT_MEET = (
    LOOKS
    + """
pairs(all('text')).filter(([a, b]) => meet(rect(a), rect(b), 1.5)).map(pair => pair.map(told))
"""
)
# Curves that do not begin at the edge of their row, or do not end at the edge of their box.
LOOSE = (
    LOOKS
    + """
const near = (a, b) => Math.abs(a - b) < 1;
const named = (one, letter) => [...one.classList]
  .find(name => name[0] === letter && Number(name.slice(1)) >= 0);
const spot = (path, whole) => {
  const at = path.getPointAtLength(whole ? path.getTotalLength() : 0);
  const matrix = path.getScreenCTM();
  return {x: at.x * matrix.a + matrix.e, y: at.y * matrix.d + matrix.f};
};
const meets = (a, b) => near(a.x, b.x) && near(a.y, b.y);
const leaves = (at, box) => near(at.x, box.right) && at.y > box.top && at.y < box.bottom;
const arrives = (path, tip, box) => near(tip.right, box.left) && tip.top > box.top
  && tip.bottom < box.bottom && (end => end.x > tip.left && end.x < tip.right
  && near(end.y, (tip.top + tip.bottom) / 2))(spot(path, true));
const box = (what, one, letter) => shape(document.querySelector(`.${what}.${named(one, letter)}`));
const row = (one, path) => {
  const table = document.querySelector(`.table.${named(one, 't')}`);
  const cell = rect(all(':scope > .row', table)[named(path, 'r').slice(1)].querySelector('path'));
  return {right: shape(table).right, top: cell.top, bottom: cell.bottom};
};
const joined = one => {
  const way = one.querySelector('.way'), bows = all('.bow', one);
  const begin = bows.length
    ? bows.every(bow => leaves(spot(bow), row(one, bow)) && meets(spot(bow, true), spot(way)))
    : leaves(spot(way), row(one, way));
  return begin && arrives(way, rect(one.querySelector('.tip')), box('file', one, 'b'));
};
const linked = one => leaves(spot(one.querySelector('.link')), box('file', one, 'b'))
  && arrives(one.querySelector('.link'), rect(one.querySelector('.tip-link')),
    box('vnode', one, 's'));
all('.edge').filter(one => !joined(one))
  .concat(all('.to-vnode').filter(one => !linked(one))).map(told)
"""
)
# Texts with too little contrast to what is painted behind them, in SVG and in HTML.
PALE = (
    LOOKS
    + """
const channels = text => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
const solid = colour => colour !== 'none' && (c => c.length < 4 || c[3] === 1)(channels(colour));
const behind = one => {
  const box = rect(one);
  const [x, y] = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
  for (const under of document.elementsFromPoint(x, y)) {
    if (under === one || under instanceof SVGTextElement) continue;
    const style = getComputedStyle(under);
    const colour = under instanceof SVGGeometryElement ? style.fill : style.backgroundColor;
    if (solid(colour)) return channels(colour);
  }
  return [NaN, NaN, NaN];
};
const shown = one => one.checkVisibility() && !one.closest('title, desc, style')
  && [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim());
all('text, body *').filter(shown).map(one => {
  const style = getComputedStyle(one);
  const ink = one instanceof SVGElement ? style.fill : style.color;
  const pair = [light(channels(ink)), light(behind(one))];
  return [(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), told(one)];
}).filter(([ratio]) => !(ratio >= LEAST))
""".replace("LEAST", str(LEAST_CONTRAST))
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Tab:
    return browser.tab()


def ask(tab: Tab, question: str) -> object:
    """Ask in a block, whose functions do not stay in the page."""
    return tab.ask(f"{{{question}}}")


def picture(scene: str, root: Path, *, fold: int | None = drawing.FOLD) -> Path:
    snapshot, findings = SCENES[scene]()
    path = root / "picture.svg"
    path.write_text(drawing.svg(snapshot, findings, fold=fold))
    return path


def page(scene: str, root: Path) -> Path:
    snapshot, findings = SCENES[scene]()
    path = root / "page.html"
    path.write_text(drawing.html(snapshot, findings))
    return path


def faults(tab: Tab) -> dict[str, object]:
    questions = {
        "boxes overlap": OVERLAPPING,
        "outside of its box": OUTSIDE,
        "texts meet": TEXTS_THAT_MEET,
        "curve ends nowhere": LOOSE,
        "pale": PALE,
    }
    found = {name: ask(tab, question) for name, question in questions.items()}
    return {name: what for name, what in found.items() if what != []}


@pytest.mark.parametrize("scene", SCENES)
def test_a_picture_is_tidy_and_legible(scene: str, tab: Tab, tmp_path: Path) -> None:
    tab.show(picture(scene, tmp_path))
    assert tab.ask("document.documentElement.localName") == "svg"
    for dark in (False, True):
        tab.look(width=WIDE, height=TALL, dark=dark)
        assert faults(tab) == {}, dark


@pytest.mark.parametrize("story", STORIES, ids=lambda path: path.stem)
def test_the_picture_of_a_recorded_story_is_tidy(story: Path, tab: Tab) -> None:
    tab.show(story)
    tab.look(width=WIDE, height=TALL)
    assert faults(tab) == {}


@pytest.mark.parametrize("scene", ["sixty", "forked", "hostile"])
def test_a_picture_of_everything_is_tidy(scene: str, tab: Tab, tmp_path: Path) -> None:
    tab.show(picture(scene, tmp_path, fold=None))
    tab.look(width=WIDE, height=TALL)
    assert faults(tab) == {}
    processes = SCENES[scene]()[0].processes
    many = sum(len(process.descriptors) for process in processes)
    assert tab.ask("document.querySelectorAll('.row').length") == many
    # Each row has a curve of its own, or one that meets those of its neighbours.
    assert tab.ask("document.querySelectorAll('.bow, .way[class*=\" r\"]').length") == many


@pytest.mark.parametrize("seed", range(12))
def test_a_picture_of_anything_is_tidy(seed: int, tab: Tab, tmp_path: Path) -> None:
    snapshot, findings = chance(seed)
    path = tmp_path / "picture.svg"
    path.write_text(drawing.svg(snapshot, findings, fold=3))
    tab.show(path)
    tab.look(width=WIDE, height=TALL)
    assert faults(tab) == {}


@pytest.mark.parametrize("scene", SCENES)
def test_a_page_fits_each_window_and_is_legible(scene: str, tab: Tab, tmp_path: Path) -> None:
    tab.show(page(scene, tmp_path))
    for wide in (NARROW, WIDE):
        for dark in (False, True):
            tab.look(width=wide, height=TALL, dark=dark)
            assert tab.ask("document.scrollingElement.scrollWidth <= innerWidth"), wide
            # A part of the picture is outside of a narrow window.
            assert wide == NARROW or ask(tab, PALE) == [], dark
    # A picture is not made so small that it cannot be read: it is moved instead.
    tab.look(width=NARROW)
    small = "[...document.querySelectorAll('svg text')].map(one => one.getBoundingClientRect())"
    heights = cast(list[float], tab.ask(f"{small}.map(one => one.height)"))
    assert min(heights, default=9) > 8
    tab.look(width=PAPER, paper=True)
    fits = "document.querySelector('svg').getBoundingClientRect().right <= innerWidth + 1"
    assert tab.ask(fits) and tab.ask("document.scrollingElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scene", SCENES)
def test_a_page_is_calm_with_scripts_allowed(scene: str, tab: Tab, tmp_path: Path) -> None:
    path = page(scene, tmp_path)
    tab.show(path, scripts=True)
    assert tab.messages == []
    assert tab.requests == [path.as_uri()]


def test_a_screen_reader_is_told_the_picture_and_its_facts(tab: Tab, tmp_path: Path) -> None:
    snapshot, findings = SCENES["story"]()
    tab.show(page("story", tmp_path))
    nodes = tab.accessibility()
    (image,) = [one for one in nodes if one["role"]["value"] in ("image", "img")]
    # The description, too, is part of the name: older screen readers read no other.
    assert image["name"]["value"].startswith("3 processes, 4 open files")
    assert findings[0].sentence in image["name"]["value"]
    roles = [one["role"]["value"] for one in nodes]
    assert roles.count("rowheader") == 3 + sum(len(p.descriptors) for p in snapshot.processes)
    assert roles.count("columnheader") == 3 + 8 and "main" in roles
    assert [one["name"]["value"] for one in nodes if one["role"]["value"] == "heading"] == [
        "3 processes, 4 open files",
        "Findings and their evidence",
        "How to read the picture",
        "The picture as text",
    ]


def test_the_pointer_fades_the_curves_of_others_without_a_script(tab: Tab, tmp_path: Path) -> None:
    tab.show(picture("story", tmp_path))
    tab.look(width=WIDE, height=TALL)
    bright = (
        "[...document.querySelectorAll('.edge')].filter(one => getComputedStyle(one).opacity > 0.5)"
    )
    assert tab.ask(f"{bright}.length") == 9
    tab.ask("document.querySelectorAll('.edge, .box').forEach(e => e.style.transition = 'none')")

    def point(selector: str) -> object:
        centre = f"(b => [b.x + 30, b.y + 12])(document.querySelector('{selector}')" + (
            ".getBoundingClientRect())"
        )
        x, y = cast(list[float], tab.ask(centre))
        tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return tab.ask(f"{bright}.map(one => one.querySelector('title').textContent)")

    shown = cast(list[str], point(".table.t1"))
    assert len(shown) == 3 and all(one.startswith("cat") for one in shown)
    assert len(cast(list[str], point(".vnode.s0"))) == 3
    assert len(cast(list[str], point(".file.b1"))) == 2
    assert len(cast(list[str], point(".table.t1 .row"))) == 1


def test_no_character_is_wider_than_the_tables_say(tab: Tab, tmp_path: Path) -> None:
    path = tmp_path / "empty.html"
    path.write_text("<!DOCTYPE html><title>x</title>")
    tab.show(path)
    known = "".join(map(chr, range(32, 127))) + "…→·–×"
    for font, family in (
        *((Font("sans", 100, bold), SANS) for bold in (False, True)),
        (Font("mono", 100), MONO),
        (Font("mono", 100, bold=True), MONO),
    ):
        each = [name.strip(" '") for name in family.split(",")]
        for name in (family, *(f"'{one}', {each[-1]}" for one in each[:-1])):
            weight = "bold" if font.bold else "normal"
            measured = cast(
                list[float],
                tab.ask(
                    "(() => { const c = document.createElement('canvas').getContext('2d');"
                    f" c.font = `{weight} 100px {name}`;"
                    f" return [...{known!r}].map(one => c.measureText(one).width) }})()"
                ),
            )
            wider = [
                (one, size, width(one, font))
                for one, size in zip(known, measured, strict=True)
                if size > width(one, font) + 0.1
            ]
            assert wider == [], name


def test_what_is_not_tidy_is_found(tab: Tab, tmp_path: Path) -> None:
    """The questions have an answer when a picture is spoiled."""
    path = picture("story", tmp_path)
    text = path.read_text()
    spoiled = [
        ("boxes overlap", 'class="box file', 'transform="translate(0 -60)" class="box file'),
        ("outside of its box", ">missing close()<", f">missing close(){'!' * 60}<"),
        ("texts meet", ">stdin<", ">stdin and much, much more of it<"),
        ("curve ends nowhere", 'class="edge c0', 'transform="translate(3 0)" class="edge c0'),
        ("curve ends nowhere", 'class="curve bow', 'transform="translate(0 20)" class="curve bow'),
        ("pale", "#565d66", "#a0a5aa"),
    ]
    for name, old, new in spoiled:
        assert old in text
        path.write_text(text.replace(old, new, 2 if "close" in old or "box" in old else -1))
        tab.show(path)
        tab.look(width=WIDE, height=TALL)
        assert name in faults(tab), name


def test_a_wide_table_of_holders_still_ends_at_its_box(tab: Tab, tmp_path: Path) -> None:
    snapshot, _ = SCENES["thousand"]()
    few = replace(snapshot, processes=snapshot.processes[:60], containers=())
    path = tmp_path / "many.svg"
    path.write_text(drawing.svg(few, fold=None))
    tab.show(path)
    tab.look(width=WIDE, height=4 * TALL)
    assert faults(tab) == {}
