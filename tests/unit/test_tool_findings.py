"""`check` finds a missing close() of a pipe's write end with proof, and alarms nobody falsely.

The processes are real ones, in PID namespaces of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cplayground.findings import Finding, Host, check, look
from cplayground.snapshot import Descriptor, Name, OpenFile, Process, Snapshot

CLONE_NEWPID, CLONE_FILES = 0x20000000, 0x400
# Programs begin with these lines.
PROLOGUE = """
import ctypes, os, select, signal, socket, threading, time
def rest():
    while True:
        time.sleep(1000)
def unshare(flags):
    assert ctypes.CDLL(None, use_errno=True).unshare(flags) == 0
"""


class Box:
    """Processes in a PID namespace of their own, until they are killed."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def pids(self) -> list[int]:
        """Return the processes below unshare(1), which is itself one of the host's."""
        parents: dict[int, int] = {}
        for place in Path("/proc").iterdir():
            if place.name.isdigit():
                with contextlib.suppress(OSError):
                    stat = (
                        (place / "stat")
                        .read_text(errors="surrogateescape")
                        .rpartition(")")[2]
                        .split()
                    )
                    parents[int(place.name)] = int(stat[1])
        found, todo = [], [self.process.pid]
        while todo:
            parent = todo.pop()
            children = [pid for pid, one in parents.items() if one == parent]
            found.extend(children)
            todo.extend(children)
        return sorted(found)

    def snapshot(self) -> Snapshot:
        return snapshot(self.pids())

    def look(self) -> tuple[Snapshot, Host]:
        """Look at the processes; drop reasons for doubt that other programs of this host give.

        No process but those of the test can have an end of their pipes.
        """
        seen = self.snapshot()
        host = look(seen)
        ours = [f"/proc/{pid}/" for pid in (*self.pids(), os.getpid())]
        gaps = tuple(gap for gap in host.gaps if any(place in gap for place in ours))
        return seen, replace(host, gaps=gaps)

    def check(self) -> tuple[Finding, ...]:
        return check(*self.look())

    def asleep(self, **functions: int) -> None:
        """Wait until so many threads sleep in each of these functions of the kernel."""

        def all_sleep() -> bool:
            found = []
            for pid in self.pids():
                with contextlib.suppress(OSError):
                    for task in Path(f"/proc/{pid}/task").iterdir():
                        found.append((task / "wchan").read_text())
            return all(
                sum(name in inside for inside in found) >= count
                for name, count in functions.items()
            )

        until(all_sleep)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the processes did not get there"
        time.sleep(0.02)


@contextlib.contextmanager
def box(*command: str | Path, **given: object) -> Iterator[Box]:
    """Run a command as the first process of a new PID namespace."""
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **given}
    process = subprocess.Popen(  # type: ignore[call-overload]
        ["unshare", *user, "--pid", "--fork", "--kill-child", *command], **options
    )
    try:
        yield Box(process)
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def program(code: str, **given: object) -> Iterator[Box]:
    with box(sys.executable, "-IS", "-c", PROLOGUE + code, **given) as one:
        yield one


def snapshot(pids: list[int]) -> Snapshot:
    """Make a snapshot from /proc; open files are not told apart, which no finding needs."""
    processes = []
    for pid in pids:
        with contextlib.suppress(OSError):
            processes.append(record(pid))
    files = tuple(one.file for process in processes for one in process.descriptors)
    return Snapshot(tuple(processes), files)


def record(pid: int) -> Process:
    place = Path(f"/proc/{pid}")
    descriptors = []
    for fd in sorted(int(entry.name) for entry in (place / "fd").iterdir()):
        with contextlib.suppress(OSError):
            path = Name(os.readlink(os.fsencode(place / "fd" / str(fd))))  # noqa: PTH115
            info = dict(
                line.split(":\t", 1)
                for line in (place / "fdinfo" / str(fd)).read_text().splitlines()
                if ":\t" in line
            )
            flags = int(info["flags"], 8)
            close, flags = bool(flags & os.O_CLOEXEC), flags & ~os.O_CLOEXEC
            file = OpenFile(1, "0" * 64, 0, flags, path)
            descriptors.append(Descriptor(fd, close, file, 0, flags, path))
    command = Name((place / "comm").read_bytes()[:-1])
    status = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines())
    inner = int(status["NSpid"].split()[-1])
    return Process("0" * 64, pid, inner, 0, inner, command, tuple(descriptors))


def only(found: tuple[Finding, ...], level: str) -> Finding:
    (finding,) = found
    assert finding.level == level, finding
    return finding


def ends(finding: Finding) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Return commands and descriptors that wait, and those of the missing close()."""
    waiting, missing = (
        [(holder.process.command.text, holder.descriptor.fd) for holder in holders]
        for holders in (finding.waiting, finding.missing_close)
    )
    return waiting, missing


STORY = """
r, w = os.pipe()
os.set_inheritable(r, True)
child = os.fork()
if child == 0:
    os.dup2(r, 0)
    os.close(r)
    os.set_inheritable(w, not CHILD_CLOSES)
    os.execvp("sort", ["sort"])
os.close(r)
os.write(w, b"b\\na\\n")
if PARENT_CLOSES:
    os.close(w)
AFTER
"""


def story(*, child_closes: bool, parent_closes: bool, after: str = "os.waitpid(child, 0)") -> str:
    text = STORY.replace("CHILD_CLOSES", str(child_closes))
    return text.replace("PARENT_CLOSES", str(parent_closes)).replace("AFTER", after)


# The missing close().


def test_the_story_child_that_keeps_the_write_end_is_an_error() -> None:
    with program(story(child_closes=False, parent_closes=True)) as one:
        one.asleep(pipe_read=1, do_wait=1)
        finding = only(one.check(), "error")
        _, sort = one.pids()
        ((_, reading),), ((_, kept),) = ends(finding)
        inner = finding.waiting[0].process.pid
    assert reading == 0
    assert kept > 2
    assert finding.pipe is not None
    assert finding.sentence == (
        f"sort:{inner}/0 waits for the end of {finding.pipe.text},"
        f" but holds its write end itself as sort:{inner}/{kept}."
    )
    evidence = "\n".join(finding.evidence)
    assert inner != sort
    assert f"sort:{inner} is process {sort} of the host" in evidence
    assert f"/proc/{sort}/task/{sort}/syscall: sleeps" in evidence
    assert f"read(0) of {finding.pipe.text}" in evidence
    assert f"/proc/{sort}/fd/{kept}: a write end of {finding.pipe.text}" in evidence


def test_a_parent_that_keeps_the_write_end_and_waits_is_an_error() -> None:
    with program(story(child_closes=True, parent_closes=False)) as one:
        one.asleep(pipe_read=1, do_wait=1)
        finding = only(one.check(), "error")
        parent, child = one.pids()
    assert ends(finding)[0] == [("sort", 0)]
    assert [holder.process.global_pid for holder in finding.missing_close] == [parent]
    there = {holder.process.global_pid: holder.process.pid for holder in finding.waiting}
    ((keeper, kept),) = ((holder.process, holder.descriptor.fd) for holder in finding.missing_close)
    assert finding.sentence.endswith(
        f"{keeper.command.text}:{keeper.pid}/{kept} holds its write end"
        f" and waits for sort:{there[child]}."
    )


def test_all_that_have_to_close_are_named() -> None:
    with program(story(child_closes=False, parent_closes=False)) as one:
        one.asleep(pipe_read=1, do_wait=1)
        finding = only(one.check(), "error")
        pids = one.pids()
    assert sorted(holder.process.global_pid for holder in finding.missing_close) == pids


@pytest.mark.parametrize("call", ["os.readv(r, [bytearray(9)])", "os.splice(r, null, 9)"])
def test_other_calls_that_read_are_known(call: str) -> None:
    code = f"null = os.open('/dev/null', os.O_WRONLY)\nr, w = os.pipe()\n{call}\n"
    with program(code) as one:
        one.asleep(pipe=1)
        only(one.check(), "error")


def test_processes_that_read_from_each_other_are_an_error() -> None:
    """The parent wants an answer before it has closed what the child reads to its end."""
    code = """
to_r, to_w = os.pipe()
from_r, from_w = os.pipe()
if os.fork() == 0:
    os.dup2(to_r, 0); os.dup2(from_w, 1)
    os.closerange(3, 100)
    os.execvp("sort", ["sort"])
os.close(to_r); os.close(from_w)
os.read(from_r, 1)
"""
    with program(code) as one:
        one.asleep(pipe_read=2)
        finding = only(one.check(), "error")
        parent, _ = one.pids()
    assert ends(finding)[0] == [("sort", 0)]
    assert [holder.process.global_pid for holder in finding.missing_close] == [parent]


def test_a_later_part_of_a_pipeline_can_keep_the_end() -> None:
    code = """
r1, w1 = os.pipe()
r2, w2 = os.pipe()
if os.fork() == 0:
    os.dup2(r1, 0); os.dup2(w2, 1); os.closerange(3, 100)
    os.execvp("sort", ["sort"])
if os.fork() == 0:
    os.dup2(r2, 0); os.dup2(w1, 9); os.closerange(3, 9)
    os.execvp("wc", ["wc"])
for fd in (r1, w1, r2, w2):
    os.close(fd)
os.wait()
"""
    with program(code) as one:
        one.asleep(pipe_read=2, do_wait=1)
        finding = only(one.check(), "error")
    assert ends(finding) == ([("sort", 0)], [("wc", 9)])


def test_a_parent_waits_for_a_child_in_a_nested_namespace() -> None:
    code = """
r, w = os.pipe()
unshare(0x20000000)
child = os.fork()
if child == 0:
    os.close(w)
    os.read(r, 1)
os.waitpid(child, 0)
"""
    with program(code) as one:
        one.asleep(pipe_read=1, do_wait=1)
        finding = only(one.check(), "error")
        parent, _ = one.pids()
    assert [holder.process.global_pid for holder in finding.missing_close] == [parent]


def test_a_process_of_the_host_can_be_the_relative_that_waits() -> None:
    read, write = os.pipe()
    with box("cat", stdin=read, pass_fds=[write]) as one:
        os.close(read)
        os.close(write)
        one.asleep(pipe_read=1)
        finding = only(one.check(), "error")
        assert (
            f"and unshare:{one.process.pid}/{write} (host) holds it and waits for cat:1."
            in finding.sentence
        )
    assert ends(finding) == ([("cat", 0)], [("cat", write)])


def test_bash_that_waits_for_its_coprocess_is_an_error() -> None:
    with box("bash", "-c", "coproc cat; wait") as one:
        one.asleep(pipe_read=1, do_wait=1)
        finding = only(one.check(), "error")
    assert ends(finding)[0] == [("cat", 0)]


def test_only_the_cause_is_told_of() -> None:
    """tee waits for bash, and bash for a program that waits for itself."""
    code = PROLOGUE + "r, w = os.pipe()\nos.read(r, 1)\n"
    environment = {**os.environ, "PYTHON": sys.executable, "CODE": code}
    script = 'exec > >(tee /dev/null)\n"$PYTHON" -IS -c "$CODE"\n:'
    with box("bash", "-c", script, env=environment) as one:
        one.asleep(pipe_read=2, do_wait=1)
        assert "holds its write end itself" in only(one.check(), "error").sentence


# Somebody could still write.


@pytest.mark.parametrize(
    "after",
    ["rest()", "os.read(os.open('/dev/ptmx', os.O_RDWR), 1)", "select.select([0], [], [])"],
)
def test_a_parent_that_is_about_to_write_is_no_error(after: str) -> None:
    code = "os.close(0); os.dup2(os.open('/dev/ptmx', os.O_RDWR), 0)\n"
    code += story(child_closes=True, parent_closes=False, after=after)
    with program(code) as one:
        one.asleep(pipe_read=1)
        time.sleep(0.1)
        assert one.check() == ()


def test_a_child_that_keeps_an_end_while_the_parent_still_writes_is_a_note() -> None:
    with program(story(child_closes=False, parent_closes=False, after="rest()")) as one:
        one.asleep(pipe_read=1, nanosleep=1)
        finding = only(one.check(), "note")
    assert finding.sentence.startswith("sort:2 holds both ends")
    assert "sees no end" in finding.sentence


def test_a_writer_that_keeps_the_read_end_is_a_note() -> None:
    code = """
r, w = os.pipe()
os.set_inheritable(r, True); os.set_inheritable(w, True)
if os.fork() == 0:
    os.close(w)
    os.read(r, 1)
rest()
"""
    with program(code) as one:
        one.asleep(pipe_read=1, nanosleep=1)
        assert "SIGPIPE" in only(one.check(), "note").sentence


def test_a_child_of_which_another_is_awaited_too_is_no_error() -> None:
    """wait() returns when the other child ends, and then the parent can close."""
    code = """
if os.fork() == 0:
    rest()
r, w = os.pipe()
if os.fork() == 0:
    os.close(w)
    os.read(r, 1)
os.wait()
"""
    with program(code) as one:
        one.asleep(pipe_read=1, nanosleep=1, do_wait=1)
        assert one.check() == ()


def test_another_thread_can_write() -> None:
    code = """
r, w = os.pipe()
threading.Thread(target=rest).start()
os.read(r, 1)
"""
    with program(code) as one:
        one.asleep(pipe_read=1, nanosleep=1)
        finding = only(one.check(), "note")
    assert "2 threads" in "\n".join(finding.evidence)


def test_a_signal_handler_could_write() -> None:
    code = "signal.signal(signal.SIGUSR1, print)\nr, w = os.pipe()\nos.read(r, 1)\n"
    with program(code) as one:
        one.asleep(pipe_read=1)
        finding = only(one.check(), "warning")
    assert "handler of signal 10" in "\n".join(finding.evidence)


def test_an_end_of_a_host_process_is_seen() -> None:
    read, write = os.pipe()
    try:
        with box("cat", stdin=read, pass_fds=[write]) as one:
            one.asleep(pipe_read=1)
            found = one.check()
            assert not [each for each in found if each.level != "note"]
    finally:
        os.close(read)
        os.close(write)


def test_an_end_in_flight_is_counted() -> None:
    """The end that a socket holds is in no process, and its receiver may write."""
    read, write = os.pipe()
    ours, theirs = socket.socketpair()
    with ours, theirs, box("cat", stdin=read, pass_fds=[write]) as one:
        socket.send_fds(ours, [b"x"], [write])
        os.close(read)
        os.close(write)
        one.asleep(pipe_read=1)
        finding = only(one.check(), "warning")
    assert "1 descriptors in flight" in "\n".join(finding.evidence)


def test_a_table_that_one_thread_has_alone_is_read() -> None:
    code = """
r, w = os.pipe()
if os.fork() == 0:
    os.read(r, 1)
def keep():
    unshare(0x400)
    done.set()
    rest()
done = threading.Event()
threading.Thread(target=keep).start()
done.wait()
os.close(w)
rest()
"""
    with program(code) as one:
        one.asleep(pipe_read=1, nanosleep=2)
        found = one.check()
    assert not [each for each in found if each.level == "error"]


# False alarms.


def test_makes_jobserver_is_no_alarm(tmp_path: Path) -> None:
    make = shutil.which("make")
    assert make is not None, "make is not on this machine: run ./inv, which installs it"
    (tmp_path / "Makefile").write_text(
        "all: one two three\n"
        "one two three:\n\t+@$(MAKE) -s -f Makefile sub-$@\n"
        "sub-%: x-% y-%\n\t@:\n"
        "x-%:\n\t@sleep 1000\n"
        "y-%:\n\t@sleep 1000\n"
        ".PHONY: all one two three\n"
    )
    with box(make, "-s", "-j3", "-C", tmp_path) as one:
        # A make below takes one of three tokens, or waits for one.
        until(lambda: command_count(one, "sleep") == 3 and command_count(one, "make") > 2)
        time.sleep(0.1)
        assert one.check() == ()
        assert check(one.snapshot()) == ()


def test_one_make_alone_is_no_alarm(tmp_path: Path) -> None:
    make = shutil.which("make")
    assert make is not None, "make is not on this machine: run ./inv, which installs it"
    (tmp_path / "Makefile").write_text("all:\n\t@sleep 1000\n")
    with box(make, "-s", "-j3", "-C", tmp_path) as one:
        until(lambda: command_count(one, "sleep") == 1)
        assert one.check() == ()
        assert check(one.snapshot()) == ()


@pytest.mark.parametrize(
    "script",
    [
        "cat <(sleep 1000)",
        "diff <(sleep 1000) <(sleep 1000)",
        "sleep 1000 | tee >(cat >/dev/null) >(sort >/dev/null) | cat",
        "exec 3> >(cat); sleep 1000",
        "coproc cat; sleep 1000",
        "coproc cat; coproc OTHER { cat; }; sleep 1000",
        "mkfifo $DIR/f; exec 3<>$DIR/f; cat <&3 & sleep 1000",
        "mkfifo $DIR/f; cat $DIR/f & sleep 1000 >$DIR/f",
        "exec 3<> <(:); read -t 1000 -u 3",
        "while read -r line; do :; done < <(sleep 1000)",
        "cat < <(sleep 1000) | cat | cat",
        "x=$(sleep 1000; echo)",
    ],
)
def test_bash_makes_no_alarm(script: str, tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    environment = {**os.environ, "DIR": str(tmp_path), "LC_ALL": "C"}
    with box(bash, "-c", script + "\n:", env=environment, stderr=subprocess.DEVNULL) as one:
        if "sleep" in script:
            until(lambda: command_count(one, "sleep") == script.count("sleep"))
        time.sleep(0.2)  # the other children have to get to their reads as well
        assert one.check() == ()
        assert check(one.snapshot()) == ()


def test_inherited_stdio_is_no_alarm() -> None:
    with program("os.read(0, 1)", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
        one.asleep(pipe_read=1)
        assert one.check() == ()
        assert check(one.snapshot()) == ()
        for stream in (one.process.stdin, one.process.stdout):
            assert stream is not None
            stream.close()


def test_a_store_of_descriptors_is_no_alarm() -> None:
    """systemd keeps descriptors of a service with close-on-exec, and waits for events."""
    code = """
r, w = os.pipe()
if os.fork() == 0:
    os.read(r, 1)
select.epoll().poll()
"""
    with program(code) as one:
        one.asleep(pipe_read=1, poll=1)
        assert one.check() == ()
        assert check(one.snapshot()) == ()


def test_an_event_loops_own_pipe_is_no_alarm() -> None:
    code = """
r, w = os.pipe()
os.set_blocking(r, False)
select.select([r], [], [])
"""
    with program(code) as one:
        one.asleep(poll=1)
        assert one.check() == ()
        assert check(one.snapshot()) == ()


def test_a_stopped_process_is_no_alarm() -> None:
    with program("r, w = os.pipe()\nos.read(r, 1)\n") as one:
        one.asleep(pipe_read=1)
        (pid,) = one.pids()
        os.kill(pid, signal.SIGSTOP)
        until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        assert one.check() == ()


def test_a_process_that_a_debugger_stopped_is_no_alarm() -> None:
    with program("r, w = os.pipe()\nos.read(r, 1)\n") as one:
        one.asleep(pipe_read=1)
        (pid,) = one.pids()
        libc = ctypes.CDLL(None, use_errno=True)
        attach, detach = 16, 17
        if libc.ptrace(attach, pid, None, None) != 0:
            pytest.skip(f"ptrace(2): {os.strerror(ctypes.get_errno())}")
        try:
            os.waitpid(pid, 0)
            assert one.check() == ()
        finally:
            libc.ptrace(detach, pid, None, None)


def command_count(one: Box, command: str) -> int:
    return sum(process.command == command.encode() for process in snapshot(one.pids()).processes)


# Without the host.


def test_a_file_proves_nothing() -> None:
    with program(story(child_closes=False, parent_closes=True)) as one:
        one.asleep(pipe_read=1, do_wait=1)
        (finding,) = check(one.snapshot())
    assert finding.level == "warning"
    assert "is the only process with an end" in finding.sentence
    assert "were not looked at" in "\n".join(finding.evidence)


def test_without_root_it_says_that_nothing_is_proved() -> None:
    if os.geteuid() != 0:
        pytest.skip("root is needed to become a user who may not look")
    with program(story(child_closes=False, parent_closes=True)) as one:
        one.asleep(pipe_read=1, do_wait=1)
        seen = one.snapshot()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setresuid(65534, 65534, 65534)
                found = check(seen, look(seen))
                os.write(write, "\n".join([found[0].level, *found[0].evidence]).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as answer:
            level, *evidence = answer.read().splitlines()
        os.waitpid(child, 0)
    assert level == "warning"
    assert any("/fd of" in line and "needs root" in line for line in evidence)
    assert any("/syscall of" in line and "needs root" in line for line in evidence)


def test_what_has_changed_since_the_snapshot_is_not_told_of() -> None:
    with program("r, w = os.pipe()\nos.read(r, 1)\n") as one:
        one.asleep(pipe_read=1)
        old = one.snapshot()
    until(lambda: not one.pids())
    assert check(old, look(old)) == ()


def test_processes_that_come_and_go_do_not_disturb_a_look() -> None:
    code = """
r, w = os.pipe()
def churn():
    while True:
        if os.fork() == 0:
            os.pipe()
            os._exit(0)
        os.wait()
for _ in range(3):
    if os.fork() == 0:
        churn()
os.read(r, 1)
"""
    with program(code) as one:
        one.asleep(pipe_read=1)
        for _ in range(10):
            assert not [each for each in one.check() if each.level == "error"]
