"""The oracle of tests under flux: it accepts allowed listings and finds each violation."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from kbuild.lab.procfile import OpenFile, Process, Signals
from tests import flux

PLACE = b"/tmp/flux"
A = OpenFile(100, False, "a" * 64, 11, 0o102002, b"/tmp/flux/1/a")
B = OpenFile(101, False, "b" * 64, 22, 0o104000, b"/tmp/flux/1/b")
FIRST = Process("1" * 64, 50, 1, 0, 0, b"init", (A, B, replace(B, fd=103)), Signals("S", 0, 0))
WORKER = Process(
    "1" * 64,
    60,
    7,
    1,
    7,
    b"flux",
    (A, B, replace(B, fd=102), replace(A, fd=104, cloexec=True), replace(B, fd=169)),
    Signals("R", 0, 0),
)
OTHER = Process(
    "2" * 64,
    40,
    1,
    0,
    0,
    b"init",
    (
        OpenFile(200, False, "c" * 64, 11, 0o102002, b"/tmp/flux/2/a"),
        OpenFile(201, False, "d" * 64, 22, 0o104000, b"/tmp/flux/2/b"),
        OpenFile(202, False, "d" * 64, 22, 0o104000, b"/tmp/flux/2/b"),
    ),
    Signals("S", 0, 0),
)
LISTING = (OTHER, FIRST, WORKER)
FIRSTS = (50, 40)


def with_file(which: int, /, **changes: object) -> Process:
    files = tuple(
        replace(f, **changes) if f.fd == which else f  # type: ignore[arg-type]
        for f in WORKER.files
    )
    return replace(WORKER, files=files)


def test_allowed_listings_have_no_violation() -> None:
    assert flux.violations(LISTING, FIRSTS, PLACE) == []
    # in the middle of execve(2)
    assert flux.violations((OTHER, FIRST, with_file(104, cloexec=False)), FIRSTS, PLACE) == []
    ended = replace(WORKER, files=(), extended=Signals("Z", 0, 0))
    assert flux.violations((OTHER, FIRST, ended), FIRSTS, PLACE) == []


def test_a_process_that_never_execs_has_no_file_about_to_be_closed() -> None:
    first = replace(FIRST, files=(*FIRST.files, replace(A, fd=104)))
    found = flux.violations((OTHER, first, WORKER), FIRSTS, PLACE)
    assert len(found) == 1
    assert "close-on-exec False" in found[0]


@pytest.mark.parametrize(
    ("worker", "message"),
    [
        (replace(WORKER, namespace="3" * 64), "2: .* is in no container"),
        (replace(WORKER, command=b"host"), "2: .* no process has this name"),
        (replace(WORKER, ns_ppid=0), "2: .* the parent is 0"),
        (replace(WORKER, ns_pid=1), "2: .* the parent is 1"),
        (replace(WORKER, ns_pid=1, ns_ppid=0), "2: .* the first process has another name"),
        (replace(WORKER, ns_pgid=3), "2: .* the group is 3"),
        (replace(WORKER, extended=Signals("Z", 0, 0)), "5: .* has descriptors"),
        (with_file(169, fd=170), "5: .* container 1 never had it"),
        (with_file(169, fd=69), "5: .* container 1 never had it"),
        (with_file(104, path=b"/tmp/flux/2/a"), "5: .* its path"),
        (with_file(104, path=b"/tmp/flux/1/c"), "5: .* its path"),
        (with_file(169, cloexec=True), "3: .* close-on-exec True"),
        (with_file(102, path=A.path, position=11, flags=A.flags, id=A.id), "3: .* it is b'a'"),
        (with_file(102, fd=105), "4: .* on neither"),
        (with_file(100, cloexec=True), "3: .* close-on-exec True"),
        (with_file(104, position=22), "3: .* position 22"),
        (with_file(104, flags=0o104000), "3: .* flags 104000"),
        (with_file(104, id="b" * 64), "6: .* has two ids"),
        (with_file(104, id="9" * 64), "6: .* has two ids"),
    ],
)
def test_each_violation_is_found(worker: Process, message: str) -> None:
    found = flux.violations((OTHER, FIRST, worker), FIRSTS, PLACE)
    assert any(re.match(message, line) for line in found), found


def test_a_process_or_file_that_never_went_away_must_be_listed() -> None:
    assert any("7: container 2" in x for x in flux.violations((FIRST, WORKER), FIRSTS, PLACE))
    less = replace(FIRST, files=FIRST.files[1:])
    found = flux.violations((OTHER, less, WORKER), FIRSTS, PLACE)
    assert any(line.startswith("7: process 50") for line in found)


def test_containers_are_told_apart() -> None:
    same = replace(OTHER, namespace="1" * 64)
    assert any(
        "2 containers have 1 namespaces" in line
        for line in flux.violations((same, FIRST, WORKER), FIRSTS, PLACE)
    )
    files = (replace(OTHER.files[0], id="a" * 64), *OTHER.files[1:])
    assert flux.violations((replace(OTHER, files=files), FIRST), FIRSTS, PLACE) == [
        "6: two open files have the same id"
    ]


def test_the_guests_output_is_parsed() -> None:
    output = b"container 1 50\ncontainer 2 40\nread 3\na\n\nread 0\nmade 9 80\n"
    assert flux.parse(output) == flux.Readings((50, 40), (b"a\n\n", b""), 9, 80)


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"container 1 50\nread 3\na\n",
        b"container 2 50\nmade 1 1\n",
        b"read 1\n\nmade 1 1\nread 0\n",
        b"nonsense\n",
    ],
)
def test_incomplete_output_is_refused(output: bytes) -> None:
    with pytest.raises(ValueError, match="flux"):
        flux.parse(output)


def test_the_summary_counts_changes() -> None:
    moved = replace(WORKER, namespace="2" * 64, extended=Signals("Z", 0, 0))
    count = flux.summary([LISTING, LISTING, (OTHER, FIRST, moved)])
    assert count == {
        "readings": 3,
        "records": 9,
        "descriptors": 33,
        "zombies": 1,
        "processes": 3,
        "changes": 1,
        "reused pids": 1,
    }
