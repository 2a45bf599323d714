"""The tool's parser agrees with the strict one of kbuild, with which it shares no code."""

from __future__ import annotations

import contextlib
import doctest
import gc
import json
from pathlib import Path
from unicodedata import category

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import cplayground
from cplayground.errors import RefusedTextError
from cplayground.names import unescaped
from cplayground.snapshot import Name, Snapshot
from kbuild.lab import procfile
from kbuild.lab.procfile import OpenFile, Process, ProcfileError, Signals
from tests import procfile_text
from tests.unit.test_procfile import (
    ACCEPTED,
    LISTINGS,
    NAMES,
    RECORDED,
    REFUSED,
    SEPARATORS,
    SETTINGS,
    as_json,
    basic,
)

# The one liberty: an older module left these separators as they are.
LIBERTY = [path for path in REFUSED if "-raw-" in path.stem]
# With the columns of the other form; the tool tells the two forms apart by itself.
OTHER_FORM = [path for path in REFUSED if path.stem in ("1-1-basic", "1-1-extended")]


def listing_of(snapshot: Snapshot) -> tuple[Process, ...]:
    """Return a snapshot as the strict parser would."""
    return tuple(
        Process(
            p.namespace,
            p.global_pid,
            p.pid,
            p.ppid,
            p.pgid,
            bytes(p.command),
            tuple(
                OpenFile(d.fd, d.close_on_exec, d.file.id, d.position, d.flags, bytes(d.path))
                for d in p.descriptors
            ),
            None if p.state is None else Signals(p.state, p.blocked or 0, p.pending or 0),
        )
        for p in snapshot.processes
    )


def strict(text: bytes) -> tuple[Process, ...]:
    """Parse with the strict parser, told what the tool finds out by itself."""
    return procfile.parse(text, extended=text.partition(b"\n")[0].count(b"\t") == 8)


def strict_place(text: bytes) -> tuple[int, int] | None:
    """Return the place of the error that the strict parser finds."""
    try:
        strict(text)
    except ProcfileError as error:
        return error.line, error.column
    return None


def tool_place(text: bytes) -> tuple[int, int] | None:
    try:
        cplayground.parse(text)
    except RefusedTextError as error:
        return error.line, error.column
    return None


def older(text: bytes) -> bytes:
    """Return the text as an older module wrote it, without escapes of separators."""
    for separator, escaped in SEPARATORS.items():
        text = text.replace(escaped, separator)
    return text


def newer(text: bytes) -> bytes:
    """Escape the separators, with which the strict parser accepts no text."""
    for separator, escaped in SEPARATORS.items():
        text = text.replace(separator, escaped)
    return text


@SETTINGS
@given(LISTINGS, st.booleans())
def test_every_valid_text_is_read_field_by_field(
    listing: tuple[Process, ...], extended: bool
) -> None:
    listing = listing if extended else basic(listing)
    text = procfile_text.format_records(listing)
    snapshot = cplayground.parse(text)
    assert listing_of(snapshot) == listing == strict(text)
    assert snapshot.extended == (extended and bool(listing))
    assert cplayground.parse(older(text)) == snapshot


@SETTINGS
@given(LISTINGS, st.booleans(), st.data())
def test_a_changed_text_is_refused_at_the_same_place(
    listing: tuple[Process, ...], extended: bool, data: st.DataObject
) -> None:
    text = bytearray(procfile_text.format_records(listing if extended else basic(listing)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        change = data.draw(st.sampled_from(("insert", "delete", "replace", "cut")))
        byte = data.draw(st.sampled_from(b"\n\t\\ 0123459abx-\x00\x7f\xff\xc2\x85\xe2\x80\xa8\xa9"))
        if change == "insert":
            text.insert(at, byte)
        else:
            end = data.draw(st.integers(at, len(text))) if change == "cut" else at + 1
            text[at:end] = bytes((byte,)) if change == "replace" else b""
    agree(bytes(text))


def agree(text: bytes) -> None:
    """Check that both parsers read the same, or find the first error at the same place."""
    written = newer(text)
    if written == text:
        assert tool_place(text) == strict_place(text)
    else:
        # A name may be too long only if it is escaped, and columns count written bytes.
        assert (tool_place(text) is None) == (strict_place(written) is None)
    if tool_place(text) is None:
        assert listing_of(cplayground.parse(text)) == strict(written)


def test_the_public_names_work_as_their_docstring_shows() -> None:
    assert doctest.testmod(cplayground).attempted > 5
    assert doctest.testmod(cplayground).failed == 0


@pytest.mark.parametrize("path", ACCEPTED, ids=lambda path: path.stem)
def test_the_conformance_set_is_read_as_it_says(path: Path) -> None:
    value = json.loads(path.with_suffix(".json").read_bytes())
    snapshot = cplayground.parse(path.read_bytes())
    read = as_json(listing_of(snapshot), value["fields"])
    assert json.dumps(read, indent=2) == json.dumps(value, indent=2)
    # A text without a process has no form.
    assert snapshot.extended == (value["fields"] == "extended" and bool(snapshot.processes))


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
def test_the_conformance_set_is_refused_at_its_place(path: Path) -> None:
    text = path.read_bytes()
    if path in LIBERTY:
        assert listing_of(cplayground.parse(text)) == strict(newer(text))
        return
    if path in OTHER_FORM:
        assert listing_of(cplayground.parse(text)) == strict(text)
        return
    line, column, _ = path.stem.split("-", 2)
    with pytest.raises(
        RefusedTextError, match=f"^a text: line {line}, column {column}: "
    ) as caught:
        cplayground.parse(text, origin="a text")
    assert (caught.value.line, caught.value.column) == (int(line), int(column))
    assert caught.value.status == 5


def test_the_liberty_is_there() -> None:
    assert (len(LIBERTY), len(OTHER_FORM)) == (4, 2)


def test_a_recorded_file_is_read() -> None:
    text = RECORDED.read_bytes()
    assert listing_of(cplayground.parse(text)) == strict(text)


def test_both_forms_in_one_text_are_refused() -> None:
    extended = b"%s\t2\t1\t0\t0\tR\t0\t0\tb\n\n" % (b"a" * 64)
    both = b"%s\t1\t1\t0\t0\ta\n\n%s" % (b"a" * 64, extended)
    with pytest.raises(RefusedTextError, match="line 3, column 1: 9 columns, not 6"):
        cplayground.parse(both)


def test_open_files_are_those_of_their_first_lines() -> None:
    snapshot = cplayground.parse((ACCEPTED[0].parent / "two-positions.procfile").read_bytes())
    opened = [one for process in snapshot.processes for one in process.descriptors]
    assert [file.number for file in snapshot.files] == list(range(1, len(snapshot.files) + 1))
    for file in snapshot.files:
        first, *others = (one for one in opened if one.file is file)
        assert (first.position, first.flags, first.path) == file[2:]
        assert any(one.position != file.position for one in others)


LARGE = procfile_text.format_records(
    [
        Process(
            "a" * 64,
            pid,
            1,
            0,
            0,
            b"large",
            tuple(OpenFile(fd, False, f"{fd // 2:064x}", fd, 0, b"/%d" % fd) for fd in range(3000)),
        )
        for pid in (1, 2)
    ]
)


def test_a_record_is_read_in_parts() -> None:
    assert len(LARGE) > 400_000
    snapshot = cplayground.parse(LARGE)
    assert listing_of(snapshot) == strict(LARGE)
    assert len(snapshot.files) == 1500


@SETTINGS
@given(st.integers(0, len(LARGE)), st.sampled_from([b"", b"\n", b"\t", b"\\", b"x", b"0", b"\n\n"]))
@example(LARGE.index(b"\n2999\t") + 1, b"")
@example(LARGE.index(b"\n2999\t") + 1, b"\n")
@example(len(LARGE) - 1, b"")
def test_a_changed_large_record_is_refused_at_the_same_place(at: int, put: bytes) -> None:
    agree(LARGE[:at] + put + LARGE[at + (not put) :])


@pytest.mark.parametrize("path", [b"/" + b"a" * 4095, b"/" + b"\\011" * 4095, b"/" + b"a" * 99999])
def test_a_path_that_is_too_long_is_refused(path: bytes) -> None:
    line = b"0\t0\t%s\t0\t00\t%s\n" % (b"b" * 64, path)
    agree(b"%s\t1\t1\t0\t0\ta\n%s\n" % (b"a" * 64, line))
    agree(b"%s\t1\t1\t0\t0\ta\n%s\n" % (b"a" * 64, line.replace(path, path[:2000])))


NUMBERS = [1 << 22, 1 << 30, 1 << 32, 1 << 63, 1 << 64]


@pytest.mark.parametrize("sign", ["", "-"])
def test_numbers_have_the_same_limits(sign: str) -> None:
    decimal = [f"{sign}{number - less}" for number in NUMBERS for less in (0, 1)]
    octal = [f"{sign}0{number - less:o}" for number in NUMBERS for less in (0, 1)]
    header = ["a" * 64, "1", "1", "0", "0", "R", "0", "0", "a"]
    line = ["0", "0", "b" * 64, "0", "00", "/"]
    for columns, places in ((header, (1, 2, 3, 4, 6, 7)), (line, (0, 3, 4))):
        for at in places:
            before = columns[at]
            for columns[at] in (*decimal, *octal, sign, sign + "0", sign + "9" * 5000):
                agree("{}\n{}\n\n".format("\t".join(header), "\t".join(line)).encode())
            columns[at] = before


@SETTINGS
@given(NAMES.filter(bool) | st.binary(min_size=1).filter(lambda name: b"\0" not in name))
@example(bytes(range(1, 256)))
@example(b"\x1b[31m\xe2\x80\xae\xc2\x85\\134")
def test_a_hostile_name_is_read_and_shown_reversibly(name: bytes) -> None:
    process = Process("a" * 64, 1, 1, 0, 0, name[:15], (OpenFile(0, False, "b" * 64, 0, 0, name),))
    (read,) = cplayground.parse(procfile_text.format_records([process])).processes
    assert (read.command, read.descriptors[0].path) == (name[:15], name)
    for shown in (read.command, read.descriptors[0].path):
        assert isinstance(shown, Name)
        # Python calls no space printable but the one of ASCII.
        assert all(one.isprintable() or category(one) == "Zs" for one in shown.text)
        assert unescaped(shown.text.encode()) == shown


@pytest.mark.parametrize("last", [b"", b"not a record\n"])
def test_only_a_large_text_stops_the_collector_and_it_is_on_again(
    monkeypatch: pytest.MonkeyPatch, last: bytes
) -> None:
    header, line = b"%064x\t2\t1\t0\t1\tsh\n" % 1, b"%d\t0\t%064x\t0\t00\t/a\n"
    large = header + b"".join(line % (fd, fd) for fd in range(60_000)) + b"\n" + last
    stopped: list[bool] = []
    disable = gc.disable

    def noted() -> None:
        stopped.append(True)
        disable()

    monkeypatch.setattr(gc, "disable", noted)
    cplayground.parse(header + b"\n")
    assert not stopped
    with pytest.raises(RefusedTextError) if last else contextlib.nullcontext():
        cplayground.parse(large)
    assert stopped and gc.isenabled()
