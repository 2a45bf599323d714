"""Compare the procfile with the kernel's view, as guest/include/kernel_view.h writes it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from kbuild.lab.procfile import PATH_TOO_LONG, Process

# Signals 1 to 31: those of a mask of 32 bits.
_SHOWN_SIGNALS = 0xFFFFFFFE


@dataclass(frozen=True)
class SeenFile:
    """A descriptor as fdinfo, readlink(2) and kcmp(2) show it."""

    fd: int
    cloexec: bool | None  # None if the kernel does not tell
    group: int  # equal for descriptors of one open file, by kcmp(2)
    position: int
    flags: int
    path: bytes | None  # None: ENAMETOOLONG


@dataclass(frozen=True)
class SeenProcess:
    """A process as /proc/PID shows it."""

    pid: int
    ns_pid: int
    ns_ppid: int
    ns_pgid: int
    state: str
    blocked: int  # bit n for signal n, all 64
    pending: int  # of the process and of its first thread
    namespace: int  # inode of /proc/PID/ns/pid
    command: bytes
    files: tuple[SeenFile, ...]


def _name(text: str) -> bytes | None:
    if text == "!":
        return None
    return b"" if text == "-" else bytes.fromhex(text)


def parse(text: bytes) -> tuple[SeenProcess, ...]:
    """Parse the output of observe; raises ValueError if it is cut off or malformed."""
    *lines, last = text.decode("ascii").removesuffix("\n").split("\n")
    if not text.endswith(b"\n") or last != f"end {len(lines)}":
        raise ValueError(f"the output of observe is cut off: {last!r} after {len(lines)} lines")
    seen: list[tuple[list[str], list[SeenFile]]] = []
    for line in lines:
        kind, *fields = line.split(" ")
        if kind == "P":
            seen.append((fields, []))
            continue
        if kind != "F":
            raise ValueError(f"observe printed {line!r}")
        fd, cloexec, group, position, flags, path = fields
        seen[-1][1].append(
            SeenFile(
                int(fd),
                None if cloexec == "?" else cloexec == "1",
                int(group),
                int(position),
                int(flags, 8),
                _name(path),
            )
        )
    processes = []
    for fields, files in seen:
        pid, ns_pid, ns_ppid, ns_pgid, state, blocked, pending, namespace, command = fields
        processes.append(
            SeenProcess(
                pid=int(pid),
                ns_pid=int(ns_pid),
                ns_ppid=int(ns_ppid),
                ns_pgid=int(ns_pgid),
                state=state,
                # The kernel's sets begin with signal 1.
                blocked=int(blocked, 16) << 1,
                pending=int(pending, 16) << 1,
                namespace=int(namespace),
                command=_name(command) or b"",
                files=tuple(files),
            )
        )
    return tuple(processes)


def differences(shown: Iterable[Process], seen: Iterable[SeenProcess]) -> list[str]:
    """Compare field by field, and return the differences, one line each.

    State and signals are compared if they are shown, and close-on-exec if the kernel tells it.
    """
    ours = {process.pid: process for process in shown}
    theirs = {process.pid: process for process in seen}
    found = [f"process {pid}: not shown" for pid in sorted(theirs.keys() - ours.keys())]
    found += [f"process {pid}: does not exist" for pid in sorted(ours.keys() - theirs.keys())]
    namespaces: list[tuple[str, Hashable, str]] = []
    files: list[tuple[str, Hashable, str]] = []
    for pid in sorted(ours.keys() & theirs.keys()):
        one, two = ours[pid], theirs[pid]
        fields = [
            (name, getattr(one, name), getattr(two, name))
            for name in ("ns_pid", "ns_ppid", "ns_pgid", "command")
        ]
        if one.extended is not None:
            fields += [
                ("state", one.extended.state, two.state),
                ("blocked", hex(one.extended.blocked), hex(two.blocked & _SHOWN_SIGNALS)),
                ("pending", hex(one.extended.pending), hex(two.pending & _SHOWN_SIGNALS)),
            ]
        found += [
            f"process {pid}: {name} is {got!r}, the kernel says {expected!r}"
            for name, got, expected in fields
            if got != expected
        ]
        namespaces.append((one.namespace, two.namespace, f"process {pid}"))
        our_files = {file.fd: file for file in one.files}
        their_files = {file.fd: file for file in two.files}
        for fd in sorted(our_files.keys() ^ their_files.keys()):
            what = "does not exist" if fd in our_files else "not shown"
            found.append(f"process {pid}, descriptor {fd}: {what}")
        for fd in sorted(our_files.keys() & their_files.keys()):
            ours_, theirs_ = our_files[fd], their_files[fd]
            path = PATH_TOO_LONG if theirs_.path is None else theirs_.path
            cloexec = ours_.cloexec if theirs_.cloexec is None else theirs_.cloexec
            for name, got, expected in (
                ("close-on-exec", ours_.cloexec, cloexec),
                ("position", ours_.position, theirs_.position),
                ("flags", oct(ours_.flags), oct(theirs_.flags)),
                ("path", ours_.path, path),
            ):
                if got != expected:
                    found.append(
                        f"process {pid}, descriptor {fd}: {name} is {got!r},"
                        f" the kernel says {expected!r}"
                    )
            files.append((ours_.id, theirs_.group, f"process {pid}, descriptor {fd}"))
    return found + _not_bijective("namespace", namespaces) + _not_bijective("open file", files)


def _not_bijective(what: str, pairs: Iterable[tuple[str, Hashable, str]]) -> list[str]:
    found = []
    by_id: dict[str, tuple[Hashable, str]] = {}
    by_object: dict[Hashable, tuple[str, str]] = {}
    for identity, thing, where in pairs:
        other, place = by_id.setdefault(identity, (thing, where))
        if other != thing:
            found.append(f"{where}: another {what} has the same id as {place}")
        known, place = by_object.setdefault(thing, (identity, where))
        if known != identity:
            found.append(f"{where}: the same {what} has another id than {place}")
    return found
