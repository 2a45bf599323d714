"""Make the snapshot without the module, from /proc and kcmp(2).

The rules are those of docs/reference/procfile.md: which processes, which pids, which table, which
columns.  Two things differ:

- *Moments.*  /proc shows one property of one descriptor at a time.  The columns of a line, and
  the lines of a process, are of different moments.  A descriptor that is closed while it is
  compared with others is left out.
- *Harm.*  The kernel holds a reference on an open file while readlink(2), a read of fdinfo or
  kcmp(2) looks at it.  If its last descriptor is closed in that moment, the walk closes it.

No file of /proc/PID/fd is opened, and no observed file is asked for its attributes: a server of
FUSE or NFS could let the walk wait for ever.  readlink(2) and fdinfo ask none: they print what the
kernel has in memory.

The fdinfo of an epoll can wait, because it takes the epoll's mutex (ep_show_fdinfo of
fs/eventpoll.c).  epoll_ctl(2) and epoll_wait(2) hold that while they poll the watched files, and
a file of FUSE asks its server then (fuse_file_poll of fs/fuse/).  With a server that does
not answer, the walk waits as long as the observed program, and cannot be killed.  The fdinfo of a
tun device waits for the lock of the network's configuration (tun_chr_show_fdinfo of
drivers/net/tun.c).  Linux 6.1, 6.12 and 7.3 were read for this.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import platform
import re
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from cplayground.errors import Error, NotPermittedError
from cplayground.snapshot import Descriptor, Name, OpenFile, Process, Snapshot

# arch/*/kernel/syscalls/syscall*.tbl and include/uapi/asm-generic/unistd.h of Linux.
_SYS_KCMP = {
    ("x86_64", 64): 312,
    ("aarch64", 64): 272,
    ("riscv64", 64): 272,
    ("loongarch64", 64): 272,
    ("ppc64le", 64): 354,
    ("s390x", 64): 343,
    ("armv7l", 32): 378,
    ("i686", 32): 349,
}
_KCMP_FILE = 0

# readlink(2) fails so, because /proc has one page for a path.
_TOO_LONG = Name(b"(path too long)")
# Their numbers are those of inodes that nothing else has.
_NUMBERED = re.compile(rb"(?:pipe|socket):\[[0-9]+\]")
# A descriptor that is replaced again and again is taken as it was the last time.
_TRIES = 4
# A process that ends has no files in /proc, or they fail so.
_GONE = (errno.ENOENT, errno.ESRCH)


class Walk(NamedTuple):
    """A snapshot, and the processes that the user may not look into.

    ``hidden`` are global pids that are not in the snapshot.  With a procfs that is mounted with
    ``hidepid=1``, processes of the reader's own namespace are among them.
    """

    snapshot: Snapshot
    hidden: tuple[int, ...]


def walk(root: str = "/proc") -> Snapshot:
    """Return the snapshot of all processes that live in other PID namespaces than the reader.

    ``root`` is a procfs of the reader's PID namespace.  The snapshot has the columns of
    ``fields=extended``.  It is complete, or there is an error: NotPermittedError if one process
    may not be looked into.  Raises Error if this kernel has no kcmp(2).
    """
    snapshot, hidden = survey(root)
    if hidden:
        many = f" and {len(hidden) - 1} others" if len(hidden) > 1 else ""
        raise NotPermittedError(
            f"you may not look into process {hidden[0]}{many}", hint="run it as root"
        )
    return snapshot


def survey(root: str = "/proc") -> Walk:
    """Return what the user may see, and what not; otherwise as :func:`walk`.

    A procfs that is mounted with ``hidepid`` does not even show that a process exists.
    """
    kcmp = _Kcmp()
    _check_place(root)
    seen, hidden = [], []
    with _directory(root) as place:
        pids = sorted(int(name) for name in _entries(place) if name.isdigit())
    for pid in pids:
        try:
            with _directory(f"{root}/{pid}") as place:
                record = _record(root, pid, place)
        except PermissionError:
            hidden.append(pid)
        except OSError as error:
            if error.errno not in _GONE:
                raise
        else:
            if record is not None:
                seen.append(record)
    return Walk(_snapshot(seen, _ids(seen, kcmp)), tuple(hidden))


class _Line(NamedTuple):
    """A descriptor as /proc shows it; ``same`` is equal for all descriptors of one open file."""

    fd: int
    close_on_exec: bool
    position: int
    flags: int
    path: Name
    same: bytes


class _Record(NamedTuple):
    process: Process  # its namespace is still pid:[4026532201], and it has no descriptors
    started: int  # clock ticks since the boot
    thread: int  # whose table was read
    lines: tuple[_Line, ...]


def _check_place(root: str) -> None:
    """Raise an error if ``root`` is not a procfs that counts pids as kcmp(2) does."""
    try:
        with _directory(f"{root}/self") as place:
            own = _status(place).get(b"NSpid", b"").split()
    except OSError as error:
        raise Error(f"{root} is not a procfs: {error.strerror}") from error
    # A procfs shows the pids from its own namespace down to the one of the process.
    if own != [b"%d" % os.getpid()]:
        raise NotPermittedError(
            f"{root} is the procfs of another PID namespace",
            hint="run it in the PID namespace of that procfs: on the host",
        )


@contextlib.contextmanager
def _directory(path: str | bytes, beneath: int | None = None) -> Iterator[int]:
    """Yield a directory's descriptor; below it, a pid that is used again cannot be met."""
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=beneath)
    try:
        yield opened
    finally:
        os.close(opened)


def _entries(place: int) -> list[str]:
    """Return the names in a directory, in its own order."""
    return os.listdir(place)


def _read(path: str | bytes, place: int) -> bytes:
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=place)
    try:
        parts = []
        while part := os.read(opened, 65536):
            parts.append(part)
    finally:
        os.close(opened)
    return b"".join(parts)


def _fields(text: bytes) -> dict[bytes, bytes]:
    """Return the values of ``status`` or ``fdinfo``; the first line of a name is the kernel's."""
    found: dict[bytes, bytes] = {}
    for line in text.split(b"\n"):
        name, _, value = line.partition(b":")
        found.setdefault(name, value.strip())
    return found


def _status(place: int) -> dict[bytes, bytes]:
    return _fields(_read("status", place))


def _record(root: str, pid: int, place: int) -> _Record | None:
    """Return a process with its descriptors, or None if it lives in the reader's namespace."""
    status = _status(place)
    if len(status.get(b"NSpid", b"").split()) < 2:
        return None
    ppid, status = _ppid(root, place, status)
    process = Process(
        namespace=os.readlink("ns/pid", dir_fd=place),
        global_pid=pid,
        pid=_innermost(status, b"NSpid"),
        ppid=ppid,
        pgid=_innermost(status, b"NSpgid"),
        command=Name(_read("comm", place)[:-1]),
        descriptors=(),
        state=status[b"State"][:1].decode("ascii"),
        blocked=_signals(status[b"SigBlk"]),
        pending=_signals(status[b"SigPnd"]) | _signals(status[b"ShdPnd"]),
    )
    if not process.pid:  # it was being removed when the kernel wrote its status
        return None
    # The command in parentheses may hold anything, parentheses and spaces included.
    started = int(_read("stat", place).rpartition(b")")[2].split()[19])
    thread, lines = pid, _lines(place, "") if _has_table(status) else None
    if lines is None:
        thread, lines = _lines_of_thread(place)
    return _Record(process, started, thread, lines)


def _innermost(status: Mapping[bytes, bytes], name: bytes) -> int:
    return int(status[name].split()[-1])


def _signals(mask: bytes) -> int:
    """Return signals as the module counts them: bit n for signal n, up to 31."""
    return int(mask, 16) << 1 & 0xFFFFFFFF


def _has_table(status: Mapping[bytes, bytes]) -> bool:
    # A table has at least as many slots as a word has bits; a thread that has exited has none.
    return int(status[b"FDSize"]) > 0


def _ppid(root: str, place: int, status: dict[bytes, bytes]) -> tuple[int, dict[bytes, bytes]]:
    """Return the parent's pid in the namespace of the process, and a newer status.

    A parent keeps its pid until its children have another parent.  So the pid in PPid is that of
    one process if it is the same before and after.
    """
    for _ in range(_TRIES):
        try:
            with _directory(os.path.join(root, status[b"PPid"].decode())) as parent:
                pids = _status(parent)[b"NSpid"].split()
        except (FileNotFoundError, ProcessLookupError):
            pids = []
        before, status = status, _status(place)
        if before[b"PPid"] == status[b"PPid"]:
            if status[b"PPid"] == b"0":
                return 0, status
            if pids:
                # A parent lives in the namespace of its child, or in one around it.  Each
                # namespace adds a pid.
                inside = len(pids) == len(status[b"NSpid"].split())
                return int(pids[-1]) if inside else 0, status
    raise PermissionError(
        errno.EACCES, f"the parent of process {status[b'Pid'].decode()} is hidden"
    )


def _lines_of_thread(place: int) -> tuple[int, tuple[_Line, ...]]:
    """Return the first thread that has a table, and its descriptors; else 0 and none."""
    with _directory("task", place) as tasks:
        for name in _entries(tasks):  # in the kernel's order: by age
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if _has_table(_fields(_read(f"{name}/status", tasks))):
                    return int(name), _lines(tasks, f"{name}/")
    return 0, ()


def _lines(place: int, before: str) -> tuple[_Line, ...]:
    """Return the descriptors of the thread whose directory is ``before`` in ``place``."""
    with _directory(f"{before}fd", place) as links, _directory(f"{before}fdinfo", place) as infos:
        found = (_line(fd, links, infos) for fd in sorted(map(int, _entries(links))))
        return tuple(line for line in found if line is not None)


def _line(fd: int, links: int, infos: int) -> _Line | None:
    """Return a descriptor, or None if it was closed meanwhile."""
    name = b"%d" % fd
    try:
        after = _link(name, links)
        for _ in range(_TRIES):
            path, info, after = after, _info(name, infos), _link(name, links)
            if path == after:
                break
    except (FileNotFoundError, ProcessLookupError):
        return None
    flags = int(info[b"flags"], 8)
    # Fields that cannot change while a file is open.  Linux before 5.14 does not show the inode.
    same = (
        info[b"mnt_id"],
        info.get(b"ino") or (after if _NUMBERED.fullmatch(after) else b""),
        b"%o" % (flags & (os.O_ACCMODE | os.O_PATH)),
    )
    return _Line(
        fd=fd,
        # fs/proc/fd.c puts the descriptor's own bit in the place of the file's.
        close_on_exec=bool(flags & os.O_CLOEXEC),
        position=int(info[b"pos"]),
        flags=flags & ~os.O_CLOEXEC,
        path=after,
        same=b" ".join(same),
    )


def _link(name: bytes, links: int) -> Name:
    try:
        return Name(os.readlink(name, dir_fd=links))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return _TOO_LONG
        raise


def _info(name: bytes, infos: int) -> dict[bytes, bytes]:
    opened = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=infos)
    try:
        # The four lines that are needed come first.  An epoll's text can have a line for each of
        # a million files.
        return _fields(os.read(opened, 4096))
    finally:
        os.close(opened)


class _Held(NamedTuple):
    """A descriptor, as kcmp(2) names it; ``age`` orders holders, the oldest process first."""

    thread: int
    fd: int
    age: tuple[int, int, int]


class _Kcmp:
    """kcmp(2) with KCMP_FILE: order open files by their addresses, which it does not tell."""

    def __init__(self) -> None:
        machine = platform.machine(), 8 * struct.calcsize("P")
        if machine not in _SYS_KCMP:
            raise Error(f"the number of kcmp(2) is unknown for {machine[0]}")
        self._number = _SYS_KCMP[machine]
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long
        self._syscall.argtypes = [ctypes.c_long] * 6
        try:
            self._call(os.getpid(), 0, os.getpid(), 0)
        except PermissionError as error:
            raise NotPermittedError(
                "kcmp(2) is not permitted", hint="run it outside of a container"
            ) from error
        except OSError as error:
            if error.errno == errno.ENOSYS:
                raise Error("this kernel has no kcmp(2): CONFIG_KCMP is not set") from error

    def _call(self, thread: int, fd: int, other: int, other_fd: int) -> int:
        result = self._syscall(self._number, thread, other, _KCMP_FILE, fd, other_fd)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return int(result)

    def order(self, one: _Held, two: _Held) -> int | None:
        """Return -1, 0 or 1 as for numbers, or None if a descriptor of the two is gone."""
        try:
            return (0, -1, 1)[self._call(one.thread, one.fd, two.thread, two.fd)]
        except OSError as error:
            if error.errno in (errno.EBADF, errno.ESRCH, errno.EPERM):
                return None
            raise

    def is_there(self, one: _Held) -> bool:
        return self.order(one, one) is not None


class _Group(NamedTuple):
    """Descriptors of one open file.  ``fit`` are those to compare with: none of them is gone."""

    held: list[_Held]
    fit: list[_Held]


def _groups(bucket: list[_Held], kcmp: _Kcmp) -> list[list[_Held]]:
    """Return the descriptors of each open file, without those that are gone.

    A file is found among those before it by halves, so n descriptors need n log n comparisons.
    """
    ordered: list[_Group] = []
    for one in bucket:
        low, high = 0, len(ordered)
        while low < high:
            middle = (low + high) // 2
            group = ordered[middle]
            order = kcmp.order(one, group.fit[-1])
            if order is None:
                if not kcmp.is_there(one):
                    break
                group.fit.pop()
                if not group.fit:
                    # A later descriptor of this file could not be told from one of another.
                    del ordered[middle]
                    high -= 1
            elif order == 0:
                group.held.append(one)
                group.fit.append(one)
                break
            elif order < 0:
                high = middle
            else:
                low = middle + 1
        else:
            ordered.insert(low, _Group([one], [one]))
    return [group.held for group in ordered]


def _ids(seen: list[_Record], kcmp: _Kcmp) -> dict[tuple[int, int], str]:
    """Return the id of the open file of each global pid and descriptor, without those gone."""
    buckets: dict[tuple[bytes, bool], list[_Held]] = {}
    for record in seen:
        pid = record.process.global_pid
        for line in record.lines:
            held = _Held(record.thread, line.fd, (record.started, pid, line.fd))
            lone = _NUMBERED.fullmatch(line.path) is not None
            buckets.setdefault((line.same, lone), []).append(held)
    ids: dict[tuple[int, int], str] = {}
    for (same, lone), bucket in buckets.items():
        groups = _groups(bucket, kcmp)
        for group in groups:
            # An end of a pipe keeps its id when the oldest process closes it.  Most inodes of
            # other kinds are opened several times, and the kernel has no name for one of them.
            first = () if lone and len(groups) == 1 else min(held.age for held in group)
            name = _id(b"file", same, *(b"%d" % number for number in first))
            ids.update(((held.age[1], held.fd), name) for held in group)
    return ids


def _id(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _namespaces(seen: list[_Record]) -> list[str]:
    """Return the id of each record's namespace.

    The kernel uses a namespace's number again as soon as it has ended.  Its first process tells
    two of them apart: it is older than all others.
    """
    firsts: dict[str, list[int]] = {}
    for record in sorted(seen, key=lambda record: record.started):
        if record.process.pid == 1:
            firsts.setdefault(record.process.namespace, []).append(record.started)
    names = []
    for record in seen:
        link = record.process.namespace
        older = [first for first in firsts.get(link, ()) if first <= record.started]
        names.append(_id(b"namespace", link.encode(), b"%d" % (older[-1] if older else 0)))
    return names


def _snapshot(seen: list[_Record], ids: Mapping[tuple[int, int], str]) -> Snapshot:
    files: dict[str, OpenFile] = {}
    processes = []
    for record, namespace in zip(seen, _namespaces(seen)):
        descriptors = []
        for line in record.lines:
            name = ids.get((record.process.global_pid, line.fd))
            if name is None:
                continue
            file = files.get(name)
            if file is None:
                file = OpenFile(len(files) + 1, name, line.position, line.flags, line.path)
                files[name] = file
            descriptors.append(
                Descriptor(line.fd, line.close_on_exec, file, line.position, line.flags, line.path)
            )
        processes.append(
            record.process._replace(namespace=namespace, descriptors=tuple(descriptors))
        )
    return Snapshot(tuple(processes), tuple(files.values()), extended=True)
