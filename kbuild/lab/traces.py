"""Judge the counts of traces.c and lives.c: the traces that a reader left.

A reader must leave no trace: no program in a container notices that it is read, and no program
delays the reader.  The VM tests and the quick suite judge by the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kbuild.core.errors import UserError

PROGRAM = "traces"
LINGER_S = 10  # of traces.c

# Rounds of each case.  A module that takes references was late in these shares of the rounds: FUSE
# 3 to 20 %, sendfile 1 %, the other cases 10 to 75 %.  With window_us=300, as mutants have it,
# sendfile is late within these rounds.
ROUNDS: Mapping[str, int] = {
    "text": 30,
    "port": 30,
    "flock": 30,
    "ofd": 30,
    "eof": 30,
    "locks": 60,
    "epoll": 30,
    "pty": 30,
    "umount": 30,
    "sendfile": 60,
    "linger": 20,
    "inotify": 6,
    "fuse": 60,
    "fuse-stuck": 60,
}
# Cases in which backend=export may be late: it holds a reference on the table during one batch.
# A process that ends meanwhile leaves its table to a work item, and one that calls execve(2) gets
# a copy.  This cannot be avoided, so the backend is not the default.
OF_THE_TABLE = frozenset({"flock", "ofd", "eof", "umount", "locks", "linger"})

# Cases whose rounds are late only if a reader slept, or if half the linger time has passed.
_BY_SLEEP = frozenset({"linger", "inotify"})


@dataclass(frozen=True)
class Traces:
    """The figures of one run of traces.c."""

    rounds: int  # that were run; fuse-stuck stops at the first stuck request
    late: int  # rounds in which the observed program noticed, or a reader did its work
    listings: int  # whole ones, by the readers
    worst_us: int  # the longest time until the state was as without a reader
    longest_read_us: int  # the longest read(2) of the file
    slept: int  # how often a reader waited in read(2)
    words: Mapping[str, str]  # all figures, by their keys


def argv(
    place: str, file: str, case: str, *, rounds: int, readers: int, first: bool = False
) -> list[str]:
    """Return the command of a case; ``file`` is "-" for a case without readers.

    With ``first`` the case may end after its first late round.
    """
    words = [f"{place}/{PROGRAM}", file, case, str(rounds), str(readers)]
    return [*words, "first"] if first else words


def parse(text: str) -> Traces:
    """Parse the output of traces.c; raises UserError if a figure is missing."""
    words = figures(text)
    try:
        return Traces(
            **{
                name: int(words[name])
                for name in ("rounds", "late", "worst_us", "listings", "longest_read_us", "slept")
            },
            words=words,
        )
    except (KeyError, ValueError) as error:
        raise UserError(
            "the figures of traces are not complete", expected="rounds=N late=N …", found=text
        ) from error


def figures(text: str) -> dict[str, str]:
    """Parse ``key=value`` words, as traces.c and lives.c print them."""
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def faults(case: str, backend: str, found: Traces) -> list[str]:
    """Return the faults of a run, one line each."""
    wrong = []
    late = found.late
    if case in _BY_SLEEP and late <= found.rounds / 2 and found.worst_us < LINGER_S * 500_000:
        late = 0
    if late and not (backend == "export" and case in OF_THE_TABLE):
        wrong.append(f"late in {found.late} of {found.rounds} rounds")
    # Each round waits for the readers, so fewer listings mean that they have not read.  A run
    # that is late ends early.
    if found.listings <= (0 if found.late else found.rounds):
        wrong.append(f"the readers took only {found.listings} listings")
    # A reader that closes files sleeps about ten times in a round: an inotify group waits for a
    # grace period, a socket for its peer, FUSE for its server.  For memory or a page of its own
    # a reader sleeps rarely, on a busy guest once in a run.
    if found.slept > found.rounds:
        wrong.append(f"a reader slept {found.slept} times in read(2)")
    # This does not measure speed: with the fault a read takes the linger time, or forever.
    if found.longest_read_us >= LINGER_S * 1_000_000 / 2:
        wrong.append(f"a read(2) took {found.longest_read_us / 1_000_000:.1f} s")
    by_others = found.words.get("by_others", "0")
    if backend == "stock" and by_others != "0":
        wrong.append(f"{by_others} flushes by another than the process that ends")
    if case == "fuse-stuck":
        # If a work item uses the module, unloading must fail instead of waiting.
        ended = (found.words.get("killed"), found.words.get("unload"))
        if ended != (("yes", "EWOULDBLOCK") if by_others != "0" else ("not-tried",) * 2):
            wrong.append("killed={}, unload={} with a server that does not answer".format(*ended))
    return wrong
