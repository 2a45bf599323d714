"""Read from the host's /proc what a proof needs, and no more.

Nothing is traced, stopped or opened: only files of /proc and kcmp(2) are read.  Two of them touch
the observed program for microseconds:

- readlink(2) of /proc/PID/fd/N and fdinfo hold a reference on the open file.  Therefore the
  descriptors of the host are read only if a process reads a pipe now, or holds both of its ends.
- /proc/PID/syscall and kcmp(2) wait for the end of an execve(2).  Therefore it is read only of a
  thread that sleeps in a kernel function of a pipe or of wait(2).
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from cplayground.facts import CALLS, DENIED, End, Host, Moment, Seen, Thread, may_wait, wait
from cplayground.proving import rings
from cplayground.sharing import pipes
from cplayground.snapshot import Name, Snapshot

_INITIAL = "pid:[4026531836]"  # PROC_PID_INIT_INO of include/linux/proc_ns.h
_KCMP_FILES = 2
_TRIES = 5  # processes that are started during a look are looked at too, so many times
_PIPE = re.compile(rb"pipe:\[[0-9]+\]")
_FIELD = re.compile(rb"^(\w+):[ \t]*(.*)$", re.MULTILINE)
_IN_FLIGHT = re.compile(rb"^scm_fds:\s*0*([1-9][0-9]*)$", re.MULTILINE)
# A registered file without a name is a pipe or a socket: kernels before 6.11 print no more.
_REGISTERED = re.compile(rb"^ *[0-9]+:[ \t]*(?:pipe:\[[0-9]+\])?$", re.MULTILINE)
_GONE = (FileNotFoundError, ProcessLookupError)


def look(snapshot: Snapshot, *, proc: str = "/proc") -> Host:
    """Look at the processes that a snapshot's pipes are about, and at who else holds an end.

    The snapshot is of this host, and was taken just now; what has changed since is not told of.
    Processes that end meanwhile are left out.
    """
    machine = os.uname().machine
    blocking, both = set(), set()
    for pipe in pipes(snapshot):
        ends = {holder.process.global_pid for holder in pipe.writers}
        for holder in pipe.readers:
            if not holder.descriptor.flags & os.O_NONBLOCK:
                blocking.add(holder.process.global_pid)
                both |= {holder.process.global_pid} & ends
    first = {pid: _moments(proc, pid) for pid in sorted(blocking)}
    reading = {
        pid
        for pid, moments in first.items()
        for moment in moments.values()
        for one in (wait(machine, moment),)
        if one is not None and one.fd is not None
    }
    if not reading | both:
        return Host(machine, gaps=tuple(_gaps(proc, machine, first)))
    scan = _scan(proc, machine)
    before = _closure(proc, machine, scan, reading | both)
    host = _host(proc, machine, scan, before, before)
    if not rings(host):
        return host
    # The threads are looked at before and after the second scan: they slept all the time.
    again = _scan(proc, machine, deep=True)
    after = {pid: _moments(proc, pid) for pid in before}
    host = _host(proc, machine, again, before, after)
    return replace(
        host,
        ends=tuple(sorted(scan.ends | again.ends)),
        gaps=tuple(dict.fromkeys((*host.gaps, *scan.gaps))),
        hidden=frozenset(scan.hidden | again.hidden),
    )


@dataclass
class _Scan:
    """Processes and pipes' ends, while they are read."""

    processes: dict[int, Seen] = field(default_factory=dict)
    tables: dict[int, set[int]] = field(default_factory=dict)  # threads with a table of their own
    ends: set[End] = field(default_factory=set)
    gaps: list[str] = field(default_factory=list)
    hidden: set[int] = field(default_factory=set)


def _scan(proc: str, machine: str, *, deep: bool = False) -> _Scan:
    """Read the ends of all pipes; ``deep`` looks for descriptors that no process has as well."""
    scan = _Scan()
    for _ in range(_TRIES):
        new = _numbers(proc) - scan.processes.keys()
        if not new:
            break
        for pid in sorted(new):
            with suppress(*_GONE):
                _look_at(proc, machine, pid, scan, deep)
    else:
        scan.gaps.append(f"{proc}: processes start faster than they can be looked at")
    return scan


def _look_at(proc: str, machine: str, pid: int, scan: _Scan, deep: bool) -> None:
    """Read one process into a scan.  Raises FileNotFoundError, ProcessLookupError: it ended."""
    status = dict(_FIELD.findall(_read(f"{proc}/{pid}/status")))
    seen = Seen(
        pid,
        parent=int(status[b"PPid"]),
        pids=tuple(map(int, status.get(b"NSpid", b"%d" % pid).split())),
        tracer=int(status[b"TracerPid"]),
        command=Name(status[b"Name"]),
        program="",
        caught=int(status[b"SigCgt"], 16),
        ring=False,
        threads=(),
    )
    scan.processes[pid] = seen
    tables = {pid}
    try:
        for tid in sorted(_numbers(f"{proc}/{pid}/task")):
            if tid == pid or not _one_table(machine, pid, tid):
                tables.add(tid)
                with suppress(*_GONE):
                    scan.ends.update(_ends(proc, seen, tid, scan, deep))
    except PermissionError:
        scan.hidden.add(pid)
    scan.tables[pid] = tables


def _ends(proc: str, seen: Seen, tid: int, scan: _Scan, deep: bool) -> Iterator[End]:
    """Yield the pipes' ends of one descriptor table.

    Raises FileNotFoundError, ProcessLookupError: the thread ended; PermissionError.
    """
    place = f"{proc}/{seen.pid}/task/{tid}"
    opened = os.open(f"{place}/fd", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for fd in sorted(_numbers(opened)):
            with suppress(*_GONE):
                path = os.readlink(b"%d" % fd, dir_fd=opened)
                if _PIPE.fullmatch(path):
                    # The link's mode is the open file's; it has neither bit for O_PATH.
                    mode = os.stat(str(fd), dir_fd=opened, follow_symlinks=False).st_mode
                    if os.readlink(b"%d" % fd, dir_fd=opened) != path:
                        scan.gaps.append(f"{place}/fd/{fd} was replaced while it was read")
                    reads, writes = bool(mode & stat.S_IRUSR), bool(mode & stat.S_IWUSR)
                    yield End(seen.pid, tid, fd, Name(path), reads, writes)
                elif path == b"anon_inode:[io_uring]":
                    scan.processes[seen.pid] = seen._replace(ring=True)
                    text = _read(f"{place}/fdinfo/{fd}") if deep else b""
                    if deep and (b"UserFiles:" not in text or _REGISTERED.search(text)):
                        scan.gaps.append(f"{place}/fdinfo/{fd}: this io_uring can hold a pipe")
                elif deep and path.startswith(b"socket:["):
                    flying = _IN_FLIGHT.search(_read(f"{place}/fdinfo/{fd}"))
                    if flying:
                        count = flying[1].decode()
                        scan.gaps.append(f"{place}/fdinfo/{fd}: {count} descriptors in flight")
    finally:
        os.close(opened)


def _closure(
    proc: str, machine: str, scan: _Scan, start: Iterable[int]
) -> dict[int, dict[int, Moment]]:
    """Look at the threads of some processes, and of those that they wait for."""
    children: dict[int, list[int]] = {}
    for seen in scan.processes.values():
        children.setdefault(seen.parent, []).append(seen.pid)
        if seen.tracer:
            children.setdefault(seen.tracer, []).append(seen.pid)
    reads = {(end.pid, end.table, end.fd): end.pipe for end in scan.ends if end.reads}
    writers: dict[Name, set[int]] = {}
    for end in scan.ends:
        if end.writes:
            writers.setdefault(end.pipe, set()).add(end.pid)
    found: dict[int, dict[int, Moment]] = {}
    todo = sorted(start)
    while todo:
        pid = todo.pop()
        if pid in found or pid not in scan.processes:
            continue
        found[pid] = _moments(proc, pid)
        for tid, moment in found[pid].items():
            one = wait(machine, moment)
            if one is None:
                continue
            if one.fd is not None:
                table = tid if tid in scan.tables[pid] else pid
                pipe = reads.get((pid, table, one.fd))
                todo.extend(writers.pop(pipe, ()) if pipe is not None else ())
            else:
                below = [pid]
                while below:
                    more = children.pop(below.pop(), [])
                    below.extend(more)
                    todo.extend(more)
    return found


def _host(
    proc: str,
    machine: str,
    scan: _Scan,
    before: Mapping[int, Mapping[int, Moment]],
    after: Mapping[int, Mapping[int, Moment]],
) -> Host:
    processes = []
    for pid, seen in scan.processes.items():
        one, two = before.get(pid, {}), after.get(pid, {})
        if one or two:
            threads = tuple(
                Thread(tid, tid if tid in scan.tables[pid] else pid, one.get(tid), two.get(tid))
                for tid in sorted({*one, *two})
            )
            seen = seen._replace(threads=threads, program=_program(proc, pid))
        processes.append(seen)
    gaps = [*scan.gaps, *_gaps(proc, machine, after)]
    if scan.hidden:
        count = len(scan.hidden)
        gaps.append(f"{proc}/PID/fd of {count} processes may not be read: that needs root")
    return Host(
        machine, tuple(processes), tuple(sorted(scan.ends)), tuple(gaps), frozenset(scan.hidden)
    )


def _gaps(proc: str, machine: str, moments: Mapping[int, Mapping[int, Moment]]) -> Iterator[str]:
    """Yield why this process cannot see all that holds an end or waits."""
    if machine not in CALLS:
        yield f"the numbers of system calls are not known for {machine}"
    try:
        everything = (
            str(Path(f"{proc}/self/ns/pid").readlink()) == _INITIAL
            and str(Path(f"{proc}/self").readlink()) == str(os.getpid())
            and Path(f"{proc}/1").exists()
        )
    except OSError:
        everything = False
    if not everything:
        yield f"{proc} does not show all processes: it is not the host's own, or hides some"
    secret = sum(
        any(moment.call == DENIED for moment in threads.values()) for threads in moments.values()
    )
    if secret:
        yield f"{proc}/PID/syscall of {secret} processes may not be read: that needs root"


def _moments(proc: str, pid: int) -> dict[int, Moment]:
    """Return the threads of a process at this moment; none if it has ended."""
    found = {}
    with suppress(*_GONE):
        for tid in sorted(_numbers(f"{proc}/{pid}/task")):
            with suppress(*_GONE):
                found[tid] = _moment(f"{proc}/{pid}/task/{tid}")
    return found


def _moment(place: str) -> Moment:
    """Read a thread.  Raises FileNotFoundError, ProcessLookupError: it ended."""
    status = dict(_FIELD.findall(_read(f"{place}/status")))
    state = status[b"State"][:1].decode()
    inside = call = ""
    try:
        inside = _read(f"{place}/wchan").decode()
        inside = "" if inside == "0" else inside
        if state == "S" and may_wait(inside):
            call = _read(f"{place}/syscall").decode().strip()
    except PermissionError:
        call = DENIED
    return Moment(
        state,
        int(_read(f"{place}/stat").rpartition(b")")[2].split()[19]),
        (
            int(status[b"voluntary_ctxt_switches"]),
            int(status[b"nonvoluntary_ctxt_switches"]),
        ),
        inside,
        call,
    )


def _program(proc: str, pid: int) -> str:
    try:
        return Path(f"{proc}/{pid}/exe").readlink().name
    except OSError:
        return ""


def _one_table(machine: str, pid: int, tid: int) -> bool:
    """Tell whether two threads share a descriptor table, as far as kcmp(2) tells."""
    if machine not in CALLS:
        return False
    syscall = ctypes.CDLL(None).syscall
    arguments = (CALLS[machine].kcmp, pid, tid, _KCMP_FILES, 0, 0)
    return bool(syscall(*map(ctypes.c_long, arguments)) == 0)


def _numbers(place: str | int) -> set[int]:
    with os.scandir(place) as entries:
        return {int(entry.name) for entry in entries if entry.name.isdigit()}


def _read(path: str) -> bytes:
    with Path(path).open("rb", buffering=0) as file:
        return file.read()
