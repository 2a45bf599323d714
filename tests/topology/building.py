"""The resident program that builds topologies in a guest: tests/guest/build_topology.c."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from kbuild.lab import oracle, procfile
from kbuild.lab.oracle import SeenProcess
from tests.topology import planning
from tests.topology.planning import SIGCHLD, SIGKILL, ExpectedPath, Plan
from tests.topology.topology import Topology


class Talker(Protocol):
    """A running program: kbuild.guest.guest.Background, or its stand-in."""

    def read_line(self, timeout_s: float) -> bytes:
        """Return the next line of its output, b"" at the end."""

    def write(self, data: bytes) -> None:
        """Give it input."""


class NotBuiltError(Exception):
    """The guest could not carry out a plan; the text is its reason."""


@dataclass(frozen=True)
class Built:
    """The views of a topology while it was held still."""

    text: bytes  # of the module's file
    seen: tuple[SeenProcess, ...]
    pids: tuple[int, ...]  # of each slot, in the initial namespace


class Builder:
    """A connection to a running build_topology; ``place`` is its directory."""

    def __init__(self, program: Talker, place: bytes, *, timeout_s: float) -> None:
        self.place = place
        self._program = program
        self._timeout_s = timeout_s
        words = self._answer("ready")
        self._io_uring = words == ["1"]

    def plan(self, wanted: Topology) -> Plan:
        """Return the plan of a topology for this guest."""
        return planning.plan(wanted, self.place, io_uring=self._io_uring)

    def build(self, plan: Plan) -> Built:
        """Build a topology, take its views and remove it; raises NotBuiltError."""
        self._program.write(plan.request)
        text, view, *pids = self._answer("built")
        return Built(_bytes(text), oracle.parse(_bytes(view)), tuple(map(int, pids)))

    def _answer(self, expected: str) -> list[str]:
        line = self._program.read_line(self._timeout_s)
        word, _, rest = line.decode(errors="replace").rstrip("\n").partition(" ")
        if word != expected:
            raise NotBuiltError(f"build_topology: {rest if word == 'failed' else line!r}")
        return rest.split(" ")


def _bytes(word: str) -> bytes:
    return b"" if word == "-" else bytes.fromhex(word)


@dataclass(frozen=True)
class Comparison:
    """The numbers of things compared, and the differences, one line each."""

    processes: int
    descriptors: int
    differences: tuple[str, ...]


def compare(built: Built, plan: Plan, *, extended: bool) -> Comparison:
    """Compare the module's file with the kernel's view and with the plan.

    Raises ProcfileError if the file violates the format.
    """
    shown = procfile.parse(built.text, extended=extended)
    kernel = oracle.differences(shown, built.seen)
    foreseen = unexpected(shown, plan, built.pids)
    return Comparison(
        processes=len(plan.processes),
        descriptors=sum(len(process.files) for process in plan.processes),
        differences=tuple(
            [f"the kernel: {line}" for line in kernel] + [f"the plan: {line}" for line in foreseen]
        ),
    )


def _unforeseen(state: str) -> int:
    """Return the signals whose pending state no plan foresees.

    On Linux 5.10 a dying process still takes signals, so a zombie keeps the SIGKILL that comes
    with the end of a namespace or of a parent.  Linux 6.1 drops them (prepare_signal() in
    kernel/signal.c of both).
    """
    return 1 << SIGCHLD | (1 << SIGKILL if state == "Z" else 0)


def unexpected(shown: Iterable[procfile.Process], plan: Plan, pids: Sequence[int]) -> list[str]:
    """Compare a listing with a plan, and return the differences, one line each.

    ``pids`` are those of the slots, in the initial namespace.  Fields that the plan does not
    foresee, or that a listing with basic fields lacks, are not compared.
    """
    ours = {process.pid: process for process in shown}
    theirs = {pids[process.slot]: process for process in plan.processes}
    found = [f"process {pid}: not shown" for pid in sorted(theirs.keys() - ours.keys())]
    found += [f"process {pid}: not in the plan" for pid in sorted(ours.keys() - theirs.keys())]
    same = Correspondence()
    for pid in sorted(ours.keys() & theirs.keys()):
        one, two = ours[pid], theirs[pid]
        where = f"process {pid} (slot {two.slot})"
        found += _fields(where, one, two, ("ns_pid", "ns_ppid", "ns_pgid", "command"))
        if one.extended is not None:
            known = one.extended.pending & ~_unforeseen(two.state)
            signals = replace(one.extended, pending=known)
            found += _fields(where, signals, two, ("state", "blocked", "pending"))
        found += same.add(where, "namespace", one.namespace, two.namespace)
        fds = {file.fd: file for file in one.files}
        expected = {file.fd: file for file in two.files}
        for fd in sorted(fds.keys() ^ expected.keys()):
            what = "not in the plan" if fd in fds else "not shown"
            found.append(f"{where}, descriptor {fd}: {what}")
        for fd in sorted(fds.keys() & expected.keys()):
            where_fd = f"{where}, descriptor {fd}"
            file = expected[fd]
            found += _fields(where_fd, fds[fd], file, ("cloexec", "position", "flags"))
            found += same.add(where_fd, "open file", fds[fd].id, file.file)
            if file.path is not None:
                found += _path(where_fd, fds[fd].path, file.path, pids, same)
    return found


@dataclass
class Correspondence:
    """A relation between two kinds of names for the same things; it must be one to one."""

    left: dict[tuple[str, object], tuple[object, str]] = field(default_factory=dict)
    right: dict[tuple[str, object], tuple[object, str]] = field(default_factory=dict)

    def add(self, where: str, what: str, one: object, two: object) -> list[str]:
        """Add a pair, and return its contradictions to earlier pairs."""
        found = []
        other, place = self.left.setdefault((what, one), (two, where))
        if other != two:
            found.append(f"{where}: another {what} has the same name as that of {place}")
        other, place = self.right.setdefault((what, two), (one, where))
        if other != one:
            found.append(f"{where}: the same {what} has another name than that of {place}")
        return found


def _fields(where: str, one: object, two: object, names: Iterable[str]) -> list[str]:
    pairs = [(name, getattr(one, name), getattr(two, name)) for name in names]
    return [
        f"{where}: {name} is {got!r}, it must be {wanted!r}"
        for name, got, wanted in pairs
        if got != wanted
    ]


def _path(
    where: str, got: bytes, path: ExpectedPath, pids: Sequence[int], same: Correspondence
) -> list[str]:
    if path.number_of is None or path.number_of[0] == "pid":
        number = b"%d" % pids[path.number_of[1]] if path.number_of else b""
        wanted = path.before + number + path.after
        return [] if got == wanted else [f"{where}: path is {got!r}, it must be {wanted!r}"]
    rest = got.removeprefix(path.before).removesuffix(path.after)
    if path.before + rest + path.after != got or not rest.isdigit():
        wanted = path.before + b"<number>" + path.after
        return [f"{where}: path is {got!r}, it must be {wanted!r}"]
    kind, key = path.number_of
    return same.add(where, f"inode of a {kind}", int(rest), key)
