"""The status page in headless Chromium: it fits, is legible, accessible and calm.

Calm: no script, no error in the console, and nothing is asked of the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from kbuild.watch import page, state
from kbuild.watch.summary import Condition
from tests.browser import Browser, Tab, chromium
from tests.unit import statuses

NARROW, WIDE = 360, 1600
# On both sides of the width from which on tables are tables.
WIDTHS = (NARROW, 1024, 1025, WIDE)
LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3

# Elements that stick out of the window, or whose content sticks out of them.  What is only there
# for screen readers, and inline elements, which have no box of their own, do not count.
OVERFLOWING = """
[...document.body.querySelectorAll('*')].filter(one => {
  const style = getComputedStyle(one), box = one.getBoundingClientRect();
  if (!one.checkVisibility() || one.closest('thead') && getComputedStyle(
      one.closest('thead')).position === 'absolute') return false;
  const out = box.width > 0 && (box.right > innerWidth + 1 || box.left < -1);
  const inner = style.display !== 'inline' && one.scrollWidth > one.clientWidth + 1;
  return out || inner;
}).map(one => one.outerHTML.slice(0, 120))
.concat(document.scrollingElement.scrollWidth > innerWidth ? ['the page'] : [])
"""

# Texts with less contrast to what is behind them than wanted (WCAG 2.2, relative luminance).
PALE = """
(least => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = one => {
    for (; one; one = one.parentElement) {
      const found = channels(getComputedStyle(one).backgroundColor);
      if (found.length < 4 || found[3] === 1) return found;
      if (found[3] > 0) return [NaN, NaN, NaN];
    }
    return [255, 255, 255];
  };
  return [...document.body.querySelectorAll('*')].filter(one => one.checkVisibility() &&
    [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim())
  ).map(one => {
    const pair = [light(channels(getComputedStyle(one).color)), light(behind(one))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    return [ratio, one.outerHTML.slice(0, 120)];
  }).filter(([ratio]) => !(ratio >= least));
})(LEAST)
""".replace("LEAST", str(LEAST_CONTRAST))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Tab:
    return browser.tab()


def written(name: str, root: Path) -> Path:
    """Write the page of a day."""
    log = root / "build.log"
    log.write_text(f"{statuses.HOSTILE}\n{'x' * 900}\n{statuses.SECRET}\n")
    page.write(statuses.DAYS[name](log), root)
    return root / state.HOME / page.PAGE


@pytest.mark.parametrize("name", statuses.DAYS)
def test_it_fits_and_is_legible(name: str, tab: Tab, tmp_path: Path) -> None:
    tab.show(written(name, tmp_path))
    tab.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
    for width in WIDTHS:
        for dark in (False, True):
            tab.look(width=width, dark=dark)
            assert tab.ask("matchMedia('(prefers-color-scheme: dark)').matches") is dark
            assert tab.ask(OVERFLOWING) == [], (width, dark)
            assert tab.ask(PALE) == [], (width, dark)
    tab.look(width=720, paper=True)
    assert tab.ask(OVERFLOWING) == []
    assert tab.ask(PALE) == []


@pytest.mark.parametrize("name", statuses.DAYS)
def test_it_is_calm_with_scripts_allowed(name: str, tab: Tab, tmp_path: Path) -> None:
    path = written(name, tmp_path)
    tab.show(path, scripts=True)
    assert tab.messages == []
    assert {one for one in tab.requests if not one.startswith("data:")} == {path.as_uri()}
    assert str(tab.ask("document.title")).endswith("– cplayground-kernel")


def test_each_state_is_a_word_that_is_visible_without_scripts(tab: Tab, tmp_path: Path) -> None:
    seen: set[str] = set()
    for name in statuses.DAYS:
        root = tmp_path / name
        root.mkdir()
        tab.show(written(name, root))
        for width in (NARROW, WIDE):
            tab.look(width=width)
            states = tab.ask(
                "[...document.querySelectorAll('#kernels ~ * td .state')]"
                ".filter(one => one.checkVisibility()).map(one => one.innerText)"
            )
            # Without its sign: the word alone says it.
            seen |= {text.partition(" ")[2] for text in cast(list[str], states)}
            assert "Valid until" in str(tab.ask("document.body.innerText"))
    assert seen == {one.value for one in Condition}


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("name", ["good", "failed"])
def test_a_screen_reader_is_told_its_structure(
    name: str, width: int, tab: Tab, tmp_path: Path
) -> None:
    tab.show(written(name, tmp_path))
    tab.look(width=width)
    assert tab.ask("document.documentElement.lang") == "en"
    tab.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
    nodes = tab.accessibility()
    by_role: dict[str, list[dict[str, Any]]] = {}
    for one in nodes:
        by_role.setdefault(one["role"]["value"], []).append(one)
    for landmark in ("banner", "main", "contentinfo"):
        assert len(by_role[landmark]) == 1, landmark
    levels = [
        next(p["value"]["value"] for p in one["properties"] if p["name"] == "level")
        for one in by_role["heading"]
    ]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    tables = by_role["table"]
    assert tables and all(one["name"]["value"] for one in tables)
    # A card of a narrow screen is still a row with headers.
    count = cast(int, tab.ask("document.querySelectorAll('table').length"))
    assert len(tables) == count == len(by_role["caption" if "caption" in by_role else "Caption"])
    assert len(by_role["columnheader"]) >= 3 * count
    assert len(by_role["rowheader"]) == tab.ask("document.querySelectorAll('tbody tr').length")
    assert all(one["name"]["value"] for one in by_role["link"])


def test_paper_shows_what_is_folded_on_a_screen(tab: Tab, tmp_path: Path) -> None:
    hidden = "[...document.querySelectorAll('details table, details ul')].filter(one =>" + (
        " one.getBoundingClientRect().height === 0 || !one.checkVisibility("
        "{contentVisibilityAuto: true})).length"
    )
    path = written("failed", tmp_path)
    tab.show(path)
    assert cast(int, tab.ask(hidden)) > 0
    tab.look(width=720, paper=True)
    assert tab.ask(hidden) == 0


def test_what_does_not_fit_is_pale_or_is_not_calm_is_found(tab: Tab, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        "<!DOCTYPE html><title>x</title><body style='background: #fff'>"
        "<p style='color: #999'>pale</p><div style='width: 900px'>wide</div>"
        "<div style='width: 90px; overflow: hidden'><b style='display: block; width: 99px'>c</b>"
        "</div><img src='http://kernels.example/a.png' alt=''>"
        "<script>console.error('loud'); document.title = 'owned'</script>"
    )
    tab.show(path, scripts=True)
    tab.look(width=NARROW)
    assert "pale" in str(tab.ask(PALE)) and "wide" not in str(tab.ask(PALE))
    assert len(cast(list[str], tab.ask(OVERFLOWING))) == 3
    assert "loud" in str(tab.messages) and tab.ask("document.title") == "owned"
    assert "http://kernels.example/a.png" in tab.requests
    tab.show(path)
    assert tab.ask("document.title") == "x"
