"""The pictures as text: well-formed, deterministic, complete; order and places of the boxes.

``python -m tests.unit.test_tool_drawing`` writes the kept pictures of tests/stories again, and
those of the documents.
"""

from __future__ import annotations

import re
import subprocess
import sys
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cplayground import drawing, parse
from cplayground.drawing import style
from cplayground.drawing.crowd import crowd
from cplayground.drawing.order import Edge, Order, crossings, ordered, placed
from cplayground.drawing.sheet import Sheet, ranges, sheet
from cplayground.drawing.text import Font, clean, shortened, width, wrapped
from cplayground.findings import Finding
from cplayground.names import unescaped
from cplayground.snapshot import Snapshot
from tests.unit import drawings
from tests.unit.drawings import SCENES, Maker

PROJECT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"
LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3
MONO = Font("mono", 13)
STORIES = sorted((PROJECT / "tests/stories").glob("*.procfile"))
# The documents' pictures of recorded stories, with what check finds in a text.
SHOWN = [
    PROJECT / f"docs/{place}/pictures/{name}.svg"
    for place, name in (
        ("howto", "pipeline-of-five"),
        ("howto", "two-containers"),
        ("results", "redirect"),
        ("results", "sixty-descriptors"),
    )
]


def root(
    snapshot: Snapshot, findings: tuple[Finding, ...] = (), *, fold: int | None = drawing.FOLD
) -> ET.Element:
    return ET.fromstring(drawing.svg(snapshot, findings, fold=fold))


def texts(element: ET.Element, name: str = "text") -> list[str]:
    return ["".join(one.itertext()) for one in element.iter(SVG + name)]


def of_class(element: ET.Element, name: str) -> Iterator[ET.Element]:
    return (one for one in element.iter() if name in one.get("class", "").split())


def hidden(text: str) -> set[str]:
    """Characters that a reader would not see, or that change how others are read."""
    kinds = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    return {one for one in text if unicodedata.category(one) in kinds} - {"\n"}


# Names and sentences


NAMES = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([b"pipe:[1]", b"socket:[2]", b"</svg>", b"]]>", b"<!--", b"&#0;", b"/a\\b"]),
).map(lambda name: name.replace(b"\0", b"\x01"))
SENTENCES = st.text(alphabet=st.characters(), max_size=60)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(NAMES, min_size=1, max_size=6),
    st.lists(NAMES, min_size=1, max_size=3),
    SENTENCES,
    st.booleans(),
)
def test_no_name_breaks_a_picture_or_reaches_it_raw(
    paths: list[bytes], commands: list[bytes], sentence: str, crowded: bool
) -> None:
    make = Maker()
    files = dict(enumerate(make.file(path or b"x") for path in paths))
    for pid in range(1, 31 if crowded else 2):
        make.process(pid, pid, 0, commands[pid % len(commands)], files)
    finding = Finding("warning", sentence, None, (), (), (sentence,))
    snapshot = make.snapshot()
    picture = drawing.svg(snapshot, (finding,))
    ET.fromstring(picture)
    assert not hidden(picture)
    # The page is also well-formed XML, so that no name can open or close an element.
    page = drawing.html(snapshot, (finding,))
    names = {one.tag.rpartition("}")[2] for one in ET.fromstring(page).iter()}
    assert not names & {"script", "b", "img", "a"} and not hidden(page)
    graph = drawing.dot(snapshot, (finding,))
    assert not hidden(graph)
    for label in re.findall(r"label=<(.*)>[];]", graph):
        ET.fromstring(f"<label>{label}</label>")
        assert "\\" not in label


def test_a_whole_name_can_be_read_from_the_title() -> None:
    snapshot, findings = drawings.hostile()
    titles = [line for one in texts(root(snapshot, findings), "title") for line in one.split("\n")]
    lines = [file.path.text for file in snapshot.files]
    for file, shown in zip(snapshot.files, lines, strict=True):
        assert clean(shown) in titles
        assert unescaped(clean(shown).encode()) == file.path


@given(st.text(max_size=80).map(clean), st.floats(30, 300))
def test_a_shortened_text_fits_and_keeps_both_ends(text: str, most: float) -> None:
    short = shortened(text, MONO, most)
    assert width(short, MONO) <= most or not text
    if short != text:
        head, _, tail = short.partition("…")
        assert text.startswith(head) and (text.endswith(tail) or "…" in text)


@given(st.binary(min_size=20, max_size=60), st.floats(30, 200))
def test_no_escape_is_cut(name: bytes, most: float) -> None:
    from cplayground.names import shown

    short = shortened(clean(shown(name.replace(b"\0", b"\1"))), MONO, most)
    assert not re.search(r"\\(?![0-7]{3})", short)


@given(SENTENCES.map(clean), st.floats(80, 400))
def test_wrapped_lines_fit_and_lose_no_word(text: str, most: float) -> None:
    lines = wrapped(text, Font("sans", 14), most)
    assert all(width(one, Font("sans", 14)) <= most for one in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_a_list_is_wrapped_between_its_items() -> None:
    lines = wrapped("5 deleted files, 12 sockets, 1 file", Font("sans", 12), 110, listed=True)
    assert lines == ("5 deleted files,", "12 sockets, 1 file")


def test_groups_of_one_command_tell_how_they_differ() -> None:
    make = Maker()
    for pid in range(1, 31):
        watch = {1: make.file(b"anon_inode:inotify")} if pid > 20 else {}
        make.process(pid, pid, 0, b"web", {0: make.file(b"/a"), **watch})
    (card,) = crowd(make.snapshot()).cards
    assert [row.kinds for row in card.alike] == ["no inotify, 1 file", "1 inotify, 1 file"]


def test_ranges_are_short() -> None:
    assert ranges([3, 4, 5, 9, 7, 8]) == "3–5, 7–9"
    assert ranges([1, 2]) == "1, 2"
    assert ranges([1, 3, 5], 2) == "1, 3, …"


# Pictures


@pytest.mark.parametrize("story", STORIES, ids=lambda path: path.stem)
def test_the_picture_is_the_one_that_is_kept(story: Path) -> None:
    assert parse(story.read_bytes()).svg() == story.with_suffix(".svg").read_text("utf-8")


def shown(picture: Path) -> str:
    """Return what ``cplayground draw --from`` makes of the story that a picture shows."""
    snapshot = parse((PROJECT / "tests/stories" / f"{picture.stem}.procfile").read_bytes())
    return snapshot.svg(snapshot.check())


@pytest.mark.parametrize("picture", SHOWN, ids=lambda path: path.stem)
def test_the_picture_of_a_document_is_what_the_tool_draws(picture: Path) -> None:
    assert shown(picture) == picture.read_text("utf-8")


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("fold", [drawing.FOLD, None])
def test_a_picture_stands_alone(scene: str, fold: int | None) -> None:
    snapshot, findings = SCENES[scene]()
    if fold is None and scene == "thousand":
        snapshot = snapshot.__class__(snapshot.processes[:60], snapshot.files)
    picture = drawing.svg(snapshot, findings, fold=fold)
    element = ET.fromstring(picture)
    assert element.get("role") == "img"
    labels = element.get("aria-labelledby", "").split()
    described = {one.get("id"): "".join(one.itertext()) for one in element}
    assert all(described[label] for label in labels)
    page = drawing.html(snapshot, findings, fold=fold)
    for text in (picture, page):
        named = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?:|url\(|@import|<script|<image|href|src=", named)


def test_pictures_do_not_depend_on_the_order_of_sets() -> None:
    program = (
        "import hashlib\nfrom cplayground import drawing\nfrom tests.unit.drawings import SCENES\n"
        "for scene in SCENES.values():\n"
        "    for draw in (drawing.svg, drawing.html, drawing.dot):\n"
        "        print(hashlib.sha256(draw(*scene()).encode()).hexdigest())\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(PROJECT), "PYTHONUTF8": "1"},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_the_missing_close_is_marked_at_its_descriptors_and_told_below() -> None:
    snapshot, findings = drawings.story()
    element = root(snapshot, findings)
    flawed = list(of_class(element, "flaw"))
    assert len(flawed) == 2
    assert [texts(one, "title")[0] for one in flawed] == [
        "story:17/4 (missing close()) → pipe:[41822]",
        "sort:19/4 (missing close()) → pipe:[41822]",
    ]
    (told,) = of_class(element, "finding")
    assert findings[0].sentence == " ".join(texts(told)[1:])
    # Both rows and the one that waits have the number of the sentence.
    assert len(list(of_class(element, "badge"))) == 4
    assert findings[0].evidence[0] in drawing.html(snapshot, findings)


def test_a_note_is_told_but_not_red() -> None:
    snapshot, (finding,) = drawings.story()
    element = root(snapshot, (finding._replace(level="note"),))
    assert not list(of_class(element, "flaw")) and not list(of_class(element, "badge"))
    assert len(list(of_class(element, "finding"))) == 1
    warned = root(snapshot, (finding._replace(level="warning"),))
    assert texts(warned).count("missing close()?") == 2


def test_a_few_notes_are_told_and_the_others_counted() -> None:
    snapshot, (finding,) = drawings.story()
    notes = tuple(finding._replace(level="note", sentence=f"Note {n}.") for n in range(9))
    element = root(snapshot, (finding, *notes))
    assert len(list(of_class(element, "finding"))) == 4
    assert "and 6 notes more: cplayground check" in texts(element)


def boxes(made: Sheet) -> list[tuple[str, str, str, int]]:
    return [(one.mode, " ".join(one.flags), one.position, one.holders) for one in made.boxes]


def test_an_open_file_tells_its_mode_position_and_holders() -> None:
    made = sheet(drawings.redirect()[0])
    assert boxes(made) == [("rw", "", "", 4), ("r", "", "0", 1), ("w", "append", "812", 2)]
    bash, sort = made.tables
    assert [row.notes for row in bash.rows][3] == ("close-on-exec",)
    assert [row.fds for row in sort.rows] == [(0,), (1,), (2,)]


def test_an_open_file_that_moved_during_the_reading_has_two_positions() -> None:
    make = Maker()
    file = make.file(b"/log", 0, 7)
    first = make.process(1, 1, 0, b"a", {3: file})
    later = first.descriptors[0]._replace(position=1234)
    second = first._replace(global_pid=2, pid=2, descriptors=(later,))
    made = sheet(Snapshot((first, second), (file,)))
    assert [one.position for one in made.boxes] == ["7 to 1,234"]


def test_one_path_in_two_containers_is_two_vnodes() -> None:
    made = sheet(drawings.containers()[0])
    names = [one.name for one in made.stacks]
    assert names.count("/dev/null") == 2 and names.count("/var/log/shared/app.log") == 1
    assert [(one.name, one.about) for one in made.groups] == [
        ("web", "docker"),
        ("database", "podman · shop/database-0"),
    ]


def test_two_open_files_of_one_path_share_a_vnode() -> None:
    make = Maker()
    files = {3: make.file(b"/a"), 4: make.file(b"/a"), 5: make.file(b"/b (deleted)")}
    make.process(1, 1, 0, b"x", {**files, 6: make.file(b"/b (deleted)")})
    assert [len(one.boxes) for one in sheet(make.snapshot()).stacks] == [2, 1, 1]


def test_descriptors_that_nobody_shares_fold_into_one_row() -> None:
    snapshot, _ = drawings.sixty()
    folded = sheet(snapshot, fold=6)
    server, worker = folded.tables
    assert [row.fds for row in server.rows[:4]] == [(0,), (1,), (2,), (3,)]
    assert server.rows[4].fds == tuple(range(4, 60)) and server.rows[4].box is None
    assert server.rows[4].notes == ("56 that nobody shares", "40 sockets, 16 files")
    assert len(worker.rows) == 4
    assert len(sheet(snapshot, fold=56).tables[0].rows) == 60
    assert len(sheet(snapshot).tables[0].rows) == 60
    element = root(snapshot, fold=None)
    assert len(list(of_class(element, "row"))) == 64


def test_what_fork_left_to_both_folds_into_one_row_of_each() -> None:
    made = sheet(drawings.forked()[0], fold=6)
    assert [table.rows[3].fds for table in made.tables] == [tuple(range(3, 60))] * 2
    (many,) = (one for one in made.boxes if one.files > 1)
    assert (many.files, many.holders) == (57, 2)


def test_what_a_finding_names_is_not_folded() -> None:
    snapshot, _ = drawings.sixty()
    server = snapshot.processes[0]
    held = drawings.holder(server, 30)
    finding = Finding("error", "x", None, (), (held,), ())
    rows = sheet(snapshot, (finding,), fold=6).tables[0].rows
    assert [row.missing for row in rows if row.fds == (30,)] == [(1,)]


def test_many_processes_are_cards_with_groups_and_a_list_of_what_is_shared() -> None:
    snapshot, findings = drawings.thousand()
    made = crowd(snapshot, findings)
    assert [card.processes for card in made.cards] == [50] * 20
    assert [(one.size, one.command, one.pids) for one in made.cards[0].alike] == [
        (40, "worker", "2–41"),
        (9, "cron", "42–50"),
        (1, "tini", "1"),
    ]
    assert [(one.name, one.how) for one in made.common] == [("/var/log/all.log", "w, append")]
    assert made.common[0].holders == (("app-3", 50), ("app-4", 50))
    assert {n for n, card in enumerate(made.cards) for one in card.alike if one.shares} == {3, 4}
    assert [one.size for one in made.cards[5].alike if one.marks] == [1]
    element = root(snapshot, findings)
    # Seventeen containers are alike; three have something that the others have not.
    assert "17 containers alike" in texts(element)
    assert len(list(of_class(element, "card"))) == 4
    assert len(list(of_class(element, "alike"))) == 3 + 3 + 3 + 4
    assert "/var/log/all.log" in drawing.html(snapshot, findings)


def test_a_pipe_between_two_containers_is_shared() -> None:
    make = Maker()
    read, write = make.pipe(5)
    make.process(1, 1, 0, b"a", {1: write}, namespace="a")
    make.process(2, 1, 0, b"b", {0: read}, namespace="b")
    (pipe,) = crowd(make.snapshot()).common
    assert (pipe.name, pipe.how, len(pipe.holders)) == ("pipe:[5]", "r and w", 2)


def test_the_page_has_the_same_facts_as_text() -> None:
    snapshot, findings = drawings.story()
    page = drawing.html(snapshot, findings)
    rows = ["".join(one.itertext()) for one in ET.fromstring(page).iter("tr")]
    descriptors = sum(len(process.descriptors) for process in snapshot.processes)
    assert len(rows) == 1 + len(snapshot.processes) + 1 + descriptors
    assert "sort:19521217" in rows
    assert "sort:1943w3pipe:[41822]missing close()" in rows
    assert f"<h1>3 processes, {len(snapshot.files)} open files</h1>" in page


def test_dot_has_each_curve() -> None:
    snapshot, findings = drawings.story()
    graph = drawing.dot(snapshot, findings)
    assert len(re.findall(r"^  p\d+:r\d+:e -> f\d+:w ", graph, re.MULTILINE)) == 12
    assert len(re.findall(r"^  f\d+:e -> v\d+:w;", graph, re.MULTILINE)) == 4
    assert graph.count("penwidth=3") == 2


# Order and places


@st.composite
def sheets(draw: st.DrawFn) -> tuple[list[Edge], list[int], list[int]]:
    groups = sorted(draw(st.lists(st.integers(0, 2), min_size=1, max_size=6)))
    stacks = draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    edges = []
    for table in range(len(groups)):
        for row in range(draw(st.integers(0, 4))):
            stack = draw(st.integers(0, len(stacks) - 1))
            edges.append(Edge(table, row, stack, draw(st.integers(0, stacks[stack] - 1))))
    return edges, groups, stacks


@settings(deadline=None)
@given(sheets())
def test_an_order_is_one_and_has_no_more_crossings(
    drawn: tuple[list[Edge], list[int], list[int]],
) -> None:
    edges, groups, stacks = drawn
    order = ordered(edges, groups, stacks)
    assert sorted(order.tables) == list(range(len(groups)))
    assert sorted(order.stacks) == list(range(len(stacks)))
    assert [sorted(inner) for inner in order.boxes] == [list(range(size)) for size in stacks]
    # Tables of a group stay together.
    met = [groups[table] for table in order.tables]
    assert sum(a != b for a, b in pairwise(met)) == len(set(groups)) - 1
    assert crossings(edges, order) == counted(edges, order)


def counted(edges: list[Edge], order: Order) -> int:
    """Count crossings pair by pair."""

    def places(edge: Edge) -> tuple[tuple[int, int], tuple[int, int]]:
        inner = order.boxes[edge.stack].index(edge.box)
        left = (order.tables.index(edge.table), edge.row)
        return left, (order.stacks.index(edge.stack), inner)

    found = 0
    for one, other in combinations(edges, 2):
        (a, b), (c, d) = places(one), places(other)
        found += (a < c and b > d) or (a > c and b < d)
    return found


def test_stacks_are_ordered_as_their_rows_are() -> None:
    edges = [Edge(0, row, 4 - row, 0) for row in range(5)]
    order = ordered(edges, [0], [1] * 5)
    assert order.stacks == (4, 3, 2, 1, 0) and crossings(edges, order) == 0


def test_tables_keep_their_order_unless_another_halves_the_crossings() -> None:
    # A parent in the middle would save one crossing of three.
    assert sheet_order(drawings.pipeline()[0]) == (0, 1, 2, 3, 4, 5)
    # Two processes with exchanged files: nothing crosses if one of them moves.
    edges = [Edge(0, 0, 1, 0), Edge(1, 0, 0, 0), Edge(2, 0, 0, 0), Edge(2, 1, 1, 0)]
    assert crossings(edges, ordered(edges, [0, 0, 0], [1, 1])) == 0


def sheet_order(snapshot: Snapshot) -> tuple[int, ...]:
    element = root(snapshot)
    tops = []
    for at, table in enumerate(of_class(element, "table")):
        rect = table.find(SVG + "rect")
        assert rect is not None
        tops.append((float(rect.get("y", "")), at))
    return tuple(at for _, at in sorted(tops))


@given(
    st.lists(
        st.tuples(st.floats(-500, 500), st.floats(1, 90), st.floats(0, 30)), min_size=1, max_size=12
    )
)
def test_boxes_of_a_column_keep_their_gaps(items: list[tuple[float, float, float]]) -> None:
    wanted, heights, gaps = zip(*items, strict=True)
    tops = placed(wanted, heights, gaps)
    assert min(tops) >= 0
    for at in range(1, len(tops)):
        assert tops[at] >= tops[at - 1] + heights[at - 1] + gaps[at] - 1e-6


def test_boxes_are_where_they_are_wanted_if_there_is_room() -> None:
    assert placed([10, 50, 100], [20, 20, 20], [5, 5, 5]) == pytest.approx((10, 50, 100))
    assert placed([50, 50], [20, 20], [0, 10]) == pytest.approx((35, 65))


# Colours


def light(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [style.LIGHT, style.DARK], ids=["light", "dark"])
def test_curves_and_texts_stand_out(scheme: style.Scheme) -> None:
    for colour in (*scheme.processes, scheme.flaw):
        assert contrast(colour, scheme.paper) >= LEAST_CONTRAST
        assert contrast(colour, scheme.on_colour) >= LEAST_CONTRAST
    for behind in (scheme.paper, scheme.box, scheme.frame, scheme.fold, scheme.flaw_wash):
        assert contrast(scheme.ink, behind) >= LEAST_CONTRAST
        assert contrast(scheme.flaw, behind) >= LEAST_CONTRAST
        if behind != scheme.flaw_wash:
            assert contrast(scheme.soft, behind) >= LEAST_CONTRAST


def test_two_processes_in_a_row_differ_in_colour_and_in_dashes() -> None:
    looks = [(at % style.COLOURS, at % len(style.DASHES)) for at in range(12)]
    assert len(set(looks)) == 12
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in pairwise(looks))


if __name__ == "__main__":
    for one in STORIES:
        one.with_suffix(".svg").write_text(parse(one.read_bytes()).svg(), encoding="utf-8")
    for picture in SHOWN:
        picture.write_text(shown(picture), encoding="utf-8")
