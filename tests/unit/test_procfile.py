"""The parser accepts the texts of the module, and refuses others with their position."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kbuild.lab import oracle, procfile
from kbuild.lab.procfile import OpenFile, Process, ProcfileError, Signals
from tests import procfile_text
from tests.topology.topology import O_CLOEXEC

RECORDED = Path(__file__).parent / "data" / "procfile" / "topology.procfile"
# For readers in any language; its README.md explains the names and the JSON.
CONFORMANCE = Path(__file__).parents[1] / "conformance"
ACCEPTED = sorted(CONFORMANCE.glob("*.procfile"))
REFUSED = sorted(CONFORMANCE.glob("refused*/*.procfile"))

SEPARATORS = {
    b"\xc2\x85": rb"\302\205",
    b"\xe2\x80\xa8": rb"\342\200\250",
    b"\xe2\x80\xa9": rb"\342\200\251",
}
# Pieces of texts, some of which occur in names.
TEXT_PARTS = [
    *rb"\302 \205 \342 \200 \250 \251 \134 \012 \000 \411 \01 \ 3".split(),
    *b"\xc2 \x85 \xe2 \x80 \xa8 \x7f".split(b" "),
]
# Any byte, with many of those that escapes consist of.
NAME_BYTES = st.integers(1, 255) | st.sampled_from(b"\\\xc2\x85\xe2\x80\xa8\xa9")
NAMES = st.lists(
    st.one_of(NAME_BYTES.map(lambda byte: bytes((byte,))), st.sampled_from(sorted(SEPARATORS)))
).map(b"".join)
IDS = st.binary(min_size=32, max_size=32).map(bytes.hex)
FILES = st.builds(
    OpenFile,
    fd=st.integers(0, (1 << 30) - 1),
    cloexec=st.booleans(),
    id=IDS,
    position=st.integers(-(1 << 63), (1 << 63) - 1),
    flags=st.integers(0, (1 << 32) - 1),
    path=NAMES.filter(bool),
)
SIGNALS = st.builds(
    Signals,
    state=st.sampled_from("RSDTtXZPI"),
    blocked=st.integers(0, (1 << 31) - 1).map(lambda bits: bits << 1),
    pending=st.integers(0, (1 << 31) - 1).map(lambda bits: bits << 1),
)
PROCESSES = st.builds(
    Process,
    namespace=IDS,
    pid=st.integers(1, (1 << 22) - 1),
    ns_pid=st.integers(1, (1 << 22) - 1),
    ns_ppid=st.integers(0, (1 << 22) - 1),
    ns_pgid=st.integers(0, (1 << 22) - 1),
    command=NAMES.map(lambda name: name[:15]),
    files=st.lists(FILES, max_size=4, unique_by=lambda file: file.fd).map(
        lambda files: tuple(sorted(files, key=lambda file: file.fd))
    ),
    extended=SIGNALS,
)
LISTINGS = st.lists(PROCESSES, max_size=4, unique_by=lambda process: process.pid).map(
    lambda processes: tuple(sorted(processes, key=lambda process: process.pid))
)
SETTINGS = settings(print_blob=True, deadline=None)


def basic(listing: tuple[Process, ...]) -> tuple[Process, ...]:
    return tuple(replace(process, extended=None) for process in listing)


@SETTINGS
@given(LISTINGS)
def test_what_is_formatted_is_read_back(listing: tuple[Process, ...]) -> None:
    assert procfile.parse(procfile_text.format_records(listing), extended=True) == listing
    assert procfile.parse(procfile_text.format_records(basic(listing))) == basic(listing)


@SETTINGS
@given(LISTINGS.filter(bool))
def test_the_other_fields_are_refused(listing: tuple[Process, ...]) -> None:
    with pytest.raises(ProcfileError, match="line 1, column 1: 9 columns, not 6"):
        procfile.parse(procfile_text.format_records(listing))
    with pytest.raises(ProcfileError, match="line 1, column 1: 6 columns, not 9"):
        procfile.parse(procfile_text.format_records(basic(listing)), extended=True)


@SETTINGS
@given(LISTINGS, st.booleans(), st.data())
def test_a_changed_text_is_refused_or_says_something_else(
    listing: tuple[Process, ...], extended: bool, data: st.DataObject
) -> None:
    """Each text has one meaning: every accepted text is written back byte for byte."""
    if not extended:
        listing = basic(listing)
    text = bytearray(procfile_text.format_records(listing))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        change = data.draw(st.sampled_from(("insert", "delete", "replace")))
        byte = data.draw(st.sampled_from(b"\n\t\\ 0123459abx-\x00\x7f\xff\xc2\x85\xe2\x80\xa8\xa9"))
        if change == "insert":
            text.insert(at, byte)
        elif at < len(text):
            text[at : at + 1] = b"" if change == "delete" else bytes((byte,))
    try:
        read = procfile.parse(bytes(text), extended=extended)
    except ProcfileError as error:
        assert 1 <= error.line <= text.count(b"\n") + 1
        assert error.column >= 1
    else:
        assert procfile_text.format_records(read) == bytes(text)


@SETTINGS
@given(NAMES | st.binary(max_size=60).filter(lambda name: b"\0" not in name))
@example(b"\n\n" + b"0" * 64 + b"\t1\t1\t0\t0\tforged\n")
@example(bytes(range(1, 256)))
@example(b"\xc2\xc2\x85\x85\xe2\x80\xe2\x80\xa8\xa9\\\xe2\x80\xa9\xe2\x80")
def test_no_name_can_look_like_anything_else(name: bytes) -> None:
    escaped = procfile_text.escape(name)
    assert not re.search(rb"[\x00-\x1f\x7f]", escaped)
    assert not any(separator in escaped for separator in SEPARATORS)
    assert procfile.unescape(escaped) == name


@pytest.mark.parametrize(("separator", "escaped"), SEPARATORS.items())
def test_a_separator_is_escaped_whole_and_its_parts_are_not(
    separator: bytes, escaped: bytes
) -> None:
    assert procfile_text.escape(b"a" + separator) == b"a" + escaped
    assert procfile_text.escape(b"\\" + separator) == rb"\134" + escaped
    for part in (separator[:-1], separator[1:], separator[-1:]):
        assert procfile_text.escape(part) == part
        assert procfile.unescape(part) == part
    for cut in range(1, len(escaped)):
        with pytest.raises(ProcfileError):
            procfile.unescape(escaped[:cut])
    for cut in range(4, len(escaped), 4):
        with pytest.raises(ProcfileError, match="column 1: "):
            procfile.unescape(escaped[cut:])
    # Within a separator, raw bytes and escapes cannot be mixed.
    for cut in range(1, len(separator)):
        for mixed in (separator[:cut] + escaped[4 * cut :], escaped[: 4 * cut] + separator[cut:]):
            with pytest.raises(ProcfileError, match=r"column \d+: \\\d{3} would not be escaped"):
                procfile.unescape(mixed)
    with pytest.raises(
        ProcfileError, match=rf"column 3: line separator U\+{ord(separator.decode()):04X}"
    ):
        procfile.unescape(b"ab" + separator)


@SETTINGS
@given(st.lists(st.sampled_from(TEXT_PARTS), max_size=6).map(b"".join))
def test_a_name_has_one_text(text: bytes) -> None:
    """A text is refused unless it is the escaped form of a name."""
    try:
        name = procfile.unescape(text)
    except ProcfileError as error:
        assert (error.line, 1 <= error.column <= len(text)) == (1, True)
    else:
        assert procfile_text.escape(name) == text


def test_each_byte_is_a_name() -> None:
    for byte in range(1, 256):
        name = bytes((byte,))
        special = byte < 0x20 or byte in (0x5C, 0x7F)
        assert procfile_text.escape(name) == (b"\\%03o" % byte if special else name)
        assert procfile.unescape(procfile_text.escape(name)) == name


def assert_one_line_for_every_reader(text: bytes) -> None:
    """A reader that splits text as Python does, also at U+2028, finds the same lines."""
    lines = text.decode("utf-8", "surrogateescape").splitlines(keepends=True)
    encoded = [line.encode("utf-8", "surrogateescape") for line in lines]
    assert encoded == re.findall(rb"[^\n]*\n", text)


@SETTINGS
@given(LISTINGS)
def test_every_reader_finds_the_same_lines(listing: tuple[Process, ...]) -> None:
    assert_one_line_for_every_reader(procfile_text.format_records(listing))


def reversible(name: bytes) -> str:
    """Return a name as the JSON of the conformance set writes it."""
    return "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte != 0x5C else f"\\{byte:03o}" for byte in name
    )


def as_json(listing: tuple[Process, ...], fields: str) -> object:
    """Return a listing in the form that the conformance set's README.md describes."""
    processes = []
    for p in listing:
        more: dict[str, object] = {}
        if p.extended is not None:
            signals = p.extended
            more = {
                "state": signals.state,
                "blocked": signals.blocked,
                "pending": signals.pending,
            }
        processes.append(
            {
                "namespace_id": p.namespace,
                "global_pid": p.pid,
                "pid": p.ns_pid,
                "ppid": p.ns_ppid,
                "pgid": p.ns_pgid,
                **more,
                "command": reversible(p.command),
                "files": [
                    {
                        "fd": f.fd,
                        "close_on_exec": f.cloexec,
                        "open_file_id": f.id,
                        "position": str(f.position),
                        "flags": f.flags,
                        "path": reversible(f.path),
                    }
                    for f in p.files
                ],
            }
        )
    return {"fields": fields, "processes": processes}


@pytest.mark.parametrize("path", ACCEPTED, ids=lambda path: path.stem)
def test_the_conformance_set_is_read_as_it_says(path: Path) -> None:
    expected = path.with_suffix(".json").read_bytes()
    assert expected.isascii()
    value = json.loads(expected)
    text = path.read_bytes()
    listing = procfile.parse(text, extended=value["fields"] == "extended")
    # Compared as texts, because True equals 1 in Python.
    assert json.dumps(as_json(listing, value["fields"]), indent=2) == json.dumps(value, indent=2)
    assert procfile_text.format_records(listing) == text
    assert_one_line_for_every_reader(text)


def test_the_conformance_set_is_described() -> None:
    described = re.findall(
        r"(?m)^\| `([a-z-]+)` \| [^|]* \|$", (CONFORMANCE / "README.md").read_text()
    )
    names = {path.stem for path in ACCEPTED}
    assert names <= set(described)
    assert {path.stem for path in CONFORMANCE.glob("*.json")} == names


def test_recorded_files_are_accepted() -> None:
    text = RECORDED.read_bytes()
    assert procfile_text.format_records(procfile.parse(text)) == text
    assert_one_line_for_every_reader(text)


def test_the_recorded_topology_is_what_was_built() -> None:
    """Every scenario of lab/programs/topology.c, as compared on Debian's 6.1 kernel."""
    listing = procfile.parse(RECORDED.read_bytes())
    assert len(listing) == 53
    assert sum(len(process.files) for process in listing) == 522
    commands = {process.command for process in listing}
    assert commands == {
        b"topology",
        b"",
        b"signals",
        b"a\tb\nc\\d\x7f\x01\xff\xc3\xa9",
        b"\xc2\x85\xe2\x80\xa8\xe2\x80\xa9",
        b"whole sequen\xe2\x80\xa9",
        b"cut after two\xe2\x80",
        b"cut after a by\xe2",
        b"cut after one.\xc2",
    }
    assert any(file.path == procfile.PATH_TOO_LONG for p in listing for file in p.files)


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
def test_refused_files_are_refused_at_their_place(path: Path) -> None:
    line, column, _ = path.stem.split("-", 2)
    with pytest.raises(ProcfileError) as caught:
        procfile.parse(path.read_bytes(), extended=path.parent.name == "refused-extended")
    assert (caught.value.line, caught.value.column) == (int(line), int(column))


EXTENDED = b"%s\t100\t1\t0\t1\tS\t2\t0\tinit\n\n" % (b"a" * 64)


@pytest.mark.parametrize(
    ("change", "column", "message"),
    [
        ((b"\tS\t", b"\tQ\t"), 76, "not the letter of a state"),
        ((b"\tS\t", b"\t\t"), 76, "not the letter of a state"),
        ((b"\tS\t", b"\tSS\t"), 76, "not the letter of a state"),
        ((b"\t2\t", b"\t3\t"), 78, "there is no signal 0"),
        ((b"\t2\t", b"\t-2\t"), 78, "in a number"),
        ((b"\t2\t", b"\t02\t"), 78, "leading zeros"),
        ((b"\t2\t", b"\t4294967296\t"), 78, "not in the range"),
        ((b"\t0\tinit", b"\t1\tinit"), 80, "there is no signal 0"),
        ((b"\t0\tinit", b"\t4294967298\tinit"), 80, "not in the range"),
        ((b"init", b"\\"), 82, "three octal digits"),
    ],
)
def test_extended_fields_are_refused_at_their_place(
    change: tuple[bytes, bytes], column: int, message: str
) -> None:
    (process,) = procfile.parse(EXTENDED, extended=True)
    assert process.extended == Signals("S", 1 << 1, 0)
    with pytest.raises(ProcfileError, match=message) as caught:
        procfile.parse(EXTENDED.replace(*change), extended=True)
    assert (caught.value.line, caught.value.column) == (1, column)


def test_the_corpus_is_there() -> None:
    assert len(ACCEPTED) >= 14
    assert len(REFUSED) >= 40


SEEN = (
    b"P 100 1 0 1 S 4200 0 4026532200 696e6974\n"
    b"F 0 1 7 5 2 2f61\n"
    b"F 3 0 7 5 2 !\n"
    b"P 101 2 1 1 T 0 100004000 4026532200 -\n"
    b"F 0 0 9 0 0 706970653a5b315d\n"
    b"end 5\n"
)
SHOWN = (
    Process(
        "a" * 64,
        100,
        1,
        0,
        1,
        b"init",
        (
            OpenFile(0, True, "1" * 64, 5, 2, b"/a"),
            OpenFile(3, False, "1" * 64, 5, 2, procfile.PATH_TOO_LONG),
        ),
        Signals("S", 1 << 15 | 1 << 10, 0),
    ),
    Process(
        "a" * 64,
        101,
        2,
        1,
        1,
        b"",
        (OpenFile(0, False, "2" * 64, 0, 0, b"pipe:[1]"),),
        # Signal 33 is pending too, but is not shown.
        Signals("T", 0, 1 << 15),
    ),
)


def test_the_oracle_agrees_with_an_equal_listing() -> None:
    assert oracle.differences(SHOWN, oracle.parse(SEEN)) == []


def changed_file(**changes: object) -> list[Process]:
    """Return the listing with another first descriptor."""
    first, *others = SHOWN[0].files
    return [replace(SHOWN[0], files=(replace(first, **changes), *others)), SHOWN[1]]  # type: ignore[arg-type]


def test_the_oracle_finds_close_on_exec_among_the_flags() -> None:
    """The kernel never shows it there, so the module must not."""
    found = oracle.differences(changed_file(flags=2 | O_CLOEXEC), oracle.parse(SEEN))
    assert found == ["process 100, descriptor 0: flags is '0o2000002', the kernel says '0o2'"]


def test_the_oracle_compares_no_close_on_exec_that_the_kernel_does_not_tell() -> None:
    unknown = oracle.parse(SEEN.replace(b"F 0 1", b"F 0 ?"))
    assert oracle.differences(SHOWN, unknown) == []
    assert oracle.differences(changed_file(cloexec=False), unknown) == []
    assert oracle.differences(changed_file(cloexec=False), oracle.parse(SEEN))


def test_the_oracle_does_not_miss_fields_that_are_not_shown() -> None:
    basic = [replace(process, extended=None) for process in SHOWN]
    assert oracle.differences(basic, oracle.parse(SEEN.replace(b"1 T", b"1 Z"))) == []


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        (SEEN.replace(b"P 101", b"P 102"), "process 102: not shown"),
        (SEEN.replace(b"P 101", b"P 102"), "process 101: does not exist"),
        (SEEN.replace(b"P 101 2", b"P 101 3"), "process 101: ns_pid is 2"),
        (SEEN.replace(b"2 1 1 T", b"2 7 1 T"), "process 101: ns_ppid is 1"),
        (SEEN.replace(b"2 1 1 T", b"2 1 7 T"), "process 101: ns_pgid is 1"),
        (SEEN.replace(b"696e6974", b"696e"), "process 100: command is b'init'"),
        (SEEN.replace(b"1 S", b"1 D"), "process 100: state is 'S'"),
        (SEEN.replace(b"S 4200", b"S 4000"), "process 100: blocked is '0x8400'"),
        (SEEN.replace(b"100004000", b"4000000"), "process 101: pending is '0x8000'"),
        (SEEN.replace(b"4026532200 -", b"4026532201 -"), "another namespace has the same id"),
        (SEEN.replace(b"F 3", b"F 4"), "descriptor 3: does not exist"),
        (SEEN.replace(b"F 3", b"F 4"), "descriptor 4: not shown"),
        (SEEN.replace(b"F 0 1", b"F 0 0"), "close-on-exec is True"),
        (SEEN.replace(b"7 5 2 2f61", b"7 6 2 2f61"), "position is 5"),
        (SEEN.replace(b"5 2 2f61", b"5 3 2f61"), "flags is '0o2'"),
        (SEEN.replace(b"2f61", b"2f62"), "path is b'/a'"),
        (SEEN.replace(b"2 !", b"2 2f61"), "path is b'(path too long)'"),
        (SEEN.replace(b"F 3 0 7", b"F 3 0 8"), "another open file has the same id"),
        (SEEN.replace(b"F 0 0 9", b"F 0 0 7"), "the same open file has another id"),
    ],
)
def test_the_oracle_names_each_difference(seen: bytes, message: str) -> None:
    assert any(message in line for line in oracle.differences(SHOWN, oracle.parse(seen)))


@pytest.mark.parametrize("seen", [b"", SEEN[:-6], SEEN.replace(b"end 5", b"end 4"), b"X\nend 1\n"])
def test_the_oracle_refuses_half_an_observation(seen: bytes) -> None:
    with pytest.raises(ValueError, match="observe"):
        oracle.parse(seen)
