"""Pipes, shared open files, parts of a snapshot, and what changed between two."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cplayground
from cplayground import Change, Container, Filter, Snapshot, UsageError
from cplayground.snapshot import Holder
from kbuild.lab.procfile import OpenFile, Process
from tests import procfile_text
from tests.unit.test_procfile import LISTINGS, RECORDED, SETTINGS, basic

RECORD = cplayground.parse(RECORDED.read_bytes())
READ, WRITE, BOTH, O_PATH = os.O_RDONLY, os.O_WRONLY, os.O_RDWR, 0o10000000


def file(fd: int, number: int, path: bytes, flags: int = READ, position: int = 0) -> OpenFile:
    return OpenFile(fd, False, f"{number:064x}", position, flags, path)


def process(pid: int, *files: OpenFile, namespace: str = "a", command: bytes = b"x") -> Process:
    return Process(namespace * 64, pid, pid - 100, 0, 0, command, files)


def snapshot(*processes: Process) -> Snapshot:
    return cplayground.parse(procfile_text.format_records(processes))


def places(holders: Sequence[Holder]) -> list[tuple[int, int]]:
    return [(one.process.global_pid, one.descriptor.fd) for one in holders]


TWO = snapshot(
    process(101, file(0, 1, b"/dev/pts/0", BOTH), file(1, 2, b"pipe:[7]", WRITE), command=b"cat"),
    process(
        102,
        file(0, 3, b"pipe:[7]"),
        file(1, 1, b"/dev/pts/0", BOTH),
        file(2, 4, b"socket:[9]", BOTH),
        command=b"sort",
    ),
    process(201, file(0, 5, b"/data/a\nb"), file(1, 1, b"/dev/pts/0", BOTH), namespace="b"),
    process(202, namespace="b", command=b"\xff\\"),
)
NAMED = replace(
    TWO,
    containers=(
        Container("web", "c0ffee" * 10, "podman", "", (101, 102)),
        Container("db", "c0ffff" * 10, "podman", "", (201, 202)),
    ),
)


def test_a_pipe_has_its_two_ends() -> None:
    (pipe,) = TWO.pipes()
    assert pipe.path == b"pipe:[7]"
    assert places(pipe.readers) == [(102, 0)]
    assert places(pipe.writers) == [(101, 1)]


def test_the_mode_tells_the_ends_of_a_pipe() -> None:
    flags = [READ, WRITE, BOTH, O_PATH, READ | os.O_NONBLOCK, WRITE | os.O_APPEND]
    files = [file(fd, fd + 1, b"pipe:[1]", mode) for fd, mode in enumerate(flags)]
    (pipe,) = snapshot(process(101, *files)).pipes()
    assert [fd for _, fd in places(pipe.readers)] == [0, 2, 4]
    assert [fd for _, fd in places(pipe.writers)] == [1, 2, 5]


def test_a_file_with_the_name_of_a_pipe_is_none() -> None:
    assert snapshot(process(101, file(0, 1, b"/pipe:[1]"))).pipes() == ()


def test_shared_open_files_have_all_holders() -> None:
    (shared,) = TWO.shared()
    assert (shared.file.number, shared.file.path) == (1, b"/dev/pts/0")
    assert places(shared.holders) == [(101, 0), (102, 1), (201, 1)]


@SETTINGS
@given(LISTINGS)
def test_each_descriptor_holds_its_open_file(listing: tuple[Process, ...]) -> None:
    read = snapshot(*basic(listing))
    shared = {one.file.number: len(one.holders) for one in read.shared()}
    held = [one.file.number for p in read.processes for one in p.descriptors]
    assert shared == {number: held.count(number) for number in held if held.count(number) > 1}


def chosen(conditions: Filter, whole: Snapshot = TWO) -> list[tuple[int, list[int]]]:
    part = cplayground.select(whole, conditions)
    held = {one.file for p in part.processes for one in p.descriptors}
    # Open files keep the numbers that the whole snapshot gave them.
    assert part.files == tuple(sorted(held)) == tuple(one for one in whole.files if one in held)
    return [(p.global_pid, [one.fd for one in p.descriptors]) for p in part.processes]


CAT, SORT, DATA = (101, [0, 1]), (102, [0, 1, 2]), (201, [0, 1])
BARE: tuple[int, list[int]] = (202, [])


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (Filter(), [CAT, SORT, DATA, BARE]),
        (Filter(pids=(102,)), [SORT]),
        (Filter(pids=(201, 101)), [CAT, DATA]),
        (Filter(ns_pids=(1, 102)), [CAT, BARE]),
        (Filter(ns_pids=(9999,)), []),
        (Filter(commands=("?ort",)), [SORT]),
        (Filter(commands=("*t", "x")), [CAT, SORT, DATA]),
        (Filter(commands=(os.fsdecode(b"\xff\\"),)), [BARE]),
        (Filter(paths=("/dev/*",)), [(101, [0]), (102, [1]), (201, [1])]),
        (Filter(paths=("/data/*b", "pipe:*")), [(101, [1]), (102, [0]), (201, [0])]),
        (Filter(kinds=("socket",)), [(102, [2])]),
        (Filter(kinds=("socket", "pipe")), [(101, [1]), (102, [0, 2])]),
        (Filter(kinds=("pipe",), commands=("cat",)), [(101, [1])]),
        (Filter(kinds=("pipe",), paths=("/dev/*",)), []),
        (Filter(containers=("a" * 64,)), [CAT, SORT]),
        (Filter(containers=("bbbb",)), [DATA, BARE]),
        (Filter(containers=("aaaa", "bbbb"), pids=(101, 202)), [CAT, BARE]),
    ],
)
def test_all_conditions_hold(conditions: Filter, expected: list[tuple[int, list[int]]]) -> None:
    assert chosen(conditions) == expected


@pytest.mark.parametrize("name", ["web", "c0ffee" * 10, "c0ffee"])
def test_a_container_has_a_name_and_an_id(name: str) -> None:
    assert chosen(Filter(containers=(name,)), NAMED) == [CAT, SORT]
    part = NAMED.container(name)
    assert part.containers == NAMED.containers[:1]
    assert part.shared()[0].holders == NAMED.shared()[0].holders[:2]


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (Filter(containers=("mail",)), "no container mail"),
        (Filter(containers=("c0",)), "no container c0"),  # too short for an id
        (Filter(containers=("c0ff",)), "c0ff means several containers"),
        (Filter(pids=(1,)), "no process 1"),
        (Filter(kinds=("sock",)), "no kind sock"),
    ],
)
def test_a_condition_that_names_nothing_is_an_error(conditions: Filter, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        cplayground.select(NAMED, conditions)
    assert caught.value.status == 2
    assert caught.value.hint


def test_a_part_of_a_container_keeps_its_name() -> None:
    part = cplayground.select(NAMED, Filter(pids=(102,)))
    assert [(one.name, one.global_pids) for one in part.containers] == [("web", (102,))]


def changes(before: Snapshot, after: Snapshot) -> list[tuple[str, int, int]]:
    found = []
    for one in before.diff(after):
        holder = one.after or one.before
        assert holder is not None
        assert (one.before is None, one.after is None) == (
            one.what == "opened",
            one.what == "closed",
        )
        found.append((one.what, *places([holder])[0]))
    return found


def test_changes_of_descriptors_are_found() -> None:
    before = snapshot(
        process(101, file(0, 1, b"/a"), file(1, 2, b"/b"), file(2, 3, b"/c"), file(4, 5, b"/e")),
        process(102, file(0, 9, b"/x")),
    )
    after = snapshot(
        process(101, file(0, 7, b"/a"), file(2, 3, b"/c", position=10), file(3, 4, b"/d")),
        process(103, file(0, 9, b"/x"), file(1, 9, b"/x")),
    )
    assert changes(before, after) == [
        ("replaced", 101, 0),
        ("closed", 101, 1),
        ("moved", 101, 2),
        ("opened", 101, 3),
        ("closed", 101, 4),
        ("closed", 102, 0),
        ("opened", 103, 0),
        ("opened", 103, 1),
    ]


def test_a_shared_open_file_moves_once() -> None:
    def at(position: int) -> Snapshot:
        ends = [file(fd, 1, b"/a", position=position) for fd in (0, 1)]
        return snapshot(process(101, *ends), process(102, *ends))

    (change,) = at(5).diff(at(25))
    assert change == Change("moved", change.before, change.after)
    assert change.before and change.after
    assert change.after.descriptor.position - change.before.descriptor.position == 20
    assert places([change.after]) == [(101, 0)]


def test_the_access_mode_tells_an_open_file_that_got_an_old_id() -> None:
    def opened(flags: int) -> Snapshot:
        return snapshot(process(101, file(0, 1, b"/a", flags)))

    assert changes(opened(READ), opened(WRITE)) == [("replaced", 101, 0)]
    # fcntl(2) sets these flags of a file that stays open.
    assert changes(opened(WRITE), opened(WRITE | os.O_APPEND | os.O_NONBLOCK)) == []


def test_a_pid_that_is_used_again_is_another_process() -> None:
    before = snapshot(process(101, file(0, 1, b"/a")))
    after = snapshot(process(101, file(0, 1, b"/a"), namespace="b"))
    assert changes(before, after) == [("closed", 101, 0), ("opened", 101, 0)]


def test_a_program_that_calls_exec_is_the_same_process() -> None:
    before = snapshot(process(101, file(0, 1, b"/a")))
    after = snapshot(process(101, file(0, 1, b"/a"), command=b"other"))
    assert changes(before, after) == []


@SETTINGS
@given(LISTINGS, LISTINGS)
def test_differences_are_the_same_backwards(
    one: tuple[Process, ...], other: tuple[Process, ...]
) -> None:
    first, second = snapshot(*basic(one)), snapshot(*basic(other))
    assert first.diff(first) == ()
    back = {"opened": "closed", "closed": "opened"}
    there = [(back.get(what, what), pid, fd) for what, pid, fd in changes(first, second)]
    assert sorted(changes(second, first)) == sorted(there)


@given(st.sets(st.sampled_from([p.global_pid for p in RECORD.processes]), min_size=1))
def test_parts_of_a_recorded_text_lose_nothing(pids: set[int]) -> None:
    part = cplayground.select(RECORD, Filter(pids=tuple(pids)))
    assert part.processes == tuple(p for p in RECORD.processes if p.global_pid in pids)
    kinds = [cplayground.select(part, Filter(kinds=(kind,))) for kind in cplayground.KINDS]
    assert sum(len(p.descriptors) for one in kinds for p in one.processes) == sum(
        len(p.descriptors) for p in part.processes
    )
