"""The proof that processes wait for each other for ever, of facts that are made by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cplayground.facts import DENIED, End, Host, Moment, Seen, Thread, wait
from cplayground.findings import check
from cplayground.proving import rings
from cplayground.snapshot import Container, Descriptor, Name, OpenFile, Process, Snapshot

STACK = "0x7ffd87100c08 0x7f3cfbb1d503"
PIPE = Name(b"pipe:[12]")


def reads(fd: int) -> Moment:
    return Moment("S", 77, (3, 1), "pipe_read", f"0 {fd:#x} 0x1 0x1 0x0 0x0 0x0 {STACK}")


def waits(child: int) -> Moment:
    argument = child & 0xFFFFFFFFFFFFFFFF
    return Moment("S", 77, (3, 1), "do_wait", f"61 {argument:#x} 0x0 0x0 0x0 0x0 0x0 {STACK}")


RESTS = Moment("S", 77, (3, 1), "hrtimer_nanosleep", "")
DEAD = Moment("Z", 77, (3, 1), "", "")


def process(pid: int, *moments: Moment, parent: int = 1, pids: tuple[int, ...] = ()) -> Seen:
    threads = tuple(
        Thread(pid + 1000 * number, pid, moment, moment) for number, moment in enumerate(moments)
    )
    return Seen(pid, parent, pids or (pid,), 0, Name(b"p"), "p", 0, False, threads)


def ends(pid: int, *, read: Iterable[int] = (), write: Iterable[int] = ()) -> list[End]:
    """Return ends of pipes: number N is read as N, and written to as 100 + N."""
    return [
        *(End(pid, pid, pipe, Name(b"pipe:[%d]" % pipe), True, False) for pipe in read),
        *(End(pid, pid, 100 + pipe, Name(b"pipe:[%d]" % pipe), False, True) for pipe in write),
    ]


def host(processes: Iterable[Seen], those: Iterable[End], machine: str = "x86_64") -> Host:
    init = process(1, parent=0)
    return Host(machine, (init, *processes), tuple(those))


ITSELF = host([process(19, reads(12))], ends(19, read=[12], write=[12]))
CASE = Snapshot(
    (
        Process(
            "a" * 64,
            19,
            2,
            1,
            2,
            Name(b"sort"),
            tuple(
                Descriptor(fd, False, OpenFile(number, "b" * 64, 0, flags, PIPE), 0, flags, PIPE)
                for number, fd, flags in ((1, 12, 0), (2, 112, 1))
            ),
        ),
    ),
    (),
)


def changed(one: Host, **changes: object) -> Host:
    """Change the later moment of the last process's first thread."""
    *others, last = one.processes
    first, *more = last.threads
    assert first.before is not None
    first = first._replace(after=first.before._replace(**changes))  # type: ignore[arg-type]
    return replace(one, processes=(*others, last._replace(threads=(first, *more))))


def both(one: Host, **changes: object) -> Host:
    """Change both moments."""
    later = changed(one, **changes)
    *others, last = later.processes
    first = last.threads[0]
    threads = (first._replace(before=first.after),)
    return replace(one, processes=(*others, last._replace(threads=threads)))


def test_a_process_that_waits_for_itself_is_proved() -> None:
    (finding,) = check(CASE, ITSELF)
    assert finding.level == "error"
    assert [holder.descriptor.fd for holder in finding.waiting] == [12]
    assert [holder.descriptor.fd for holder in finding.missing_close] == [112]
    assert finding.sentence == (
        "sort:2/12 waits for the end of pipe:[12], but holds its write end itself as sort:2/112."
    )


def test_a_sentence_tells_containers_apart_and_processes_of_the_host() -> None:
    """A child of a container waits for the end of a pipe that three other processes keep."""
    (sort,) = CASE.processes
    cat = sort._replace(namespace="b" * 64, global_pid=20, pid=1, command=Name(b"cat"))
    several = replace(
        CASE,
        processes=(sort, cat),
        containers=(
            Container("web", "c" * 64, "podman", "", (19,)),
            Container("db", "d" * 64, "podman", "", (20,)),
        ),
    )
    mute = [process(19, reads(12)), process(20, waits(19)), process(21, waits(20), parent=1)]
    mute = [mute[0]._replace(parent=20), mute[1]._replace(parent=21), mute[2]]
    held = [*ends(19, read=[12]), *ends(20, write=[12]), *ends(21, write=[12])]
    (finding,) = check(several, host(mute, held))
    assert finding.sentence == (
        "In web, sort:2/12 waits for the end of pipe:[12], but cat:1/112 (db) holds its write end"
        " and waits for sort:2, and p:21/112 (host) holds it and waits for cat:1 (db)."
    )
    assert finding.evidence[:2] == (
        "sort:2 is process 19 of the host",
        "cat:1 is process 20 of the host",
    )


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(changed(ITSELF, switches=(4, 1)), id="it ran in between"),
        pytest.param(changed(ITSELF, started=78), id="the pid is another process's now"),
        pytest.param(changed(ITSELF, state="R", call="running"), id="it runs now"),
        pytest.param(both(ITSELF, state="T"), id="it is stopped"),
        pytest.param(both(ITSELF, inside="do_freezer_trap"), id="it is frozen"),
        pytest.param(both(ITSELF, call=DENIED), id="its call may not be read"),
        pytest.param(both(ITSELF, call=""), id="its call was not read"),
        pytest.param(both(ITSELF, call="-1 0x7ffd87100c08 0x7f3cfbb1d503"), id="no call"),
        pytest.param(
            both(ITSELF, call="0 0xc 0x1 0x1 0x0 0x0 0x0 0xffd87100 0x7f3cfbb1"), id="32 bits"
        ),
        pytest.param(replace(ITSELF, machine="mips64"), id="another machine"),
        pytest.param(
            host([process(19, reads(12))], [End(19, 19, 12, PIPE, True, True)]), id="O_RDWR"
        ),
        pytest.param(host([process(19, reads(12))], ends(19, read=[12])), id="no writer is seen"),
        pytest.param(host([process(19, reads(12))], ends(19, write=[12])), id="the fd is gone"),
        pytest.param(
            host([process(19, reads(12))], [*ITSELF.ends, *ends(20, write=[12])]),
            id="a writer is seen, but not its process",
        ),
        pytest.param(
            host([process(19, reads(12), RESTS)], ITSELF.ends), id="another thread is awake"
        ),
        pytest.param(
            replace(
                ITSELF,
                processes=(
                    process(19, reads(12))._replace(
                        threads=(
                            *process(19, reads(12)).threads,
                            Thread(20, 19, None, reads(12)),
                        )
                    ),
                ),
            ),
            id="a thread was started in between",
        ),
    ],
)
def test_without_proof_there_is_no_error(one: Host) -> None:
    assert rings(one) == ()
    assert not [finding for finding in check(CASE, one) if finding.level == "error"]


@pytest.mark.parametrize(
    ("one", "doubt"),
    [
        (replace(ITSELF, gaps=("somebody is hidden",)), "not proved: somebody is hidden"),
        (
            replace(ITSELF, processes=(ITSELF.processes[-1]._replace(caught=1 << 9),)),
            "a handler of signal 10 could write",
        ),
        (
            replace(ITSELF, processes=(ITSELF.processes[-1]._replace(ring=True),)),
            "its io_uring could write",
        ),
    ],
)
def test_a_doubt_makes_it_a_warning(one: Host, doubt: str) -> None:
    (finding,) = check(CASE, one)
    assert finding.level == "warning"
    assert doubt in "\n".join(finding.evidence)
    assert finding.missing_close


@pytest.mark.parametrize(
    ("moment", "levels"),
    [
        (Moment("S", 77, (3, 1), "do_wait", ""), ["warning"]),
        (Moment("S", 77, (3, 1), "hrtimer_nanosleep", ""), ["warning"]),
        (Moment("S", 77, (3, 1), "ep_poll", ""), ["note"]),
        (Moment("R", 77, (3, 1), "", ""), ["note"]),
        (Moment("T", 77, (3, 1), "do_signal_stop", ""), []),
        (Moment("t", 77, (3, 1), "ptrace_stop", ""), []),
    ],
)
def test_a_pipe_of_one_process_depends_on_its_state(moment: Moment, levels: list[str]) -> None:
    found = check(CASE, host([process(19, moment)], ITSELF.ends))
    assert [finding.level for finding in found] == levels


def test_a_pipe_of_one_process_has_no_end_elsewhere() -> None:
    others = [*ITSELF.ends, *ends(20, read=[12])]
    assert check(CASE, host([process(19, RESTS), process(20, RESTS)], others)) == ()


def test_a_process_behind_a_ring_is_in_none() -> None:
    """Process 20 keeps an end too, but 19 writes to the same pipe as soon as it can go on."""
    others = [*ITSELF.ends, *ends(19, write=[13]), *ends(20, read=[13], write=[13])]
    (ring,) = rings(host([process(19, reads(12)), process(20, reads(13))], others))
    assert ring.pids == {19}


def test_a_dead_leader_does_nothing() -> None:
    one = host([process(19, DEAD, reads(12))], ITSELF.ends)
    assert rings(one)


def test_numbers_of_a_child_are_those_of_the_waiters_namespace() -> None:
    those = [*ends(30, write=[12]), *ends(31, read=[12])]
    child = process(31, reads(12), parent=30, pids=(31, 8, 1))
    assert rings(host([process(30, waits(8), pids=(30, 7)), child], those))
    assert not rings(host([process(30, waits(31), pids=(30, 7)), child], those))
    assert not rings(host([process(30, waits(1), pids=(30, 7)), child], those))


@pytest.mark.parametrize("ended", [False, True])
def test_any_child_can_be_one_that_a_descendant_leaves(ended: bool) -> None:
    """A grandchild of init, or of a subreaper, becomes its child, and its end ends the wait."""
    those = [*ends(30, write=[12]), *ends(31, read=[12])]
    family = [
        process(30, waits(-1)),
        process(31, reads(12), parent=30),
        process(32, DEAD if ended else RESTS, parent=31),
    ]
    assert bool(rings(host(family, those))) == ended


@pytest.mark.parametrize(
    ("machine", "call", "expected"),
    [
        ("x86_64", "0 0x3", ("read", 3, 0)),
        ("x86_64", "19 0x3", ("readv", 3, 0)),
        ("x86_64", "61 0xffffffffffffffff", ("wait4", None, 0)),
        ("x86_64", "61 0x2a", ("wait4", None, 42)),
        ("x86_64", "61 0xffffffd6", ("wait4", None, 0)),
        ("x86_64", "247 0x1 0x2a", ("waitid", None, 42)),
        ("x86_64", "247 0x0 0x2a", ("waitid", None, 0)),
        ("x86_64", "275 0x3", None),  # perhaps it waits to write
        ("x86_64", "1 0x3", None),
        ("aarch64", "63 0x3", ("read", 3, 0)),
        ("aarch64", "260 0x2a", ("wait4", None, 42)),
        ("aarch64", "0 0x3", None),
        ("s390x", "3 0x3", None),
    ],
)
def test_calls_are_known_by_the_machine(
    machine: str, call: str, expected: tuple[str, int | None, int] | None
) -> None:
    number, *arguments = call.split()
    padded = [*arguments, *["0x0"] * (6 - len(arguments))]
    line = " ".join([number, *padded, STACK])
    assert wait(machine, Moment("S", 1, (1, 1), "", line)) == expected


@pytest.mark.parametrize(
    ("inside", "sleeps"),
    [
        ("pipe_read", True),
        ("anon_pipe_read", True),
        ("pipe_wait_readable", True),
        ("pipe_wait_writable", False),
        ("wait_for_space", False),
        ("do_wait", False),
    ],
)
def test_the_function_of_the_kernel_has_to_agree(inside: str, sleeps: bool) -> None:
    line = f"275 0x3 0x0 0x4 0x0 0x1 0x0 {STACK}"
    assert (wait("x86_64", Moment("S", 1, (1, 1), inside, line)) is not None) == sleeps


# Any graph of waits.

PIPES, PIDS = range(3), range(2, 6)


@st.composite
def graphs(draw: st.DrawFn) -> Host:
    processes, those = [], []
    family = {pid: draw(st.sampled_from([1, *range(2, pid)])) for pid in PIDS}
    for pid, parent in family.items():
        read = draw(st.sampled_from(PIPES))
        written = draw(st.sets(st.sampled_from(PIPES), max_size=2))
        those += ends(pid, read=[read], write=written)
        children = [child for child, one in family.items() if one == pid]
        usual = [reads(read), waits(-1), *map(waits, children)]
        moments = [draw(st.sampled_from(usual))]
        if draw(st.integers(0, 4)) == 0:
            moments.append(draw(st.sampled_from([RESTS, DEAD, *usual])))
        if draw(st.integers(0, 9)) == 0:
            moments = [draw(st.sampled_from([RESTS, DEAD, waits(2)]))]
        if set(moments) == {DEAD}:
            those = [end for end in those if end.pid != pid]
        processes.append(process(pid, *moments, parent=parent))
    return host(processes, those)


def reference(one: Host) -> set[frozenset[int]]:
    """Return the pids of the rings, by the definition and without care for speed."""
    known = {each.pid: each for each in one.processes}
    writers = {pipe: {e.pid for e in one.ends if e.writes and e.fd == 100 + pipe} for pipe in PIPES}
    inert = {
        pid for pid, each in known.items() if {thread.before for thread in each.threads} == {DEAD}
    }

    def below(pid: int) -> set[int]:
        found = {each.pid for each in one.processes if each.parent == pid}
        return found.union(*map(below, found))

    def needs(pid: int) -> list[set[int]] | None:
        """Return for each thread the processes that all have to be stuck; None: it goes on."""
        found = []
        for thread in known[pid].threads:
            if thread.before == DEAD:
                continue
            waited = wait("x86_64", thread.before) if thread.before else None
            if waited is None:
                return None
            if waited.fd is not None:
                found.append(writers[waited.fd])
            else:
                children = {each.pid for each in one.processes if each.parent == pid}
                found.append(children & {waited.child} if waited.child else below(pid))
        return found if found and all(found) else None

    stuck = {pid for pid in known if needs(pid) is not None}
    while True:
        left = {pid for pid in stuck if all(need <= stuck | inert for need in needs(pid) or ())}
        if left == stuck:
            break
        stuck = left

    edges: dict[int, set[int]] = {}
    for pid in stuck:
        edges[pid] = set()
        for thread in known[pid].threads:
            waited = wait("x86_64", thread.before) if thread.before else None
            if waited is not None and waited.fd is not None:
                edges[pid] |= writers[waited.fd]
            elif waited is not None:
                children = {each.pid for each in one.processes if each.parent == pid}
                edges[pid] |= (children & {waited.child} if waited.child else children) & stuck
    reach = {pid: set(edges[pid]) for pid in stuck}
    for middle, start in itertools.product(sorted(stuck), repeat=2):
        if middle in reach[start]:
            reach[start] |= reach[middle]
    return {
        frozenset(reach[start])
        for start in stuck
        if reach[start] and all(reach[other] == reach[start] for other in reach[start])
    }


@given(graphs())
def test_rings_are_what_their_definition_says(one: Host) -> None:
    assert {ring.pids for ring in rings(one)} == reference(one)


def test_many_processes_that_wait_for_each_other() -> None:
    count = 20_000
    processes = [process(10 + n, reads(200 + n)) for n in range(count)]
    those: list[End] = []
    for n in range(count):
        those += ends(10 + n, read=[200 + n], write=[200 + (n + 1) % count])
    (ring,) = rings(host(processes, those))
    assert len(ring.pids) == count
