"""Compute plans: the request to build a topology, and the view that must result.

:func:`plan` walks through a topology as the kernel will, and uses only the rules of the system
calls.  A process that makes another one waits until that one has come to rest, so all pids and
descriptors are known in advance.  tests/guest/build_topology.c carries out the request.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from kbuild.lab import procfile
from tests.topology.topology import (
    CLONE_FILES,
    CLONE_NEWPID,
    CLONE_VFORK,
    CLOSE_RANGE_CLOEXEC,
    CLOSE_RANGE_UNSHARE,
    DEVICES,
    O_APPEND,
    O_CLOEXEC,
    O_CREAT,
    O_DIRECT,
    O_DIRECTORY,
    O_DSYNC,
    O_LARGEFILE,
    O_NOATIME,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_PATH,
    O_SYNC,
    O_TMPFILE,
    O_TRUNC,
    Anonymous,
    AnonymousKind,
    BecomeSubreaper,
    Block,
    Close,
    CloseRange,
    Container,
    Duplicate,
    DuplicateFrom,
    DuplicateOnto,
    End,
    EnterDirectory,
    Exec,
    JoinGroup,
    Link,
    Memfd,
    NewGroup,
    NewSession,
    Op,
    Open,
    OpenDevice,
    OpenDirectory,
    OpenMemory,
    OpenPath,
    OpenUnnamed,
    Pipe,
    Process,
    RemoveDirectory,
    Rename,
    Rest,
    Seek,
    SetCloexec,
    SetFlags,
    SetName,
    Signal,
    Socket,
    Spawn,
    StartThread,
    Take,
    Topology,
    Unlink,
    UnshareFiles,
    Write,
    is_name,
)

SIGKILL, SIGCHLD, SIGCONT, SIGSTOP = 9, 17, 18, 19
_STOPPING = frozenset((SIGSTOP, 20, 21, 22))
_IGNORED = frozenset((SIGCHLD, 23, 28))  # by default, in addition to SIGCONT

PROGRAM = b"build_topology"
INHERITED = b"inherited"

_ACCESS = 3
_SETTABLE = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME  # SETFL_MASK of fs/fcntl.c
_WRITE_LIMIT = 1 << 24
# Limits of build_topology.c: SLOTS, NAMES.
_MAX_SLOTS = 1000
_MAX_NAMES = 250


@dataclass(frozen=True)
class ExpectedPath:
    """``before``, a number if ``number_of`` is given, and ``after``.

    Equal keys in ``number_of`` stand for equal numbers, different keys for different ones.  The
    key ("pid", slot) stands for the pid of that process in the initial namespace.
    """

    before: bytes
    number_of: tuple[str, int] | None = None
    after: bytes = b""


@dataclass(frozen=True)
class ExpectedFile:
    """A descriptor; ``file`` is equal for descriptors of one open file."""

    fd: int
    cloexec: bool
    file: int
    position: int
    flags: int
    path: ExpectedPath | None  # None: not foreseen


@dataclass(frozen=True)
class ExpectedProcess:
    """A process; ``namespace`` is equal for processes of one PID namespace."""

    slot: int
    namespace: int
    ns_pid: int
    ns_ppid: int
    ns_pgid: int
    command: bytes
    state: str
    blocked: int  # bit n for signal n, up to 31
    pending: int  # without SIGCHLD, which arrives when others end
    files: tuple[ExpectedFile, ...]


@dataclass(frozen=True)
class Plan:
    """A request for build_topology, and the view that must result."""

    request: bytes
    slots: int
    processes: tuple[ExpectedProcess, ...]


# --- the walk ------------------------------------------------------------------------------


class Code(Enum):
    """The code of an operation in a request; the values are those of build_topology.c."""

    END = 0
    SPAWN = 1
    THREAD = 2
    OPEN = 3
    CLOSE = 4
    DUP = 5
    DUP_FROM = 6
    DUP_ONTO = 7
    SET_CLOEXEC = 8
    SET_FLAGS = 9
    SEEK = 10
    WRITE = 11
    PIPE = 12
    SOCKETPAIR = 13
    SOCKET = 14
    MEMFD = 15
    EVENTFD = 16
    EPOLL = 17
    TIMERFD = 18
    SIGNALFD = 19
    INOTIFY = 20
    PIDFD = 21
    IO_URING = 22
    UNLINK = 23
    RENAME = 24
    LINK = 25
    MKDIR = 26
    CHDIR = 27
    RMDIR = 28
    UNSHARE_FILES = 29
    CLOSE_RANGE = 30
    TAKE = 31
    SETPGID = 32
    SETSID = 33
    SET_NAME = 34
    BLOCK = 35
    SUBREAPER = 36
    EXEC = 37
    REST_FOR = 38
    SETTLE = 64
    STOP = 65
    TRACE = 66
    SIGNAL = 67


_OP = struct.Struct("<IIIIQ")
_REQUEST = struct.Struct("<IIII")
_ANONYMOUS: dict[AnonymousKind, tuple[Code, bytes]] = {
    "eventfd": (Code.EVENTFD, b"anon_inode:[eventfd]"),
    "eventpoll": (Code.EPOLL, b"anon_inode:[eventpoll]"),
    "timerfd": (Code.TIMERFD, b"anon_inode:[timerfd]"),
    "signalfd": (Code.SIGNALFD, b"anon_inode:[signalfd]"),
    "inotify": (Code.INOTIFY, b"anon_inode:inotify"),
    "pidfd": (Code.PIDFD, b"anon_inode:[pidfd]"),
    "io_uring": (Code.IO_URING, b"anon_inode:[io_uring]"),
}


@dataclass(eq=False)
class _Inode:
    size: int = 0


@dataclass(eq=False)
class _Entry:
    """A directory entry; like the kernel's dentry it outlives its removal while it is open."""

    name: bytes
    parent: _Entry | None
    inode: _Inode | None = None
    children: dict[bytes, _Entry] | None = None
    removed: bool = False

    def path(self, place: bytes) -> bytes:
        return place if self.parent is None else self.parent.path(place) + b"/" + self.name


@dataclass(eq=False)
class _File:
    """An open file description."""

    number: int
    flags: int
    position: int = 0
    inode: _Inode | None = None  # of a file that can be written and sought
    entry: _Entry | None = None
    path: ExpectedPath | None = None
    memory_of: _Process | None = None


@dataclass
class _Descriptor:
    file: _File
    cloexec: bool


@dataclass(eq=False)
class _Table:
    fds: dict[int, _Descriptor] = field(default_factory=dict)

    def lowest(self, least: int = 0) -> int:
        while least in self.fds:
            least += 1
        return least

    def copy(self) -> _Table:
        return _Table({fd: _Descriptor(d.file, d.cloexec) for fd, d in self.fds.items()})


@dataclass(eq=False)
class _Namespace:
    number: int
    parent: _Namespace | None
    first: _Process | None = None
    next: int = 1

    @property
    def level(self) -> int:
        return 1 + (self.parent.level if self.parent else 0)


@dataclass(eq=False)
class _Pid:
    numbers: dict[_Namespace, int] = field(default_factory=dict)


@dataclass(eq=False)
class _Task:
    process: _Process
    table: _Table
    command: bytes
    blocked: frozenset[int]

    @property
    def is_replaced(self) -> bool:
        """Tell whether the execve(2) of another thread has ended this one."""
        return self is not self.process.leader and self not in self.process.threads


@dataclass(eq=False)
class _Process:
    slot: int
    pid: _Pid
    namespace: _Namespace
    parent: _Process | None
    group: _Pid
    session: _Pid
    cwd: _Entry
    what: Process
    leader: _Task = field(init=False)
    threads: list[_Task] = field(default_factory=list)  # without the leader
    state: str = "S"
    leader_dead: bool = False
    gone: bool = False
    subreaper: bool = False
    # The parent that waits in vfork(2); and whether this process waits there forever.
    waited_for_by: _Process | None = None
    stuck: bool = False
    pending: set[int] = field(default_factory=set)

    @property
    def alive(self) -> bool:
        return not self.gone and (not self.leader_dead or bool(self.threads))

    @property
    def running(self) -> bool:
        return not self.gone and not self.leader_dead

    @property
    def is_first(self) -> bool:
        return self.namespace.first is self

    def in_namespace(self, namespace: _Namespace) -> int:
        return self.pid.numbers.get(namespace, 0)


class _Walk:
    """One walk through a topology, with the relevant state of the kernel."""

    def __init__(self, topology: Topology, place: bytes, io_uring: bool) -> None:
        self.topology = topology
        self.place = place
        self.io_uring = io_uring
        self.ops: list[tuple[int, int, int, int, int]] = []
        self.names: dict[bytes, int] = {}
        self.processes: list[_Process] = []
        self.slots = 0
        self.files = 0
        self.namespaces = 0
        self.outside = _Pid()
        inherited = _Entry(INHERITED, None, _Inode())
        self.root = _Entry(b"", None, children={INHERITED: inherited})
        inherited.parent = self.root
        self.inherited = self.new_file(2 | O_LARGEFILE, entry=inherited, inode=inherited.inode)

    # --- the request ---

    def emit(self, code: Code, a: int = 0, b: int = 0, c: int = 0, *, join: int = 0) -> int:
        self.ops.append((code.value, a, b, join, c & (1 << 64) - 1))
        return len(self.ops) - 1

    def has_room_for_name(self, name: bytes) -> bool:
        return name in self.names or len(self.names) < _MAX_NAMES

    def intern(self, name: bytes) -> int:
        return self.names.setdefault(name, len(self.names))

    def body(self, at: int) -> None:
        """Set the length of the body that was emitted after operation ``at``."""
        code, a, _, join, c = self.ops[at]
        self.ops[at] = (code, a, len(self.ops) - at - 1, join, c)

    def request(self) -> bytes:
        names = b"".join(struct.pack("<H", len(name) + 1) + name + b"\0" for name in self.names)
        ops = b"".join(_OP.pack(*op) for op in self.ops)
        size = _REQUEST.size + len(ops) + len(names)
        return _REQUEST.pack(size, len(self.ops), len(self.names), self.slots) + ops + names

    # --- small things ---

    def name(self, index: int) -> bytes:
        return self.topology.names[index % len(self.topology.names)]

    def new_slot(self) -> int:
        self.slots += 1
        return self.slots - 1

    def new_pid(self, namespace: _Namespace) -> _Pid:
        pid = _Pid()
        at: _Namespace | None = namespace
        while at is not None:
            pid.numbers[at] = at.next
            at.next += 1
            at = at.parent
        return pid

    def new_file(
        self,
        flags: int,
        *,
        entry: _Entry | None = None,
        inode: _Inode | None = None,
        path: ExpectedPath | None = None,
    ) -> _File:
        self.files += 1
        return _File(self.files, flags, 0, inode, entry, path)

    def install(self, task: _Task, file: _File, cloexec: bool, least: int = 0) -> None:
        task.table.fds[task.table.lowest(least)] = _Descriptor(file, cloexec)

    def pick(self, task: _Task, of: int) -> int | None:
        fds = sorted(task.table.fds)
        return fds[of % len(fds)] if fds else None

    # --- processes ---

    def make(self, what: Process, parent: _Task | None, namespace: _Namespace) -> _Process:
        """Make a process with a slot and a pid of its own, and its parent's other properties."""
        if parent is None:
            group, session, cwd = self.outside, self.outside, self.root
        else:
            of = parent.process
            group, session, cwd = of.group, of.session, of.cwd
        process = _Process(
            slot=self.new_slot(),
            pid=self.new_pid(namespace),
            namespace=namespace,
            parent=parent.process if parent else None,
            group=group,
            session=session,
            cwd=cwd,
            what=what,
        )
        if namespace.first is None:
            namespace.first = process
        self.processes.append(process)
        return process

    def new_namespace(self, parent: _Namespace | None) -> _Namespace:
        self.namespaces += 1
        return _Namespace(self.namespaces, parent)

    def container(self, container: Container, earlier: Sequence[_Process]) -> _Process:
        joins = None
        if container.joins is not None:
            # The namespace of a process that has ended takes no more processes.
            hosts = [p for p in earlier if p.is_first and p.running]
            joins = hosts[container.joins % len(hosts)] if hosts else None
        namespace = joins.namespace if joins else self.new_namespace(None)
        process = self.make(container.first, None, namespace)
        table = _Table({0: _Descriptor(self.inherited, False)})
        process.leader = _Task(process, table, PROGRAM, frozenset())
        at = self.emit(
            Code.SPAWN,
            process.slot,
            c=0 if joins else CLONE_NEWPID,
            join=joins.slot + 1 if joins else 0,
        )
        self.run(process)
        self.body(at)
        return process

    def run(self, process: _Process) -> None:
        leader = process.leader
        for op in process.what.ops:
            self.perform(leader, op)
        if not leader.is_replaced and not process.stuck:
            self.end(process)

    def end(self, process: _Process) -> None:
        kind = process.what.end
        if kind is End.DEAD_LEADER and not process.threads:
            kind = End.ZOMBIE
        if kind is End.REAPED and process.parent is None:
            kind = End.ZOMBIE
        if kind is End.HOLD:
            self.leave_waiting(process.waited_for_by)
        self.emit(Code.END, kind.value)
        if kind is End.HOLD:
            return
        process.state = "Z"
        process.leader_dead = True
        if kind is End.DEAD_LEADER:
            return
        process.threads.clear()
        process.gone = kind is End.REAPED
        if process.is_first:
            for other in self.processes:
                if other is not process and process.namespace in other.pid.numbers:
                    other.gone = True
        for other in self.processes:
            if other.parent is process and not other.gone:
                other.parent = self.reaper(process)

    def leave_waiting(self, waiting: _Process | None) -> None:
        """Report processes that wait in vfork(2), one for the other, as come to rest."""
        while waiting is not None:
            self.emit(Code.REST_FOR, waiting.slot)
            waiting.state = "D"
            waiting.stuck = True
            waiting = waiting.waited_for_by

    def reaper(self, process: _Process) -> _Process | None:
        """Return the process that adopts the children (find_new_reaper() of kernel/exit.c)."""
        at = process.parent
        while at is not None and at.namespace.level == process.namespace.level:
            if at.subreaper and at.alive:
                return at
            at = at.parent
        return process.namespace.first

    def spawn(self, task: _Task, op: Spawn) -> None:
        if self.slots >= _MAX_SLOTS:
            return
        process = task.process
        inside = self.new_namespace(process.namespace) if op.new_namespace else None
        child = self.make(op.child, task, inside or process.namespace)
        table = task.table if op.share_table else task.table.copy()
        child.leader = _Task(child, table, task.command, task.blocked)
        flags = (CLONE_NEWPID if op.new_namespace else 0) | (CLONE_FILES if op.share_table else 0)
        if op.vfork and task is process.leader:
            child.waited_for_by = process
            flags |= CLONE_VFORK
        at = self.emit(Code.SPAWN, child.slot, c=flags)
        self.run(child)
        self.body(at)

    def start_thread(self, task: _Task, op: StartThread) -> None:
        if self.slots >= _MAX_SLOTS:
            return
        process = task.process
        self.new_pid(process.namespace)
        thread = _Task(process, task.table, task.command, task.blocked)
        process.threads.append(thread)
        at = self.emit(Code.THREAD, self.new_slot())
        for inner in op.ops:
            self.perform(thread, inner)
        self.emit(Code.END, End.HOLD.value)
        self.body(at)

    # --- operations ---

    def perform(self, task: _Task, op: Op) -> None:
        if task.is_replaced or task.process.stuck:
            return
        match op:
            case Spawn():
                self.spawn(task, op)
            case StartThread():
                self.start_thread(task, op)
            case Open() | OpenPath() | OpenUnnamed() | OpenDirectory():
                self.open(task, op)
            case OpenDevice() | OpenMemory() | Pipe() | Socket() | Memfd() | Anonymous():
                self.create(task, op)
            case Close() | Duplicate() | DuplicateFrom() | DuplicateOnto() | SetCloexec():
                self.rearrange(task, op)
            case SetFlags() | Seek() | Write():
                self.change(task, op)
            case Unlink() | Rename() | Link() | EnterDirectory() | RemoveDirectory():
                self.rename(task, op)
            case UnshareFiles():
                self.emit(Code.UNSHARE_FILES)
                task.table = task.table.copy()
            case CloseRange():
                self.close_range(task, op)
            case Take():
                self.take(task, op)
            case NewGroup() | JoinGroup() | NewSession():
                self.group(task, op)
            case SetName():
                self.set_name(task, op)
            case Block():
                task.blocked = op.signals - {SIGKILL, SIGSTOP}
                self.emit(Code.BLOCK, c=sum(1 << n - 1 for n in task.blocked))
            case BecomeSubreaper():
                self.emit(Code.SUBREAPER)
                task.process.subreaper = True
            case Exec():
                self.exec(task)

    def open(self, task: _Task, op: Open | OpenPath | OpenUnnamed | OpenDirectory) -> None:
        cwd = task.process.cwd
        match op:
            case OpenDirectory(cloexec=cloexec):
                self.opened(task, b".", O_DIRECTORY | _cloexec(cloexec), entry=cwd)
            case OpenPath(name=None, cloexec=cloexec):
                self.opened(task, b".", O_PATH | _cloexec(cloexec), entry=cwd)
            case _ if cwd.removed:
                pass  # in a removed directory nothing can be found or made
            case OpenUnnamed(flags=flags):
                flags = flags & ~(_ACCESS | O_TRUNC) | 2 | O_TMPFILE
                file = self.opened(task, b".", flags, inode=_Inode())
                before = cwd.path(self.place) + b"/#"
                file.path = ExpectedPath(before, ("unnamed", file.number), b" (deleted)")
            case OpenPath(name=int(index), cloexec=cloexec):
                entry = self.entry(task, index)
                if entry is not None and entry.inode is not None:
                    flags = O_PATH | O_NOFOLLOW | _cloexec(cloexec)
                    self.opened(task, entry.name, flags, entry=entry)
            case Open(name=index, flags=flags):
                entry = self.entry(task, index) or self.new_entry(task, index)
                if entry is not None and entry.inode is not None:
                    if flags & O_TRUNC:
                        entry.inode.size = 0
                    flags |= O_CREAT
                    self.opened(task, entry.name, flags, entry=entry, inode=entry.inode)

    def opened(
        self,
        task: _Task,
        name: bytes,
        flags: int,
        *,
        entry: _Entry | None = None,
        inode: _Inode | None = None,
    ) -> _File:
        """Emit open(2), and record its result."""
        self.emit(Code.OPEN, self.intern(name), c=flags)
        file = self.new_file(_kept(flags), entry=entry, inode=inode)
        self.install(task, file, bool(flags & O_CLOEXEC))
        return file

    def entry(self, task: _Task, index: int) -> _Entry | None:
        """Return the entry of a name in the working directory, or None."""
        children = task.process.cwd.children
        assert children is not None
        return children.get(self.name(index))

    def new_entry(self, task: _Task, index: int) -> _Entry | None:
        """Make a file's name in the working directory, if the request has room for it."""
        cwd, name = task.process.cwd, self.name(index)
        if cwd.children is None or not self.has_room_for_name(name):
            return None
        entry = cwd.children[name] = _Entry(name, cwd, _Inode())
        return entry

    def create(
        self, task: _Task, op: OpenDevice | OpenMemory | Pipe | Socket | Memfd | Anonymous
    ) -> None:
        match op:
            case OpenDevice(which=which, flags=flags):
                name = DEVICES[which % len(DEVICES)]
                file = self.opened(task, name, flags & (_ACCESS | O_NONBLOCK | O_CLOEXEC))
                file.path = ExpectedPath(name)
            case OpenMemory(flags=flags):
                file = self.opened(task, b"/proc/self/mem", flags & (O_CLOEXEC | 2))
                file.memory_of = task.process
            case Pipe(flags=flags):
                flags &= O_CLOEXEC | O_NONBLOCK | O_DIRECT
                self.emit(Code.PIPE, c=flags)
                kept = flags & ~O_CLOEXEC
                reader = self.new_file(kept & ~O_DIRECT)
                writer = self.new_file(kept | 1)
                number = ("pipe", reader.number)
                for file in (reader, writer):
                    file.path = ExpectedPath(b"pipe:[", number, b"]")
                    self.install(task, file, bool(flags & O_CLOEXEC))
            case Socket():
                flags = _cloexec(op.cloexec) | (O_NONBLOCK if op.nonblock else 0)
                self.emit(Code.SOCKETPAIR if op.pair else Code.SOCKET, op.type % 3, c=flags)
                for _ in range(1 + op.pair):
                    file = self.new_file(2 | flags & O_NONBLOCK)
                    file.path = ExpectedPath(b"socket:[", ("socket", file.number), b"]")
                    self.install(task, file, op.cloexec)
            case Memfd(cloexec=cloexec):
                name = self.name(op.name)[:200]
                if not self.has_room_for_name(name):
                    return
                self.emit(Code.MEMFD, self.intern(name), c=int(cloexec))
                path = ExpectedPath(b"/memfd:" + name + b" (deleted)")
                file = self.new_file(2 | O_LARGEFILE, inode=_Inode(), path=path)
                self.install(task, file, cloexec)
            case Anonymous():
                self.anonymous(task, op)

    def anonymous(self, task: _Task, op: Anonymous) -> None:
        code, path = _ANONYMOUS[op.kind]
        flags = _cloexec(op.cloexec) | (O_NONBLOCK if op.nonblock else 0)
        access = 0 if op.kind == "inotify" else 2
        if op.kind == "eventpoll":
            flags &= O_CLOEXEC
        if op.kind in ("pidfd", "io_uring"):
            if op.kind == "io_uring" and not self.io_uring:
                return
            flags = O_CLOEXEC
        number = task.process.in_namespace(task.process.namespace)
        self.emit(code, number if op.kind == "pidfd" else 0, c=flags)
        file = self.new_file(access | flags & O_NONBLOCK, path=ExpectedPath(path))
        self.install(task, file, bool(flags & O_CLOEXEC))

    def rearrange(
        self, task: _Task, op: Close | Duplicate | DuplicateFrom | DuplicateOnto | SetCloexec
    ) -> None:
        fd = self.pick(task, op.of)
        if fd is None:
            return
        fds = task.table.fds
        match op:
            case Close():
                self.emit(Code.CLOSE, fd)
                del fds[fd]
            case Duplicate(times=times):
                self.emit(Code.DUP, fd, times)
                for _ in range(times):
                    self.install(task, fds[fd].file, False)
            case DuplicateFrom(least=least, cloexec=cloexec):
                self.emit(Code.DUP_FROM, fd, least, _cloexec(cloexec))
                self.install(task, fds[fd].file, cloexec, least)
            case DuplicateOnto(onto=onto, cloexec=cloexec):
                if onto != fd:
                    self.emit(Code.DUP_ONTO, fd, onto, _cloexec(cloexec))
                    fds[onto] = _Descriptor(fds[fd].file, cloexec)
            case SetCloexec(on=on):
                self.emit(Code.SET_CLOEXEC, fd, int(on))
                fds[fd].cloexec = on

    def change(self, task: _Task, op: SetFlags | Seek | Write) -> None:
        fd = self.pick(task, op.of)
        if fd is None:
            return
        file = task.table.fds[fd].file
        if file.flags & O_PATH:
            return
        match op:
            case SetFlags(flags=flags):
                flags &= _SETTABLE & ~O_DIRECT
                self.emit(Code.SET_FLAGS, fd, c=flags)
                file.flags = file.flags & ~_SETTABLE | flags
            case Seek(position=position):
                if file.memory_of is None and (file.inode is None or position < 0):
                    return
                self.emit(Code.SEEK, fd, c=position)
                file.position = position
            case Write(count=count):
                if file.inode is None or file.flags & _ACCESS not in (1, 2):
                    return
                at = file.inode.size if file.flags & O_APPEND else file.position
                # The position is checked before O_APPEND moves it (rw_verify_area()).
                if max(at, file.position) + count > _WRITE_LIMIT:
                    return
                self.emit(Code.WRITE, fd, count)
                # A write of no bytes does not move the position (generic_write_checks()).
                if count:
                    file.position = at + count
                    file.inode.size = max(file.inode.size, file.position)

    def rename(
        self, task: _Task, op: Unlink | Rename | Link | EnterDirectory | RemoveDirectory
    ) -> None:
        process = task.process
        cwd = process.cwd
        assert cwd.children is not None
        name = self.name(op.name)
        entry = cwd.children.get(name)
        if cwd.removed or not self.has_room_for_name(name):
            return
        if isinstance(op, EnterDirectory):
            for _ in range(op.depth):
                self.enter(process, name)
            return
        if entry is None:
            return
        if isinstance(op, RemoveDirectory):
            if entry.children == {}:
                self.emit(Code.RMDIR, self.intern(name))
                entry.removed = True
                del cwd.children[name]
            return
        if entry.inode is None:
            return
        if isinstance(op, Unlink):
            self.emit(Code.UNLINK, self.intern(name))
            entry.removed = True
            del cwd.children[name]
            return
        to = self.name(op.to)
        other = cwd.children.get(to)
        if not self.has_room_for_name(to):
            return
        if isinstance(op, Link):
            if other is None:
                self.emit(Code.LINK, self.intern(name), self.intern(to))
                cwd.children[to] = _Entry(to, cwd, entry.inode)
            return
        if other is not None and (other.inode is None or other.inode is entry.inode):
            return  # a directory; or two names of one file, which rename(2) leaves alone
        self.emit(Code.RENAME, self.intern(name), self.intern(to))
        if other is not None:
            other.removed = True
        del cwd.children[name]
        entry.name = to
        cwd.children[to] = entry

    def enter(self, process: _Process, name: bytes) -> None:
        cwd = process.cwd
        assert cwd.children is not None
        entry = cwd.children.get(name)
        if entry is None:
            self.emit(Code.MKDIR, self.intern(name))
            entry = cwd.children[name] = _Entry(name, cwd, children={})
        if entry.children is not None:
            self.emit(Code.CHDIR, self.intern(name))
            process.cwd = entry

    def close_range(self, task: _Task, op: CloseRange) -> None:
        flags = op.flags & (CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC)
        last = op.first + op.length
        self.emit(Code.CLOSE_RANGE, op.first, last, flags)
        if flags & CLOSE_RANGE_UNSHARE:
            task.table = task.table.copy()
        for fd in [fd for fd in task.table.fds if op.first <= fd <= last]:
            if flags & CLOSE_RANGE_CLOEXEC:
                task.table.fds[fd].cloexec = True
            else:
                del task.table.fds[fd]

    def take(self, task: _Task, op: Take) -> None:
        process = task.process
        others = [
            other
            for other in self.processes
            if other is not process
            and other.running
            and other.in_namespace(process.namespace)
            and other.leader.table.fds
        ]
        if not others:
            return
        other = others[op.process % len(others)]
        fds = sorted(other.leader.table.fds)
        fd = fds[op.of % len(fds)]
        file = other.leader.table.fds[fd].file
        # The descriptor of the process takes the lowest number, and is closed again.
        between = task.table.lowest()
        if other.leader.table is task.table and fd == between:
            return
        self.emit(Code.TAKE, other.in_namespace(process.namespace), fd)
        self.install(task, file, True, between + 1)

    def group(self, task: _Task, op: NewGroup | JoinGroup | NewSession) -> None:
        process = task.process
        leads_session = process.session is process.pid
        match op:
            case NewSession():
                if not any(p.group is process.pid and not p.gone for p in self.processes):
                    self.emit(Code.SETSID)
                    process.session = process.group = process.pid
            case NewGroup():
                if not leads_session:
                    self.emit(Code.SETPGID, 0)
                    process.group = process.pid
            case JoinGroup(which=which):
                groups = [
                    group
                    for group in dict.fromkeys(
                        p.group
                        for p in self.processes
                        if not p.gone and p.session is process.session
                    )
                    if len(group.numbers) == process.namespace.level
                    and process.namespace in group.numbers
                ]
                # A group keeps its leader's pid.  If a namespace's own first process, or a
                # process outside, is in a group of it, the end of the namespace waits forever.
                if groups and not leads_session and not process.is_first:
                    group = groups[which % len(groups)]
                    self.emit(Code.SETPGID, group.numbers[process.namespace])
                    process.group = group

    def set_name(self, task: _Task, op: SetName) -> None:
        name = op.name[: procfile.COMMAND_MAX]
        if self.has_room_for_name(name):
            self.emit(Code.SET_NAME, self.intern(name))
            task.command = name

    def exec(self, task: _Task) -> None:
        process = task.process
        self.emit(Code.EXEC, process.slot)
        process.threads.clear()
        process.waited_for_by = None
        process.leader = task
        task.command = PROGRAM
        task.table = task.table.copy()
        for fd in [fd for fd, one in task.table.fds.items() if one.cloexec]:
            del task.table.fds[fd]

    # --- when all processes exist ---

    def finish(self) -> None:
        there = [process for process in self.processes if not process.gone]
        for process in there:
            self.emit(Code.SETTLE, process.slot, ord(process.state))
        held = [process for process in there if process.running and not process.stuck]
        for process in held:
            rest = process.what.rest
            if rest is not Rest.SLEEPING:
                code = Code.STOP if rest is Rest.STOPPED else Code.TRACE
                self.emit(code, process.slot)
                process.state = rest.value
                self.emit(Code.SETTLE, process.slot, ord(process.state))
        for process in there:
            if process.alive:
                for signal in process.what.signals:
                    self.signal(process, signal)

    def signal(self, process: _Process, signal: Signal) -> None:
        """Send a signal if it is known to stay pending."""
        number = signal.number
        if number in (SIGKILL, SIGSTOP, SIGCONT):
            return
        everyone = [process.leader, *process.threads]
        stays = all(number in task.blocked for task in everyone)
        if signal.to_thread:
            stays = number in process.leader.blocked and not process.leader_dead
        if process.state == Rest.STOPPED.value and not process.threads and not process.is_first:
            stays = stays or (number not in _IGNORED and number not in _STOPPING)
        if stays:
            self.emit(Code.SIGNAL, process.slot, number, int(signal.to_thread))
            process.pending.add(number)

    def expected(self) -> tuple[ExpectedProcess, ...]:
        return tuple(self.expect(process) for process in self.processes if not process.gone)

    def expect(self, process: _Process) -> ExpectedProcess:
        namespace = process.namespace
        table = _Table()
        if process.alive:
            table = process.threads[0].table if process.leader_dead else process.leader.table
        return ExpectedProcess(
            slot=process.slot,
            namespace=namespace.number,
            ns_pid=process.in_namespace(namespace),
            ns_ppid=process.parent.in_namespace(namespace) if process.parent else 0,
            ns_pgid=process.group.numbers.get(namespace, 0),
            command=process.leader.command,
            state=process.state,
            blocked=signal_mask(process.leader.blocked),
            pending=signal_mask(process.pending - {SIGCHLD}),
            files=tuple(
                ExpectedFile(
                    fd=fd,
                    cloexec=one.cloexec,
                    file=one.file.number,
                    position=one.file.position,
                    flags=one.file.flags,
                    path=self.path(one.file),
                )
                for fd, one in sorted(table.fds.items())
            ),
        )

    def path(self, file: _File) -> ExpectedPath | None:
        path = file.path
        if file.memory_of is not None:
            if file.memory_of.gone:
                return None  # the entry in /proc disappears some time after the process
            return ExpectedPath(b"/proc/", ("pid", file.memory_of.slot), b"/mem")
        if file.entry is not None:
            text = file.entry.path(self.place)
            path = ExpectedPath(text + (b" (deleted)" if file.entry.removed else b""))
        assert path is not None
        # Room for a number of ten digits; near the limit, the path is not foreseen.
        if path.number_of and len(path.before) > procfile.PATH_MAX - 40:
            return None
        if len(path.before) > procfile.PATH_MAX:
            return ExpectedPath(procfile.PATH_TOO_LONG)
        return path


def _cloexec(on: bool) -> int:
    return O_CLOEXEC if on else 0


def _kept(flags: int) -> int:
    """Return the flags of open(2) that the kernel keeps (build_open_how(), do_dentry_open())."""
    if flags & O_PATH:
        return flags & (O_PATH | O_DIRECTORY | O_NOFOLLOW)
    # O_SYNC has two bits, and the upper one implies the lower one.
    implied = O_DSYNC if flags & (O_SYNC - O_DSYNC) else 0
    return flags & ~(O_CREAT | O_TRUNC | O_CLOEXEC) | O_LARGEFILE | implied


def signal_mask(signals: Iterable[int]) -> int:
    """Return a mask as the module prints it: bit n for signal n, up to 31."""
    return sum(1 << number for number in set(signals) if number <= 31)


def plan(topology: Topology, place: bytes, *, io_uring: bool) -> Plan:
    """Compute the request for a topology, and the view that must result.

    ``place`` is the directory of build_topology.  ``io_uring`` tells whether build_topology has
    reported that its kernel has io_uring.
    """
    if not topology.names or any(not is_name(name) for name in topology.names):
        raise ValueError(f"a topology needs names of files: {topology.names!r}")
    walk = _Walk(topology, place, io_uring)
    firsts: list[_Process] = []
    for container in topology.containers:
        firsts.append(walk.container(container, firsts))
    walk.finish()
    return Plan(walk.request(), walk.slots, walk.expected())
