"""The walk, held against real processes in namespaces that these tests make."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from cplayground.errors import Error, NotPermittedError
from cplayground.snapshot import Descriptor, Process, Snapshot
from cplayground.walking import walk
from tests.snapshots import comparable, records
from tests.topologies import TOPOLOGIES
from tests.topology import topology as topologies
from tests.topology.building import Builder, unexpected
from tests.topology.topology import DuplicateFrom, DuplicateOnto, Op, Spawn, StartThread, Topology
from tests.unit.namespaces import ROOT, UNSHARE, inside

PROJECT = Path(__file__).resolve().parents[2]
MOST_FILES = 4096


def only(snapshot: Snapshot) -> Process:
    (process,) = snapshot.processes
    return process


def table(process: Process) -> dict[int, Descriptor]:
    return {one.fd: one for one in process.descriptors}


def test_descriptors_are_shown_as_system_calls_made_them(tmp_path: Path) -> None:
    with inside(
        tmp_path,
        """
        os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK), 10)
        os.write(10, b"123")
        os.dup2(10, 11, inheritable=False)
        os.dup2(os.open("log", os.O_RDONLY), 12)
        os.dup2(os.open("log", os.O_RDONLY), 13)
        os.lseek(12, 5_000_000_000, os.SEEK_SET)
        os.dup2(os.open(".", os.O_PATH), 14)
        os.dup2(os.memfd_create("a b"), 15)
        os.close_range(16, 99) if hasattr(os, "close_range") else os.closerange(16, 100)
        reading, writing = os.pipe()
        os.dup2(reading, 20), os.dup2(writing, 21)
        os.unlink("log")
        rest()
        """,
    ) as programs:
        found = table(only(programs.walk()))
    large = 0o100000  # O_LARGEFILE, which the kernel adds
    log = os.fsencode(tmp_path) + b"/log (deleted)"
    same = [[10, 11], [12], [13]]
    assert [
        [fd for fd in (10, 11, 12, 13) if found[fd].file is found[a[0]].file] for a in same
    ] == (same)
    assert [found[fd].close_on_exec for fd in (10, 11, 12, 14)] == [False, True, False, False]
    assert [found[fd].position for fd in (10, 11, 12, 13)] == [3, 3, 5_000_000_000, 0]
    assert found[10].flags == os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | large
    assert found[14].flags == os.O_PATH
    assert {found[fd].path for fd in (10, 11, 12, 13)} == {log}
    assert found[14].path == os.fsencode(tmp_path)
    assert found[15].path == b"/memfd:a b (deleted)"
    assert found[20].path == found[21].path
    assert found[20].path.startswith(b"pipe:[")
    assert (found[20].flags, found[21].flags) == (os.O_RDONLY, os.O_WRONLY)
    assert found[20].file.id != found[21].file.id


def test_processes_share_what_they_inherit(tmp_path: Path) -> None:
    with inside(
        tmp_path,
        """
        os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT), 10)
        child(lambda: None)
        def other():
            os.close(10)
            os.dup2(os.open("log", os.O_WRONLY), 10)
        child(other)
        rest()
        """,
    ) as programs:
        first, same, another = programs.walk().processes
    assert table(first)[10].file is table(same)[10].file
    assert table(first)[10].file.id != table(another)[10].file.id


def test_pids_are_those_of_the_innermost_namespace(tmp_path: Path) -> None:
    with inside(
        tmp_path,
        """
        os.setpgid(0, 0)
        def nested():
            libc.unshare(CLONE_NEWPID)
            def first():
                child(lambda: os.setsid())
            child(first)
        child(nested)
        rest()
        """,
    ) as programs:
        outer, unsharing, inner, last = programs.walk().processes
    assert (outer.pid, outer.ppid, outer.pgid) == (1, 0, 1)
    assert (unsharing.pid, unsharing.ppid, unsharing.pgid) == (2, 1, 1)
    assert (inner.pid, inner.ppid, inner.pgid) == (1, 0, 0)
    assert (last.pid, last.ppid, last.pgid) == (2, 1, 2)
    assert outer.namespace == unsharing.namespace != inner.namespace == last.namespace


def test_a_zombie_has_no_descriptors_and_any_name(tmp_path: Path) -> None:
    with inside(
        tmp_path,
        r"""
        def named():
            libc.prctl(15, b"a\nb\t) S \\\xff\x1b[3")
            os._exit(0)
        os.waitid(os.P_PID, child(named), os.WEXITED | os.WNOWAIT)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP, 31, 40])
        os.kill(1, 31)
        rest()
        """,
    ) as programs:
        first, zombie = programs.walk().processes
    assert zombie.command == b"a\nb\t) S \\\xff\x1b[3"
    assert (zombie.state, zombie.ppid, zombie.descriptors) == ("Z", 1, ())
    assert first.state in ("R", "S")
    assert (first.blocked, first.pending) == (1 << 1 | 1 << 31, 1 << 31)


def test_a_table_outlives_the_first_thread(tmp_path: Path) -> None:
    with inside(
        tmp_path,
        """
        def leaves(doing):
            threading.Thread(target=signal.pause).start()
            os.write(doing, b"x"), os.close(doing)
            number = 60 if os.uname().machine == "x86_64" else 93
            libc.syscall(number, 0)  # exit(2) of this thread only
        child(leaves)
        rest()
        """,
    ) as programs:
        first, leaderless = programs.walk().processes
        while leaderless.state != "Z":
            first, leaderless = programs.walk().processes
    assert leaderless.state == "Z"
    assert leaderless.descriptors
    assert [one.file for one in leaderless.descriptors] == [one.file for one in first.descriptors]


def test_a_later_threads_private_table_is_not_shown(tmp_path: Path) -> None:
    with inside(
        tmp_path,
        """
        def private():
            libc.unshare(0x400)
            os.closerange(0, 3)
            os.dup2(mark, 90)
            done.set()
            signal.pause()
        done = threading.Event()
        threading.Thread(target=private).start()
        done.wait()
        rest()
        """,
    ) as programs:
        assert list(table(only(programs.walk()))) == [0, 1, 2, 3]


def test_many_descriptors_of_one_inode_are_told_apart(tmp_path: Path) -> None:
    """Open one file 150 times, with descriptors in an order that has nothing to do with it."""
    with inside(
        tmp_path,
        """
        for number in range(150):
            file = os.open("log", os.O_WRONLY | os.O_CREAT)
            os.dup2(file, 1000 - (number * 37) % 150)
            os.dup2(file, 200 + (number * 53) % 150)
            os.close(file)
            os.lseek(200 + (number * 53) % 150, number, os.SEEK_SET)
        rest()
        """,
    ) as programs:
        process = only(programs.walk())
    found: dict[str, list[int]] = {}
    for one in process.descriptors:
        if one.path == bytes(tmp_path / "log"):
            found.setdefault(one.file.id, []).append(one.position)
    # The position names the open file.
    assert sorted(found.values()) == [[number] * 2 for number in range(150)]


def test_an_open_file_keeps_its_id_from_one_walk_to_the_next(tmp_path: Path) -> None:
    with inside(
        tmp_path,
        """
        os.pipe()
        os.open("log", os.O_WRONLY | os.O_CREAT)
        def inherits():
            pass
        child(inherits)
        print("ready", flush=True)
        sys.stdin.readline()
        os.close(4), os.close(6)
        new = os.open("log", os.O_WRONLY | os.O_CREAT)
        rest()
        """,
    ) as programs:
        before = [table(process) for process in programs.walk().processes]
        again = [table(process) for process in programs.walk().processes]
        programs.say("go on")
        programs.wait_for("ready")
        after = [table(process) for process in programs.walk().processes]
    ids = [[{fd: one.file.id for fd, one in t.items()} for t in x] for x in (before, again, after)]
    assert ids[0] == ids[1]
    # The oldest holder of the pipe's end has closed it; its child has it still.
    assert ids[2][1][4] == ids[0][1][4]
    # The descriptor's number is another open file of the same inode.
    assert ids[2][0][4] != ids[0][0][6]


def test_processes_that_come_and_go_do_no_harm(tmp_path: Path) -> None:
    with inside(
        tmp_path,
        """
        def churn():
            while True:
                pid = os.fork()
                if not pid:
                    for _ in range(20):
                        os.dup(mark), os.pipe(), os.open("x", os.O_CREAT | os.O_RDWR)
                    os.execv("/bin/true", ["true"]) if os.getpid() % 2 else os._exit(0)
                os.waitpid(pid, 0)
        child(lambda: None)
        for _ in range(2):
            os.fork() or churn()
        rest()
        """,
    ) as programs:
        # The child says that it rests, and closes that pipe afterwards.
        deadline = time.monotonic() + 20
        while any(len(table(p)) > 4 for p in programs.walk().processes if p.pid == 2):
            assert time.monotonic() < deadline
        for _ in range(25):
            snapshot = programs.walk()
            pids = [process.global_pid for process in snapshot.processes]
            assert pids == sorted(set(pids))
            resting = [table(p) for p in snapshot.processes if p.pid in (1, 2)]
            assert len(resting) == 2
            assert [*resting[0]] == [*resting[1]] == [0, 1, 2, 3]
            # A file that stays open during the whole walk is one.
            assert all(resting[0][fd].file is resting[1][fd].file for fd in range(4))
            for process in snapshot.processes:
                fds = [one.fd for one in process.descriptors]
                assert fds == sorted(set(fds))
                assert process.ppid or process.pid == 1


def test_the_walk_is_as_the_plan_says(tmp_path: Path) -> None:
    """Try the random topologies with which the module is tested in guests."""
    if not ROOT or shutil.which("gcc") is None:
        pytest.skip("needs root, because it mounts, and gcc; tests/vm does the same in a guest")
    program = tmp_path / "build_topology"
    text = (PROJECT / "tests/guest/build_topology.c").read_text()
    source = tmp_path / "build_topology.c"
    for old, new in (
        ("#define FILES 200000", f"#define FILES {MOST_FILES}"),
        # The kernel's view is made as the walk is, so the plan is the better judge.
        ("take_view(&view);", 'reserve(&view, 6); memcpy(view.data, "end 0\\n", view.length = 6);'),
    ):
        assert old in text
        text = text.replace(old, new)
    source.write_text(text)
    include = PROJECT / "kbuild/guest/include"
    subprocess.run(
        ["gcc", "-std=gnu11", "-O1", "-pthread", "-I", include, "-o", program, source], check=True
    )
    # The program reads its second argument when all processes rest.
    shown = tmp_path / "shown"
    os.mkfifo(shown)
    place = tmp_path / "place"

    with subprocess.Popen(
        ["unshare", "--mount", program, place, shown],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        builder = Builder(_Talker(process), bytes(place), timeout_s=60)

        @settings(
            max_examples=15,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(TOPOLOGIES)
        def each(topology: Topology) -> None:
            plan = builder.plan(_lowered(topology))
            walked: list[Snapshot] = []
            writing = threading.Thread(target=_give, args=(shown, walked), daemon=True)
            writing.start()
            built = builder.build(plan)
            writing.join()
            pids = set(built.pids)
            ours = records(p for p in walked[0].processes if p.global_pid in pids)
            differences = unexpected(ours, plan, built.pids)
            assert not differences, "\n".join(differences)

        try:
            each()
        finally:
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(60) == 0


def _lowered(topology: Topology) -> Topology:
    """Return a topology with descriptors that the limits of any machine allow."""
    most = MOST_FILES - 1000

    def op(one: Op) -> Op:
        if isinstance(one, DuplicateFrom):
            return replace(one, least=min(one.least, most))
        if isinstance(one, DuplicateOnto):
            return replace(one, onto=min(one.onto, most))
        if isinstance(one, Spawn):
            return replace(one, child=process(one.child))
        if isinstance(one, StartThread):
            return replace(one, ops=tuple(map(op, one.ops)))
        return one

    def process(one: topologies.Process) -> topologies.Process:
        return replace(one, ops=tuple(map(op, one.ops)))

    return replace(
        topology,
        containers=tuple(replace(one, first=process(one.first)) for one in topology.containers),
    )


class _Talker:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.stdin, self.stdout = process.stdin, process.stdout

    def read_line(self, timeout_s: float) -> bytes:
        return self.stdout.readline()

    def write(self, data: bytes) -> None:
        self.stdin.write(data)
        self.stdin.flush()


def _give(shown: Path, walked: list[Snapshot]) -> None:
    with shown.open("wb"):  # waits until the program reads
        walked.append(walk())


def test_two_walks_of_processes_at_rest_are_equal(tmp_path: Path) -> None:
    with inside(
        tmp_path, "os.pipe(), socket.socketpair(), child(lambda: None), rest()"
    ) as programs:
        assert comparable(programs.walk()) == comparable(programs.walk())


@pytest.mark.skipif(not ROOT, reason="gives up the rights of root")
def test_a_user_is_told_which_processes_were_not_seen(tmp_path: Path) -> None:
    program = (
        "import os; from cplayground.errors import NotPermittedError;"
        "from cplayground.walking import survey, walk\n"
        "os.setgroups([]), os.setgid(65534), os.setuid(65534)\n"
        "print(*survey().hidden)\n"
        "try:\n    walk()\nexcept NotPermittedError as error:\n    print(error)\n"
    )
    with inside(tmp_path, "child(lambda: None), rest()") as programs:
        pids = [process.global_pid for process in programs.walk().processes]
        told = subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=PROJECT
        ).stdout
    hidden, sentence = told.splitlines()
    assert set(pids) <= set(map(int, hidden.split()))
    assert sentence.startswith("you may not look into process ")


def run_inside(*before: str) -> str:
    program = "from cplayground.walking import walk\nprint(walk().processes)"
    with contextlib.suppress(subprocess.CalledProcessError):
        return subprocess.run(
            [*UNSHARE, *before, sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            cwd=PROJECT,
        ).stdout
    return subprocess.run(
        [*UNSHARE, *before, sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=PROJECT,
    ).stderr


def test_a_procfs_of_another_namespace_is_refused(tmp_path: Path) -> None:
    # kcmp(2) would compare other processes than those that the procfs shows.
    assert "NotPermittedError: /proc is the procfs of another PID namespace" in run_inside()
    assert run_inside("--mount-proc") == "()\n"
    with pytest.raises(Error, match="is not a procfs"):
        walk(str(tmp_path))
    assert issubclass(NotPermittedError, Error)
