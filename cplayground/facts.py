"""Facts about the host's processes, from which :mod:`cplayground.proving` proves a deadlock."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from cplayground.snapshot import Name

DENIED = "?"  # the call of a thread whose system call may not be read


class Moment(NamedTuple):
    """A thread at one moment, as /proc/PID/task/TID shows it."""

    state: str  # State of status
    started: int  # field 22 of stat, in ticks of the clock: a later thread with this tid differs
    switches: tuple[int, int]  # times that it left a CPU, by itself and not: both of status
    inside: str  # the kernel function of wchan; "" if the kernel does not tell
    call: str  # the line of syscall; "" if it was not read, or DENIED


class Thread(NamedTuple):
    """A thread before and after the host's descriptors were read; None if it was not there."""

    tid: int
    table: int  # the thread that stands for its descriptor table: the leader, or itself
    before: Moment | None
    after: Moment | None


class Seen(NamedTuple):
    """A process of the host or of a container."""

    pid: int
    parent: int
    pids: tuple[int, ...]  # NSpid of status: from the reader's namespace to its own
    tracer: int  # 0 without
    command: Name
    program: str  # the last part of the path of /proc/PID/exe; "" if it was not read
    caught: int  # SigCgt of status: bit n - 1 for signal n
    ring: bool  # has an io_uring
    threads: tuple[Thread, ...]  # empty for a process that no proof needs


class End(NamedTuple):
    """A descriptor of a pipe."""

    pid: int
    table: int  # pid, or the thread with a descriptor table of its own
    fd: int
    pipe: Name
    reads: bool
    writes: bool


@dataclass(frozen=True)
class Host:
    """The host's processes and its pipes' ends, as one look found them.

    ``gaps`` are reasons why an end can exist that is not in ``ends``.  With one of them nothing
    is proved.  ``hidden`` are the processes whose descriptors may not be read.
    """

    machine: str  # of uname(2): system calls have other numbers elsewhere
    processes: tuple[Seen, ...] = ()
    ends: tuple[End, ...] = ()
    gaps: tuple[str, ...] = ()
    hidden: frozenset[int] = frozenset()


class Wait(NamedTuple):
    """A system call that waits for a pipe, or for a child."""

    call: str
    fd: int | None = None  # that is read
    child: int = 0  # in the thread's own namespace; 0 for any child


class Calls(NamedTuple):
    """Numbers of system calls."""

    reads: dict[int, str]
    moves: dict[int, str]  # that can wait for the other side too
    wait4: int
    waitid: int
    kcmp: int


_GENERIC = Calls(
    {63: "read", 65: "readv", 286: "preadv2"},
    {75: "vmsplice", 76: "splice", 77: "tee"},
    *(260, 95, 272),
)
# arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux.
CALLS = {
    "x86_64": Calls(
        {0: "read", 19: "readv", 327: "preadv2"},
        {275: "splice", 276: "tee", 278: "vmsplice"},
        *(61, 247, 312),
    ),
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
    "loongarch64": _GENERIC,
}
# Kernel functions in which a reader of an empty pipe sleeps: fs/pipe.c and fs/splice.c since 5.10.
_READING = re.compile(r"pipe_read|pipe_wait_readable|ipipe_prep|splice_from_pipe_next")
_WAITING = re.compile(r"do_wait")
_P_PID = 1


def may_wait(inside: str) -> bool:
    """Tell whether a thread in this kernel function can be in a call that :func:`wait` knows."""
    return not inside or bool(_READING.search(inside) or _WAITING.search(inside))


def wait(machine: str, moment: Moment) -> Wait | None:
    """Return what a thread sleeps for, or None if it can go on by itself or is not understood.

    A stopped thread and one that a debugger holds do not sleep.  A thread with a stack below
    4 GiB is taken for one of a 32-bit program, whose system calls have other numbers.
    """
    calls = CALLS.get(machine)
    fields = moment.call.split()
    if calls is None or moment.state != "S" or len(fields) != 9:
        return None
    number, *arguments = (int(field, 0) for field in fields)
    if arguments[6] < 1 << 32:
        return None
    if number in calls.reads or number in calls.moves:
        name = calls.reads.get(number) or calls.moves[number]
        known = bool(_READING.search(moment.inside))
        asleep = known if moment.inside else number in calls.reads
        return Wait(name, fd=_int(arguments[0])) if asleep else None
    if moment.inside and not _WAITING.search(moment.inside):
        return None
    if number == calls.wait4:
        return Wait("wait4", child=max(0, _int(arguments[0])))
    if number == calls.waitid:
        only = _int(arguments[0]) == _P_PID
        return Wait("waitid", child=_int(arguments[1]) if only else 0)
    return None


def _int(argument: int) -> int:
    """Return the lower half of a register as C's int."""
    return ((argument & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
