"""Topologies: requests and views of plans, and the detection of wrong listings."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from kbuild.lab import oracle, procfile
from kbuild.lab.procfile import OpenFile, Process, Signals
from tests import procfile_text
from tests.topologies import TOPOLOGIES
from tests.topology import building, planning
from tests.topology import topology as t
from tests.topology.planning import ExpectedProcess, Plan
from tests.topology.topology import Container, End, Rest, Signal, Topology

PROJECT = Path(__file__).resolve().parents[2]
PLACE = b"/tmp/place"
SETTINGS = settings(
    print_blob=True, deadline=None, max_examples=40, suppress_health_check=list(HealthCheck)
)
REGULAR = t.O_LARGEFILE


def plan(*firsts: t.Process, names: tuple[bytes, ...] = (b"a", b"b")) -> Plan:
    containers = tuple(Container(first) for first in firsts)
    return planning.plan(Topology(names, containers), PLACE, io_uring=True)


def only(*ops: t.Op) -> ExpectedProcess:
    """Return the one process of a plan that does these operations."""
    (process,) = plan(t.Process(ops)).processes
    return process


def spawn(*ops: t.Op, end: End = End.HOLD, inside: bool = False, shared: bool = False) -> t.Spawn:
    return t.Spawn(t.Process(ops, end), inside, shared)


def shown(plan: Plan) -> tuple[tuple[Process, ...], tuple[int, ...]]:
    """Return the listing that a plan foresees, with arbitrary pids and numbers; and the pids."""
    pids = tuple(range(1000, 1000 + plan.slots))

    def path(expected: planning.ExpectedPath | None) -> bytes:
        if expected is None:
            return b"not foreseen"
        number = b""
        if expected.number_of is not None:
            kind, key = expected.number_of
            number = b"%d" % (pids[key] if kind == "pid" else 70_000 + key)
        return expected.before + number + expected.after

    return (
        tuple(
            Process(
                namespace=f"{0xA000 + p.namespace:064x}",
                pid=pids[p.slot],
                ns_pid=p.ns_pid,
                ns_ppid=p.ns_ppid,
                ns_pgid=p.ns_pgid,
                command=p.command,
                files=tuple(
                    OpenFile(
                        f.fd,
                        f.cloexec,
                        f"{0xB000 + f.file:064x}",
                        f.position,
                        f.flags,
                        path(f.path),
                    )
                    for f in p.files
                ),
                # These may be pending or not: they are not foreseen.
                extended=Signals(
                    p.state,
                    p.blocked,
                    p.pending
                    | 1 << planning.SIGCHLD
                    | (1 << planning.SIGKILL if p.state == "Z" else 0),
                ),
            )
            for p in plan.processes
        ),
        pids,
    )


# Requests.


def unpack(request: bytes) -> tuple[list[tuple[int, ...]], list[bytes], int]:
    """Parse a request as build_topology.c does."""
    size, ops, names, slots = struct.unpack_from("<IIII", request)
    assert size == len(request)
    at = 16 + 24 * ops
    found = [struct.unpack_from("<IIIIQ", request, 16 + 24 * n) for n in range(ops)]
    texts = []
    for _ in range(names):
        (length,) = struct.unpack_from("<H", request, at)
        texts.append(request[at + 2 : at + 2 + length])
        at += 2 + length
    assert at == size
    return found, texts, slots


def bodies(ops: Sequence[tuple[int, ...]], at: int, end: int) -> None:
    """Check that a process's operations end with END, and where its parent goes on."""
    while at < end:
        code, _, length, *_ = ops[at]
        at += 1
        if code in (planning.Code.SPAWN.value, planning.Code.THREAD.value):
            assert ops[at + length - 1][0] == planning.Code.END.value
            bodies(ops, at, at + length - 1)
            at += length
        else:
            assert code != planning.Code.END.value or at < end


@SETTINGS
@given(TOPOLOGIES)
def test_every_topology_has_a_plan(topology: Topology) -> None:
    made = planning.plan(topology, PLACE, io_uring=False)
    ops, names, slots = unpack(made.request)
    assert slots == made.slots
    assert all(name.endswith(b"\0") for name in names)
    assert all(b"\0" not in name[:-1] for name in names)
    used = [op[1] for op in ops if op[0] in (planning.Code.SPAWN.value, planning.Code.THREAD.value)]
    assert used == list(range(slots))
    assert made == planning.plan(topology, PLACE, io_uring=False)
    listing, _ = shown(made)
    assert procfile.parse(procfile_text.format_records(listing), extended=True) == listing


def test_bodies_are_nested() -> None:
    ops, _, _ = unpack(
        plan(t.Process((spawn(spawn(), t.StartThread((spawn(),))), t.NewGroup()))).request
    )
    bodies(ops, 0, len(ops))
    assert [op[0] for op in ops].count(planning.Code.END.value) == 5


def test_the_program_knows_the_same_numbers() -> None:
    source = (PROJECT / "tests" / "guest" / "build_topology.c").read_text(encoding="utf-8")
    body = re.search(r"enum code \{(.*?)\};", source, re.DOTALL)
    ends = re.search(r"enum end \{(.*?)\};", source)
    assert body and ends
    numbered = re.compile(r"\b([A-Z_]+) = (\d+)")
    assert dict(numbered.findall(body[1])) == {c.name: str(c.value) for c in planning.Code}
    assert dict(numbered.findall(ends[1])) == {e.name: str(e.value) for e in End}


def test_nonsense_is_refused() -> None:
    for names in ((), (b"",), (b"a/b",), (b".",), (b"a\0b",), (b"x" * 256,)):
        with pytest.raises(ValueError, match="names"):
            plan(t.Process(), names=names)


# Foreseen views, by the rules of the system calls.


def test_pids_parents_and_groups() -> None:
    first = t.Process(
        (
            spawn(t.NewSession(), spawn(t.NewGroup())),
            spawn(spawn(), end=End.REAPED),
            spawn(spawn(), inside=True),
            spawn(end=End.ZOMBIE),
        )
    )
    found = {
        (p.namespace, p.ns_pid): (p.ns_ppid, p.ns_pgid, p.state) for p in plan(first).processes
    }
    assert found == {
        (1, 1): (0, 0, "S"),
        (1, 2): (1, 2, "S"),
        (1, 3): (2, 3, "S"),
        # Its parent was 4, which has been reaped.
        (1, 5): (1, 0, "S"),
        # A first process, which is 6 in the outer namespace, and its child, which is 7.
        (2, 1): (0, 0, "S"),
        (2, 2): (1, 0, "S"),
        (1, 8): (1, 0, "Z"),
    }


def test_a_subreaper_adopts() -> None:
    adopted = spawn(t.BecomeSubreaper(), spawn(spawn(), end=End.ZOMBIE))
    parents = {p.ns_pid: p.ns_ppid for p in plan(t.Process((adopted,))).processes}
    assert parents == {1: 0, 2: 1, 3: 2, 4: 2}


def test_the_end_of_a_first_process_is_the_end_of_all() -> None:
    first = t.Process((spawn(), spawn(spawn(), inside=True)), End.ZOMBIE)
    (process,) = plan(first).processes
    assert (process.ns_pid, process.state, process.files) == (1, "Z", ())


def test_a_guest_of_a_namespace_has_no_parent_there() -> None:
    wanted = Topology((b"a",), (Container(t.Process((spawn(),))), Container(t.Process(), joins=0)))
    *_, joined = planning.plan(wanted, PLACE, io_uring=True).processes
    assert (joined.namespace, joined.ns_pid, joined.ns_ppid, joined.ns_pgid) == (1, 3, 0, 0)


def test_descriptors_and_open_files() -> None:
    process = only(
        t.Open(0, 2 | t.O_APPEND | t.O_CLOEXEC | t.O_TRUNC),  # 1
        t.Write(1, 10),
        t.Duplicate(1, 1),  # 2
        t.Seek(2, 4),
        t.DuplicateOnto(0, 70, True),
        t.DuplicateFrom(0, 70, False),  # 71
        t.Close(0),
        t.Pipe(t.O_DIRECT | t.O_NONBLOCK),  # 0 and 3
    )
    seen = [(f.fd, f.cloexec, f.position, f.flags) for f in process.files]
    regular = 2 | t.O_APPEND | REGULAR
    assert seen == [
        (0, False, 0, t.O_NONBLOCK),
        (1, True, 4, regular),
        (2, False, 4, regular),
        (3, False, 0, 1 | t.O_NONBLOCK | t.O_DIRECT),
        (70, True, 0, 2 | REGULAR),
        (71, False, 0, 2 | REGULAR),
    ]
    assert [f.file for f in process.files][1:3] == [2, 2]
    assert process.files[4].file == process.files[5].file == 1
    assert process.files[0].path == planning.ExpectedPath(b"pipe:[", ("pipe", 3), b"]")


@pytest.mark.parametrize(
    ("ops", "path"),
    [
        ((t.Open(0, 0),), b"/tmp/place/a"),
        ((t.Open(0, 0), t.Unlink(0)), b"/tmp/place/a (deleted)"),
        ((t.Open(0, 0), t.Rename(0, 1)), b"/tmp/place/b"),
        ((t.Open(0, 0), t.Rename(0, 1), t.Open(0, 0), t.Rename(0, 1)), b"/tmp/place/b (deleted)"),
        ((t.Open(0, 0), t.Link(0, 1), t.Rename(0, 1), t.Unlink(1)), b"/tmp/place/a"),
        ((t.EnterDirectory(1, 2), t.Open(0, 0)), b"/tmp/place/b/b/a"),
        ((t.OpenDevice(0, 0),), b"/dev/null"),
        ((t.Memfd(0, False),), b"/memfd:a (deleted)"),
        ((t.Anonymous("inotify", False, False),), b"anon_inode:inotify"),
    ],
)
def test_paths(ops: tuple[t.Op, ...], path: bytes) -> None:
    assert only(*ops).files[1].path == planning.ExpectedPath(path)


def test_a_path_that_is_too_long() -> None:
    (process,) = plan(
        t.Process((t.EnterDirectory(0, 17), t.Open(1, 0))), names=(b"x" * 250, b"f")
    ).processes
    assert process.files[1].path == planning.ExpectedPath(procfile.PATH_TOO_LONG)


def test_tables_shared_and_not() -> None:
    first = t.Process((spawn(t.Open(0, 0), shared=True), spawn(t.UnshareFiles(), t.Close(0))))
    one, sharer, other = plan(first).processes
    assert [f.fd for f in one.files] == [f.fd for f in sharer.files] == [0, 1]
    assert [f.fd for f in other.files] == [1]


def test_the_table_of_a_dead_leader_is_its_first_threads() -> None:
    first = t.Process(
        (
            t.StartThread((t.UnshareFiles(), t.Open(0, 0))),
            t.StartThread((t.Open(1, 0), t.Open(1, 0))),
            spawn(),
        ),
        End.DEAD_LEADER,
    )
    leaderless, child = plan(first).processes
    assert (leaderless.state, len(leaderless.files)) == ("Z", 2)
    # The two threads have taken 2 and 3.
    assert (child.ns_pid, child.ns_ppid, len(child.files)) == (4, 1, 3)


def test_exec_closes_unshares_and_ends_threads() -> None:
    process = only(
        t.SetName(b"x"),
        t.Open(0, t.O_CLOEXEC),
        t.Block(frozenset((5, 9))),
        t.StartThread((t.Open(1, 0), t.Exec(), t.Memfd(0, False))),
        t.Close(0),  # is never reached
    )
    assert process.command == b"build_topology"
    assert [f.fd for f in process.files] == [0, 1, 2]
    assert process.blocked == 1 << 5


def test_who_waits_in_vfork() -> None:
    def vfork(*ops: t.Op, end: End = End.HOLD) -> t.Spawn:
        return t.Spawn(t.Process(ops, end), False, False, vfork=True)

    def states(*ops: t.Op) -> dict[int, tuple[str, int]]:
        return {p.ns_pid: (p.state, len(p.files)) for p in plan(t.Process(ops)).processes}

    # Later operations are never reached, and neither are those after the child's child.
    assert states(vfork(vfork(), t.Open(0, 0)), t.Open(0, 0)) == {
        1: ("D", 1),
        2: ("D", 1),
        3: ("S", 1),
    }
    assert states(vfork(end=End.ZOMBIE), t.Open(0, 0)) == {1: ("S", 2), 2: ("Z", 0)}
    assert states(vfork(t.Exec()), t.Open(0, 0)) == {1: ("S", 2), 2: ("S", 1)}
    assert states(t.StartThread((vfork(),)), t.Open(0, 0)) == {1: ("S", 2), 3: ("S", 1)}


def test_what_a_write_moves() -> None:
    def position(*ops: t.Op) -> int:
        (process,) = plan(t.Process((t.SetFlags(0, t.O_APPEND), *ops))).processes
        return process.files[0].position

    # A write of no bytes does not move the position; other writes move it to their end.
    assert position(t.Seek(0, 1), t.Write(0, 0)) == 1
    assert position(t.Seek(0, 1), t.Write(0, 3)) == 3
    # At such a position the kernel refuses to append, too.
    far = (1 << 63) - 1
    assert position(t.Seek(0, far), t.Write(0, 1)) == far


def test_signals_that_stay() -> None:
    def pending(process: t.Process) -> int:
        return plan(t.Process((t.Spawn(process, False, False),))).processes[1].pending

    signals = tuple(Signal(number, False) for number in (1, 15, 23, 33, 18, 9))
    assert pending(t.Process(signals=signals)) == 0
    assert pending(t.Process(rest=Rest.STOPPED, signals=signals)) == 1 << 1 | 1 << 15
    blocked = t.Block(frozenset((1, 23, 33)))
    assert pending(t.Process((blocked,), signals=signals)) == 1 << 1 | 1 << 23
    # The thread does not block it, and would take it.
    with_thread = (t.StartThread(()), blocked)
    assert pending(t.Process(with_thread, signals=signals)) == 0
    private = (Signal(1, True),)
    assert pending(t.Process(with_thread, signals=private)) == 1 << 1


# Detection of wrong listings.


@SETTINGS
@given(TOPOLOGIES)
def test_what_is_foreseen_agrees_with_itself(topology: Topology) -> None:
    made = planning.plan(topology, PLACE, io_uring=True)
    listing, pids = shown(made)
    assert building.unexpected(listing, made, pids) == []
    basic = [replace(process, extended=None) for process in listing]
    assert building.unexpected(basic, made, pids) == []


def damaged(listing: tuple[Process, ...], data: st.DataObject) -> tuple[Process, ...]:
    """Change one field of a foreseen listing."""
    at = data.draw(st.integers(0, len(listing) - 1))
    process = listing[at]
    assert process.extended is not None
    changes = {
        "lost": None,
        "pid": replace(process, pid=process.pid + 5000),
        "ns_pid": replace(process, ns_pid=process.ns_pid + 1),
        "ns_ppid": replace(process, ns_ppid=process.ns_ppid + 1),
        "ns_pgid": replace(process, ns_pgid=process.ns_pgid + 1),
        "command": replace(process, command=process.command[:-1] + b"?"),
        "state": replace(process, extended=replace(process.extended, state="D")),
        "blocked": replace(
            process, extended=replace(process.extended, blocked=process.extended.blocked ^ 2)
        ),
        "pending": replace(
            process, extended=replace(process.extended, pending=process.extended.pending ^ 2)
        ),
    }
    if len({p.namespace for p in listing}) < len(listing):
        shared = [p for p in listing if sum(p.namespace == q.namespace for q in listing) > 1]
        if process in shared:
            changes["namespace"] = replace(process, namespace="f" * 64)
    if process.files:
        n = data.draw(st.integers(0, len(process.files) - 1))
        one = process.files[n]

        def with_file(*new: OpenFile) -> Process:
            return replace(process, files=(*process.files[:n], *new, *process.files[n + 1 :]))

        changes |= {
            "fd lost": with_file(),
            "fd": with_file(replace(one, fd=one.fd + 300_000)),
            "cloexec": with_file(replace(one, cloexec=not one.cloexec)),
            "position": with_file(replace(one, position=one.position ^ 1)),
            "flags": with_file(replace(one, flags=one.flags ^ t.O_APPEND)),
        }
        if one.path != b"not foreseen":
            changes["path"] = with_file(replace(one, path=one.path + b"?"))
        everywhere = [f.id for p in listing for f in p.files]
        if everywhere.count(one.id) > 1:
            changes["id"] = with_file(replace(one, id="e" * 64))
        other = next((identity for identity in everywhere if identity != one.id), None)
        if other is not None:
            changes["same id"] = with_file(replace(one, id=other))
    changed = changes[data.draw(st.sampled_from(sorted(changes)))]
    return (*listing[:at], *((changed,) if changed else ()), *listing[at + 1 :])


@settings(SETTINGS, max_examples=100)
@given(TOPOLOGIES, st.data())
def test_any_one_thing_that_is_wrong_is_found(topology: Topology, data: st.DataObject) -> None:
    made = planning.plan(topology, PLACE, io_uring=True)
    listing, pids = shown(made)
    wrong = damaged(listing, data)
    assume(wrong != listing)
    assert building.unexpected(wrong, made, pids)


def kernel_says(listing: Sequence[Process]) -> bytes:
    """Return a view in the form of kernel_view.h that agrees with a listing."""

    def name(text: bytes) -> str:
        return "!" if text == procfile.PATH_TOO_LONG else text.hex() or "-"

    lines = []
    for p in listing:
        assert p.extended is not None
        lines.append(
            f"P {p.pid} {p.ns_pid} {p.ns_ppid} {p.ns_pgid} {p.extended.state}"
            f" {p.extended.blocked >> 1:x} {p.extended.pending >> 1:x}"
            f" {int(p.namespace, 16)} {name(p.command)}"
        )
        lines += [
            f"F {f.fd} {int(f.cloexec)} {int(f.id, 16)} {f.position} {f.flags:o} {name(f.path)}"
            for f in p.files
        ]
    return "".join(f"{line}\n" for line in [*lines, f"end {len(lines)}"]).encode()


class Replayed:
    """A program that gives one answer."""

    def __init__(self, *lines: bytes) -> None:
        self.lines = [*lines, b""]
        self.written = b""

    def read_line(self, timeout_s: float) -> bytes:
        assert timeout_s == 7
        return self.lines.pop(0)

    def write(self, data: bytes) -> None:
        self.written += data


def answer(text: bytes, view: bytes, pids: Sequence[int]) -> bytes:
    words = [text.hex() or "-", view.hex(), *map(str, pids)]
    return f"built {' '.join(words)}\n".encode()


@settings(SETTINGS, max_examples=100)
@given(TOPOLOGIES, st.data())
def test_a_whole_round(topology: Topology, data: st.DataObject) -> None:
    """From a topology to a comparison, through requests; a wrong listing is found twice."""
    made = planning.plan(topology, PLACE, io_uring=True)
    listing, pids = shown(made)
    wrong = damaged(listing, data)
    for text in (listing, wrong):
        program = Replayed(
            b"ready 1\n", answer(procfile_text.format_records(text), kernel_says(listing), pids)
        )
        builder = building.Builder(program, PLACE, timeout_s=7)
        assert builder.plan(topology) == made
        built = builder.build(made)
        assert program.written == made.request
        if text == listing:
            same = building.compare(built, made, extended=True)
            assert same.differences == ()
            assert same.processes == len(listing)
            assert same.descriptors == sum(len(process.files) for process in listing)
            continue
        try:
            result = building.compare(built, made, extended=True)
        except procfile.ProcfileError:
            continue  # the order of pids or descriptors is wrong
        for who in ("the kernel: ", "the plan: "):
            assert any(line.startswith(who) for line in result.differences)


def test_what_cannot_be_built_is_said() -> None:
    program = Replayed(b"ready 0\n", b"failed slot 3: no\n")
    builder = building.Builder(program, PLACE, timeout_s=7)
    made = builder.plan(Topology((b"a",), (Container(t.Process()),)))
    with pytest.raises(building.NotBuiltError, match="slot 3: no"):
        builder.build(made)
    with pytest.raises(building.NotBuiltError, match="b''"):
        builder.build(made)


def test_half_an_answer_is_not_taken() -> None:
    cut = kernel_says(shown(plan(t.Process()))[0])[:-7]
    program = Replayed(b"ready 1\n", answer(b"", cut, [1]))
    builder = building.Builder(program, PLACE, timeout_s=7)
    with pytest.raises(ValueError, match="observe"):
        builder.build(plan(t.Process()))


def test_the_kernels_view_is_the_oracles() -> None:
    listing, _ = shown(plan(t.Process((t.Open(0, 0), spawn()))))
    assert oracle.differences(listing, oracle.parse(kernel_says(listing))) == []
