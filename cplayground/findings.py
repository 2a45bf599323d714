"""Find the missing close() of a pipe's write end, with proof.

A reader sees the end of a pipe when the last write end is closed.  A process that reads a pipe and
has forgotten one waits for ever, and so does one whose parent has forgotten one and waits for it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from cplayground.facts import End, Host, Seen
from cplayground.looking import look
from cplayground.names import harmless, shown
from cplayground.naming import places, process_name
from cplayground.proving import Ring, Waiting, alive, rings
from cplayground.sharing import holders, pipes
from cplayground.snapshot import Container, Holder, Name, Pipe, Process, Snapshot

__all__ = ["Finding", "Host", "check", "look"]

_LEVELS = ("error", "warning", "note")
# Each make of one build holds both ends of a pipe of tokens, and so do others that do as make does.
_TOKENS = frozenset({b"make", b"gmake", b"cargo", b"ninja", b"samu"})
_S = signal.Signals


def _bits(*signals: int) -> int:
    return sum(1 << number - 1 for number in signals)


# No sleeping thread gets these: faults of its own, a lost reader, CPU time, and glibc's threads.
_NEVER = _bits(
    *(_S.SIGILL, _S.SIGTRAP, _S.SIGABRT, _S.SIGBUS, _S.SIGFPE, _S.SIGSEGV, _S.SIGSYS),
    *(_S.SIGPIPE, _S.SIGXCPU, _S.SIGXFSZ, _S.SIGVTALRM, _S.SIGPROF, 32, 33),
)
# A person sends these to end a program.
_ENDING = _bits(_S.SIGHUP, _S.SIGINT, _S.SIGQUIT, _S.SIGTERM)
# Handlers that an interpreter always has, and that write to no pipe.
_OWN = {
    "python": _bits(_S.SIGINT),
    "bash": _bits(_S.SIGINT, _S.SIGCHLD),
    "dash": _bits(_S.SIGINT, _S.SIGCHLD),
    "busybox": _bits(_S.SIGINT, _S.SIGCHLD),
}
_STDIN = 0
_STDERR = 2


class Finding(NamedTuple):
    """One fact that a person should know about a pipe.

    The sentence has the names of the tables, COMMAND:PID/FD with the pid in the container.
    The evidence gives the pid on the host, which the paths below /proc have.
    """

    level: str  # "error", "warning" or "note"
    sentence: str  # "sort:3/0 waits for the end of pipe:[12], but holds its write end as sort:3/4."
    pipe: Name | None
    waiting: tuple[Holder, ...]  # descriptors that wait for the end
    missing_close: tuple[Holder, ...]  # the write ends that keep it from coming
    evidence: tuple[str, ...]  # one fact a line, with its source


def check(snapshot: Snapshot, host: Host | None = None) -> tuple[Finding, ...]:
    """Return findings: errors first, then warnings, then notes.

    The snapshot is a whole one: writers that a filter dropped would be missed.  ``host`` is what
    :func:`look` saw just after the snapshot.  Without it, for example for a text from a file,
    nothing is proved: there are no errors.
    """
    known = {(h.process.global_pid, h.descriptor.fd): h for h in holders(snapshot)}
    names = _Names(
        {process.global_pid: process for process in snapshot.processes},
        {} if host is None else {process.pid: process for process in host.processes},
        places(snapshot),
    )
    found: list[Finding] = []
    if host is not None:
        for ring in rings(host):
            found.extend(_ring(ring, host, known, names))
    told = {finding.pipe for finding in found}
    for pipe in pipes(snapshot):
        if pipe.path not in told:
            still = pipe if host is None else _still(pipe, host)
            found.extend(_alone(still, host, names) or _left_open(still, names))
    return tuple(sorted(found, key=lambda finding: _LEVELS.index(finding.level)))


# Proof.


def _ring(
    ring: Ring, host: Host, known: Mapping[tuple[int, int], Holder], names: _Names
) -> Iterator[Finding]:
    """Yield a finding for each pipe whose end a ring of processes keeps from coming."""
    ends: dict[Name, list[End]] = {pipe: [] for pipe in ring.pipes}
    for end in host.ends:
        if end.writes and end.pipe in ends:
            ends[end.pipe].append(end)
    # Standard output is in use, unless the process reads the same pipe.
    left = {
        pipe: [end for end in those if _is_left_over(end, ring.waiting[end.pid])]
        for pipe, those in ends.items()
    }
    if not any(left.values()):
        left = ends
    for pipe, missing in left.items():
        reading = [
            (pid, one) for pid in sorted(ring.pids) for one in ring.waiting[pid] if one.pipe == pipe
        ]
        waiting = _held(known, pipe, ((pid, one.fd) for pid, one in reading))
        missing_close = _held(known, pipe, ((end.pid, end.fd) for end in missing))
        if not missing or not (waiting or missing_close):
            continue
        concerned = sorted({*(pid for pid, _ in reading), *(end.pid for end in ends[pipe])})
        doubts = list(_doubts(ring, host))
        yield Finding(
            "warning" if doubts else "error",
            _sentence(pipe, reading, missing, ring, names),
            pipe,
            waiting,
            missing_close,
            (
                *names.on_host(concerned),
                *(line for pid in concerned for line in _sleeps(pid, ring.waiting[pid], names)),
                *(_place(end) + f": a write end of {pipe.text}" for end in ends[pipe]),
                f"/proc/*/task/*/fd: no other write end in {len(host.processes)} processes",
                *(f"not proved: {doubt}" for doubt in doubts),
            ),
        )


def _is_left_over(end: End, waits: Iterable[Waiting]) -> bool:
    """Tell whether a process keeps an end that it does not write to."""
    return end.fd > _STDERR or any(one.pipe == end.pipe for one in waits)


def _sentence(
    pipe: Name,
    reading: Iterable[tuple[int, Waiting]],
    missing: Iterable[End],
    ring: Ring,
    names: _Names,
) -> str:
    fds: dict[int, set[int]] = {}
    for pid, one in reading:
        fds.setdefault(pid, set()).update(() if one.fd is None else (one.fd,))
    readers = list(fds)
    home, before = names.home(readers[0])
    who = _listed(names.descriptors(pid, numbers, home) for pid, numbers in fds.items())
    kept: dict[int, set[int]] = {}
    for end in sorted(missing, key=lambda end: (end.pid not in readers, end)):
        kept.setdefault(end.pid, set()).add(end.fd)
    reasons: list[str] = []
    for pid, numbers in kept.items():
        name = "its write end" if not reasons else "it"
        end_name = names.descriptors(pid, numbers, home)
        if [pid] == readers:
            reasons.append(f"holds {name} itself as {end_name}")
            continue
        others = (one for one in ring.waiting[pid] if one.pipe != pipe)
        purpose = next((f" and waits for {_purpose(one, names, home)}" for one in others), "")
        reasons.append(f"{end_name} holds {name}{purpose}")
    verb = "waits" if len(readers) == 1 else "wait"
    if len(reasons) > 4:
        reasons = [*reasons[:3], f"{len(reasons) - 3} more hold it"]
    why = ", and ".join(reasons)
    return f"{before}{who} {verb} for the end of {pipe.text}, but {why}."


def _purpose(one: Waiting, names: _Names, home: str) -> str:
    if one.pipe is not None:
        return f"the end of {one.pipe.text}"
    return _listed([names.process(pid, home) for pid in one.children])


def _sleeps(pid: int, waits: Iterable[Waiting], names: _Names) -> Iterator[str]:
    home, _ = names.home(pid)
    for one in waits:
        place = f"/proc/{pid}/task/{one.thread.tid}"
        inside = f" in {one.moment.inside}" if one.moment.inside else ""
        if one.pipe is not None:
            aim = f"{one.call}({one.fd}) of {one.pipe.text}"
        elif one.anybody:
            aim = f"{one.call}() for any child"
        else:
            aim = f"{one.call}() for {_listed(names.process(pid, home) for pid in one.children)}"
        yield f"{place}/syscall: sleeps{inside}, {aim}"
        yield f"{place}/status: has not run from the first look to the second"


def _doubts(ring: Ring, host: Host) -> Iterator[str]:
    """Yield how a process that sleeps could go on nevertheless."""
    for process in host.processes:
        if process.pid not in ring.pids:
            continue
        if process.ring:
            yield f"/proc/{process.pid}/fd: its io_uring could write"
        caught = process.caught & ~_NEVER
        for name, own in _OWN.items():
            caught &= ~own if process.program.startswith(name) else ~0
        waits = ring.waiting[process.pid]
        kept = {end.pipe for end in host.ends if end.pid == process.pid and end.writes}
        if not any(one.pipe in kept for one in waits):
            caught &= ~_ENDING
        # A program that reads its input has no pipe to wake itself: it inherited the end.
        if caught and any(one.fd != _STDIN for one in waits):
            numbers = [bit + 1 for bit in range(64) if caught >> bit & 1]
            yield (
                f"/proc/{process.pid}/status: a handler of signal {_listed(numbers)} could write"
            )
    yield from host.gaps


# Without proof.


def _still(pipe: Pipe, host: Host) -> Pipe:
    """Return the ends that were there when the host was looked at."""
    there = {(end.pid, end.fd) for end in host.ends if end.pipe == pipe.path}

    def left(those: Iterable[Holder]) -> tuple[Holder, ...]:
        return tuple(
            holder
            for holder in those
            if holder.process.global_pid in host.hidden
            or (holder.process.global_pid, holder.descriptor.fd) in there
        )

    return Pipe(pipe.path, left(pipe.readers), left(pipe.writers))


def _alone(pipe: Pipe, host: Host | None, names: _Names) -> list[Finding]:
    """Return a warning if the only process that reads a pipe is the only one that writes to it.

    It is a note if the process has several threads, waits for several files, or runs: then the
    pipe may wake one of its threads, or have been made just now.
    """
    pids = {holder.process.global_pid for holder in (*pipe.readers, *pipe.writers)}
    if len(pids) != 1 or not pipe.readers or not pipe.writers or not _is_plain(pipe):
        return []
    (pid,) = pids
    reads = [holder.descriptor.fd for holder in pipe.readers]
    writes = [holder.descriptor.fd for holder in pipe.writers]
    level = "warning"
    evidence = [
        *names.on_host(pids),
        "the snapshot: no other process of a container holds an end of the pipe",
    ]
    if host is None:
        evidence.append("the host's processes were not looked at: one could hold an end too")
    else:
        if any(end.pid != pid for end in host.ends if end.pipe == pipe.path):
            return []
        evidence.append("/proc/*/task/*/fd: no process of the host holds an end either")
        evidence.extend(f"not sure: {gap}" for gap in host.gaps)
        threads = [thread for seen in host.processes if seen.pid == pid for thread in alive(seen)]
        moments = [thread.before for thread in threads if thread.before is not None]
        if any(moment.state in "tT" for moment in moments):
            return []  # stopped, perhaps between pipe() and fork()
        if len(moments) > 1:
            level = "note"
            evidence.append(f"/proc/{pid}/task: {len(moments)} threads: one may write to another")
        elif any("poll" in moment.inside or "select" in moment.inside for moment in moments):
            level = "note"
            evidence.append(f"/proc/{pid}/wchan: {moments[0].inside}: waits for several files")
        elif any(moment.state == "R" for moment in moments):
            level = "note"
            evidence.append(f"/proc/{pid}/stat: it runs, and may be about to fork or to close")
    home, before = names.home(pid)
    sentence = (
        f"{before}{names.process(pid, home)} is the only process with an end of {pipe.path.text}:"
        f" {names.descriptors(pid, reads, home)} to read,"
        f" {names.descriptors(pid, writes, home)} to write."
        " A read of the empty pipe waits for ever."
    )
    return [Finding(level, sentence, pipe.path, pipe.readers, pipe.writers, tuple(evidence))]


def _left_open(pipe: Pipe, names: _Names) -> list[Finding]:
    """Return a note if a process keeps the end that it does not need.

    Ends with close-on-exec are kept knowingly, as systemd's store of descriptors keeps them.
    """
    reads = _by_pid(holder for holder in pipe.readers if not holder.descriptor.close_on_exec)
    writes = _by_pid(holder for holder in pipe.writers if not holder.descriptor.close_on_exec)
    both = sorted(reads.keys() & writes.keys())
    if not both or not _is_plain(pipe):
        return []
    readers = {holder.process.global_pid for holder in pipe.readers}
    writers = {holder.process.global_pid for holder in pipe.writers}
    effects = []
    if writers - set(both) or len(both) > 1:
        effects.append("A reader sees no end while it holds a write end itself.")
    if readers - set(both) or len(both) > 1:
        effects.append("A writer gets no SIGPIPE while it holds a read end itself.")
    if not effects:
        return []
    told = []
    for pid in both:
        home, before = names.home(pid)
        read_ends, write_ends = (
            names.descriptors(pid, [holder.descriptor.fd for holder in those[pid]], home)
            for those in (reads, writes)
        )
        told.append(
            f"{before}{names.process(pid, home)} holds both ends of {pipe.path.text}:"
            f" {read_ends} to read, {write_ends} to write."
        )
    evidence = (
        *names.on_host(both),
        "the snapshot: neither end has close-on-exec, and a read would wait",
    )
    return [Finding("note", " ".join((*told, *effects)), pipe.path, (), (), evidence)]


def _is_plain(pipe: Pipe) -> bool:
    """Tell whether a read waits, nobody has the pipe open for both, and it holds no tokens."""
    return (
        not any(holder.descriptor.flags & os.O_NONBLOCK for holder in pipe.readers)
        and not any(holder.descriptor.flags & os.O_RDWR for holder in pipe.readers)
        and not any(holder.process.command in _TOKENS for holder in (*pipe.readers, *pipe.writers))
    )


# Words.


class _Names(NamedTuple):
    """The processes of the snapshot and of the host by global pid, and the containers."""

    processes: Mapping[int, Process]
    seen: Mapping[int, Seen]
    where: Mapping[int, Container]

    def home(self, pid: int) -> tuple[str, str]:
        """Return the id of a process's container, and the beginning of a sentence about it.

        The sentence says the container's name if there are several.
        """
        place = self.where.get(pid)
        if place is None:
            return "", ""
        several = any(one.id != place.id for one in self.where.values())
        return place.id, f"In {harmless(place.name)}, " if several else ""

    def process(self, pid: int, home: str) -> str:
        """Return the name of a process, with its place if that is not ``home``."""
        return self._name(pid) + self._away(pid, home)

    def descriptors(self, pid: int, fds: Iterable[int], home: str) -> str:
        """Return the name of descriptors of a process, as :meth:`process` does."""
        numbers = ",".join(map(str, sorted(set(fds))))
        return f"{self._name(pid)}/{numbers}{self._away(pid, home)}"

    def on_host(self, pids: Iterable[int]) -> Iterator[str]:
        """Yield lines of evidence: the pids that the paths below /proc have."""
        for pid in sorted(pids):
            if pid in self.processes:
                yield f"{process_name(self.processes[pid])} is process {pid} of the host"

    def _name(self, pid: int) -> str:
        one = self.processes.get(pid)
        return process_name(one) if one else f"{shown(self.seen[pid].command)}:{pid}"

    def _away(self, pid: int, home: str) -> str:
        place = self.where.get(pid)
        if place is None:
            return " (host)"
        return "" if place.id == home else f" ({harmless(place.name)})"


def _by_pid(those: Iterable[Holder]) -> dict[int, list[Holder]]:
    found: dict[int, list[Holder]] = {}
    for holder in those:
        found.setdefault(holder.process.global_pid, []).append(holder)
    return found


def _held(
    known: Mapping[tuple[int, int], Holder], pipe: Name, those: Iterable[tuple[int, int | None]]
) -> tuple[Holder, ...]:
    """Return the snapshot's holders; ends of the host and of private tables are not in it."""
    found = []
    for pid, fd in dict.fromkeys(those):
        holder = known.get((pid, fd)) if fd is not None else None
        if holder is not None and holder.descriptor.path == pipe:
            found.append(holder)
    return tuple(found)


def _place(end: End) -> str:
    task = f"/task/{end.table}" if end.table != end.pid else ""
    return f"/proc/{end.pid}{task}/fd/{end.fd}"


def _listed(words: Iterable[object]) -> str:
    """Return words with commas and "and"; of many the first three and a count."""
    texts = [str(word) for word in words]
    if len(texts) > 4:
        texts = [*texts[:3], f"{len(texts) - 3} more"]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
