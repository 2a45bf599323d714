"""Judge what programs/traces.c and lives.c count of the traces that a reader left.

A reader leaves no trace: no program in a container notices that it is read, and no program
holds the reader up.  The tests of the VM and the quick suite judge by the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kbuild.core.errors import UserError

PROGRAM = "traces"
LINGER_S = 10  # of traces.c

# Rounds of each case.  With a module that takes references, FUSE was late in one round of five
# to thirty, sendfile in one of a hundred, and the others in one of ten to three of four.  With
# window_us=300, which mutants have, sendfile is late within these rounds.
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
# backend=export has a reference on the table for as long as one batch takes.  A process that
# ends meanwhile leaves its table to a work item, and one that calls execve(2) gets a copy.
# Nothing can be done against that, which is why it is not the default.
OF_THE_TABLE = frozenset({"flock", "ofd", "eof", "umount", "locks", "linger"})

# A round of these is late if a reader slept in it, or if something took half the linger time.
_BY_SLEEP = frozenset({"linger", "inotify"})


@dataclass(frozen=True)
class Traces:
    """The figures of one run of traces.c."""

    rounds: int  # those that were run: fuse-stuck stops at the first stuck request
    late: int  # rounds in which the observed program could tell, or a reader did work of its
    listings: int  # whole ones, that the readers took
    worst_us: int  # how long it took until all was as if nobody read
    longest_read_us: int  # the longest read(2) of the file
    slept: int  # how often a reader waited in read(2)
    words: Mapping[str, str]  # all of them, by their keys


def argv(place: str, file: str, case: str, *, rounds: int, readers: int) -> list[str]:
    """Return the command of a case; ``file`` is "-" where nobody reads."""
    return [f"{place}/{PROGRAM}", file, case, str(rounds), str(readers)]


def parse(text: str) -> Traces:
    """Read what traces.c printed; raises UserError when a figure is missing."""
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
    """Read ``key=value`` words, as traces.c and lives.c print them."""
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def faults(case: str, backend: str, found: Traces) -> list[str]:
    """Say in a line each what a reader of the module did that it must not do."""
    wrong = []
    late = found.late
    if case in _BY_SLEEP and late <= found.rounds / 2 and found.worst_us < LINGER_S * 500_000:
        late = 0
    if late and not (backend == "export" and case in OF_THE_TABLE):
        wrong.append(f"late in {found.late} of {found.rounds} rounds")
    # Each round waits for the readers, so fewer would mean that they have not read.  A run
    # that is late ends early.
    if found.listings <= (0 if found.late else found.rounds):
        wrong.append(f"the readers took only {found.listings} listings")
    # Closing a file sleeps: an inotify group waits for a grace period, a socket for its peer,
    # FUSE for its server: some ten times in a round.  A reader sleeps now and then for memory
    # or for a page of its own, on a busy guest once in a run.
    if found.slept > found.rounds:
        wrong.append(f"a reader slept {found.slept} times in read(2)")
    # No measure of speed: the fault takes the linger time, or for ever.
    if found.longest_read_us >= LINGER_S * 1_000_000 / 2:
        wrong.append(f"a read(2) took {found.longest_read_us / 1_000_000:.1f} s")
    by_others = found.words.get("by_others", "0")
    if backend == "stock" and by_others != "0":
        wrong.append(f"{by_others} flushes by another than the process that ends")
    if case == "fuse-stuck":
        # The module may be in use by a work item, and then says so instead of waiting.
        ended = (found.words.get("killed"), found.words.get("unload"))
        if ended != (("yes", "EWOULDBLOCK") if by_others != "0" else ("not-tried",) * 2):
            wrong.append("killed={}, unload={} beside a server that does not answer".format(*ended))
    return wrong
