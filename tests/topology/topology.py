"""Describe topologies: processes and descriptors to build in a guest.

A :class:`Topology` lists the operations of each process, in order.  A process that makes another
one goes on when that one has come to rest.  tests/topology/planning.py computes the result.

Operands are numbers without a range: n means the n-th open descriptor, modulo their number.  An
operation that cannot succeed at its place is left out.  Every value is therefore a valid topology,
and so is each part of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

# The values of x86-64, because guests are x86-64 on every host.
O_CREAT = 0o100
O_TRUNC = 0o1000
O_APPEND = 0o2000
O_NONBLOCK = 0o4000
O_DSYNC = 0o10000
O_ASYNC = 0o20000
O_DIRECT = 0o40000
O_LARGEFILE = 0o100000
O_DIRECTORY = 0o200000
O_NOFOLLOW = 0o400000
O_NOATIME = 0o1000000
O_CLOEXEC = 0o2000000
O_SYNC = 0o4010000
O_PATH = 0o10000000
O_TMPFILE = 0o20200000

CLONE_FILES = 0x400
CLONE_VFORK = 0x4000
CLONE_NEWPID = 0x20000000
CLOSE_RANGE_UNSHARE = 2
CLOSE_RANGE_CLOEXEC = 4

DEVICES = (b"/dev/null", b"/dev/zero", b"/dev/full")
# A table that grows in one step to more slots than the module examines in one step.
HIGHEST_FD = 140_000

_NAME_MAX = 255


@dataclass(frozen=True)
class Open:
    """Open a file of the working directory, and create it if it is missing."""

    name: int
    flags: int


@dataclass(frozen=True)
class OpenPath:
    """Open a file, or the working directory, with O_PATH."""

    name: int | None
    cloexec: bool


@dataclass(frozen=True)
class OpenUnnamed:
    """Open a file without a name in the working directory: O_TMPFILE."""

    flags: int


@dataclass(frozen=True)
class OpenDirectory:
    """Open the working directory itself."""

    cloexec: bool


@dataclass(frozen=True)
class OpenDevice:
    """Open one of DEVICES."""

    which: int
    flags: int


@dataclass(frozen=True)
class OpenMemory:
    """Open /proc/self/mem, which allows negative positions."""

    flags: int


@dataclass(frozen=True)
class Close:
    """Close a descriptor."""

    of: int


@dataclass(frozen=True)
class Duplicate:
    """dup(2), several times."""

    of: int
    times: int


@dataclass(frozen=True)
class DuplicateFrom:
    """fcntl(2), F_DUPFD: the lowest free descriptor from ``least`` on."""

    of: int
    least: int
    cloexec: bool


@dataclass(frozen=True)
class DuplicateOnto:
    """dup3(2)."""

    of: int
    onto: int
    cloexec: bool


@dataclass(frozen=True)
class SetCloexec:
    """fcntl(2), F_SETFD."""

    of: int
    on: bool


@dataclass(frozen=True)
class SetFlags:
    """fcntl(2), F_SETFL."""

    of: int
    flags: int


@dataclass(frozen=True)
class Seek:
    """lseek(2), SEEK_SET."""

    of: int
    position: int


@dataclass(frozen=True)
class Write:
    """write(2) to a file."""

    of: int
    count: int


@dataclass(frozen=True)
class Pipe:
    """pipe2(2)."""

    flags: int


@dataclass(frozen=True)
class Socket:
    """socket(2), or socketpair(2), of AF_UNIX; ``type`` counts stream, datagram, seqpacket."""

    type: int
    pair: bool
    cloexec: bool
    nonblock: bool


@dataclass(frozen=True)
class Memfd:
    """memfd_create(2)."""

    name: int
    cloexec: bool


AnonymousKind = Literal[
    "eventfd", "eventpoll", "timerfd", "signalfd", "inotify", "pidfd", "io_uring"
]


@dataclass(frozen=True)
class Anonymous:
    """A descriptor of an anonymous inode; io_uring is left out if the guest has none."""

    kind: AnonymousKind
    cloexec: bool
    nonblock: bool


@dataclass(frozen=True)
class Unlink:
    """unlink(2)."""

    name: int


@dataclass(frozen=True)
class Rename:
    """rename(2), within the working directory."""

    name: int
    to: int


@dataclass(frozen=True)
class Link:
    """link(2), within the working directory."""

    name: int
    to: int


@dataclass(frozen=True)
class EnterDirectory:
    """mkdir(2), if it is missing, and chdir(2), ``depth`` times."""

    name: int
    depth: int


@dataclass(frozen=True)
class RemoveDirectory:
    """rmdir(2) of an empty directory."""

    name: int


@dataclass(frozen=True)
class UnshareFiles:
    """unshare(2), CLONE_FILES."""


@dataclass(frozen=True)
class CloseRange:
    """close_range(2)."""

    first: int
    length: int
    flags: int


@dataclass(frozen=True)
class Take:
    """pidfd_getfd(2): get another process's descriptor."""

    process: int
    of: int


@dataclass(frozen=True)
class NewGroup:
    """setpgid(0, 0)."""


@dataclass(frozen=True)
class JoinGroup:
    """setpgid(2): join a group of the same session."""

    which: int


@dataclass(frozen=True)
class NewSession:
    """setsid(2)."""


@dataclass(frozen=True)
class SetName:
    """prctl(2), PR_SET_NAME."""

    name: bytes


@dataclass(frozen=True)
class Block:
    """sigprocmask(2), SIG_SETMASK."""

    signals: frozenset[int]


@dataclass(frozen=True)
class BecomeSubreaper:
    """prctl(2), PR_SET_CHILD_SUBREAPER."""


@dataclass(frozen=True)
class Exec:
    """execve(2) of the same program, which goes on with the next operation."""


@dataclass(frozen=True)
class Spawn:
    """clone(2); with ``vfork`` the first thread waits until the child ends or calls execve(2)."""

    child: Process
    new_namespace: bool
    share_table: bool
    vfork: bool = False


@dataclass(frozen=True)
class StartThread:
    """clone(2) of a thread."""

    ops: tuple[Op, ...]


Op = (
    Open
    | OpenPath
    | OpenUnnamed
    | OpenDirectory
    | OpenDevice
    | OpenMemory
    | Close
    | Duplicate
    | DuplicateFrom
    | DuplicateOnto
    | SetCloexec
    | SetFlags
    | Seek
    | Write
    | Pipe
    | Socket
    | Memfd
    | Anonymous
    | Unlink
    | Rename
    | Link
    | EnterDirectory
    | RemoveDirectory
    | UnshareFiles
    | CloseRange
    | Take
    | NewGroup
    | JoinGroup
    | NewSession
    | SetName
    | Block
    | BecomeSubreaper
    | Exec
    | Spawn
    | StartThread
)


class End(Enum):
    """The end of a process after its operations; the values are those of build_topology.c."""

    HOLD = 0
    ZOMBIE = 1
    REAPED = 2  # it ends and its parent waits for it: its own children are orphans
    DEAD_LEADER = 3  # only the first thread ends


class Rest(Enum):
    """The state in which a process is held, once all exist."""

    SLEEPING = "S"
    STOPPED = "T"
    TRACED = "t"


@dataclass(frozen=True)
class Signal:
    """A signal that is sent to a process and stays pending."""

    number: int
    to_thread: bool


@dataclass(frozen=True)
class Process:
    """The operations of a process, and how it is held afterwards."""

    ops: tuple[Op, ...] = ()
    end: End = End.HOLD
    rest: Rest = Rest.SLEEPING
    signals: tuple[Signal, ...] = ()


@dataclass(frozen=True)
class Container:
    """A first process, in a new PID namespace or in that of an earlier container."""

    first: Process
    joins: int | None = None


@dataclass(frozen=True)
class Topology:
    """Containers, and the names of their files."""

    names: tuple[bytes, ...]
    containers: tuple[Container, ...]


def is_name(name: bytes) -> bool:
    """Tell whether a file can have this name."""
    return (
        0 < len(name) <= _NAME_MAX and name not in (b".", b"..") and not {0, ord("/")} & set(name)
    )
