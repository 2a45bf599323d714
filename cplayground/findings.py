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
from cplayground.names import shown
from cplayground.proving import Ring, Waiting, alive, rings
from cplayground.sharing import holders, pipes
from cplayground.snapshot import Holder, Name, Pipe, Snapshot

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
    """One fact that a person should know about a pipe."""

    level: str  # "error", "warning" or "note"
    sentence: str  # "PID 19 (sort) waits for the end of pipe:[12], but holds its write end as 4."
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
    found: list[Finding] = []
    if host is not None:
        for ring in rings(host):
            found.extend(_ring(ring, host, known))
    told = {finding.pipe for finding in found}
    for pipe in pipes(snapshot):
        if pipe.path not in told:
            still = pipe if host is None else _still(pipe, host)
            found.extend(_alone(still, host) or _left_open(still))
    return tuple(sorted(found, key=lambda finding: _LEVELS.index(finding.level)))


# Proof.


def _ring(ring: Ring, host: Host, known: Mapping[tuple[int, int], Holder]) -> Iterator[Finding]:
    """Yield a finding for each pipe whose end a ring of processes keeps from coming."""
    seen = {process.pid: process for process in host.processes}
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
            _sentence(pipe, [pid for pid, _ in reading], missing, ring, seen),
            pipe,
            waiting,
            missing_close,
            (
                *(line for pid in concerned for line in _sleeps(pid, ring.waiting[pid])),
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
    readers: Iterable[int],
    missing: Iterable[End],
    ring: Ring,
    seen: Mapping[int, Seen],
) -> str:
    readers = list(dict.fromkeys(readers))
    fds: dict[int, list[int]] = {}
    for end in sorted(missing, key=lambda end: (end.pid not in readers, end)):
        fds.setdefault(end.pid, []).append(end.fd)
    reasons: list[str] = []
    for pid, numbers in fds.items():
        name = "its write end" if not reasons else "it"
        numbered = f"as {_listed(sorted(set(numbers)))}"
        if [pid] == readers:
            reasons.append(f"holds {name} itself {numbered}")
            continue
        others = (one for one in ring.waiting[pid] if one.pipe != pipe)
        purpose = next((f" and waits for {_purpose(one, seen)}" for one in others), "")
        reasons.append(f"{_who(pid, seen)} holds {name} {numbered}{purpose}")
    verb = "waits" if len(readers) == 1 else "wait"
    who = _listed(_who(pid, seen) for pid in readers)
    if len(reasons) > 4:
        reasons = [*reasons[:3], f"{len(reasons) - 3} more hold it"]
    why = ", and ".join(reasons)
    return f"{who} {verb} for the end of {pipe.text}, but {why}."


def _purpose(one: Waiting, seen: Mapping[int, Seen]) -> str:
    if one.pipe is not None:
        return f"the end of {one.pipe.text}"
    return _listed([_who(pid, seen) for pid in one.children])


def _sleeps(pid: int, waits: Iterable[Waiting]) -> Iterator[str]:
    for one in waits:
        place = f"/proc/{pid}/task/{one.thread.tid}"
        inside = f" in {one.moment.inside}" if one.moment.inside else ""
        if one.pipe is not None:
            aim = f"{one.call}({one.fd}) of {one.pipe.text}"
        elif one.anybody:
            aim = f"{one.call}() for any child"
        else:
            aim = f"{one.call}() for PID {_listed(one.children)}"
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


def _alone(pipe: Pipe, host: Host | None) -> list[Finding]:
    """Return a warning if the only process that reads a pipe is the only one that writes to it.

    It is a note if the process has several threads, waits for several files, or runs: then the
    pipe may wake one of its threads, or have been made just now.
    """
    pids = {holder.process.global_pid for holder in (*pipe.readers, *pipe.writers)}
    if len(pids) != 1 or not pipe.readers or not pipe.writers or not _is_plain(pipe):
        return []
    (pid,) = pids
    process = pipe.readers[0].process
    reads = [holder.descriptor.fd for holder in pipe.readers]
    writes = [holder.descriptor.fd for holder in pipe.writers]
    level = "warning"
    evidence = ["the snapshot: no other process of a container holds an end of the pipe"]
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
    sentence = (
        f"{_name(process.global_pid, process.command)} alone holds both ends of {pipe.path.text}:"
        f" to read as {_listed(reads)}, to write as {_listed(writes)}."
        " A read of the empty pipe waits for ever."
    )
    return [Finding(level, sentence, pipe.path, pipe.readers, pipe.writers, tuple(evidence))]


def _left_open(pipe: Pipe) -> list[Finding]:
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
        process = reads[pid][0].process
        told.append(
            f"{_name(pid, process.command)} holds both ends of {pipe.path.text}:"
            f" to read as {_listed(holder.descriptor.fd for holder in reads[pid])},"
            f" to write as {_listed(holder.descriptor.fd for holder in writes[pid])}."
        )
    evidence = ("the snapshot: neither end has close-on-exec, and a read would wait",)
    return [Finding("note", " ".join((*told, *effects)), pipe.path, (), (), evidence)]


def _is_plain(pipe: Pipe) -> bool:
    """Tell whether a read waits, nobody has the pipe open for both, and it holds no tokens."""
    return (
        not any(holder.descriptor.flags & os.O_NONBLOCK for holder in pipe.readers)
        and not any(holder.descriptor.flags & os.O_RDWR for holder in pipe.readers)
        and not any(holder.process.command in _TOKENS for holder in (*pipe.readers, *pipe.writers))
    )


# Words.


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


def _who(pid: int, seen: Mapping[int, Seen]) -> str:
    return _name(pid, seen[pid].command)


def _name(pid: int, command: bytes) -> str:
    return f"PID {pid} ({shown(command)})"


def _listed(words: Iterable[object]) -> str:
    """Return words with commas and "and"; of many the first three and a count."""
    texts = [str(word) for word in words]
    if len(texts) > 4:
        texts = [*texts[:3], f"{len(texts) - 3} more"]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
