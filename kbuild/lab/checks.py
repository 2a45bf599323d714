"""Check the results of a stress run: the readers' work, and leaks."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from kbuild.guest import detectors
from kbuild.guest.outcome import Outcome
from kbuild.lab import counts
from kbuild.lab.counts import Counts

# Allowed growth of the pages that /proc/meminfo does not account for: the kernel itself keeps
# some (per-CPU lists, the stack depot).  A reader's buffers have 68 KiB.
_PAGES_KIB = 24 * 1024


@dataclass(frozen=True)
class Figures:
    """The sums of the readers' work."""

    listings: int = 0  # complete and correct
    records: int = 0
    bytes: int = 0
    cut: int = 0  # reads that an unloading cut off
    absent: int = 0  # opens while the module was unloaded
    killed: int = 0  # readers ended by a signal
    worst_ns: int = 0  # of one read(2)
    reads: int = 0  # read(2) and pread(2) that returned data, or the end of the file

    def plus(self, other: Figures) -> Figures:
        """Return the sums with those of another round."""
        return Figures(
            self.listings + other.listings,
            self.records + other.records,
            self.bytes + other.bytes,
            self.cut + other.cut,
            self.absent + other.absent,
            self.killed + other.killed,
            max(self.worst_ns, other.worst_ns),
            self.reads + other.reads,
        )


@dataclass(frozen=True)
class System:
    """The state of the guest's kernel."""

    slab_kib: int
    unaccounted_kib: int  # pages in use that /proc/meminfo does not account for
    open_files: int
    tasks: int
    taint: int
    answer_s: float  # duration of the command that asked


@dataclass(frozen=True)
class Check:
    """A condition at the end of a run; ``outcome`` is None if this kernel cannot tell."""

    name: str
    outcome: Outcome | None
    found: str

    @property
    def passed(self) -> bool:
        """Tell whether the condition was seen to hold."""
        return self.outcome is Outcome.PASSED


def parse_figures(line: bytes) -> Figures:
    """Parse a line of reader.c; raises ValueError or TypeError for any other line."""
    return Figures(*(int(word) for word in line.split()))


def parse_system(text: str, answer_s: float) -> System:
    """Parse the output of probing.look(); raises ValueError or KeyError if a part is missing."""
    sizes = {
        name: int(value)
        for name, value in re.findall(r"^([A-Z][\w()]*): +(\d+) kB$", text, re.MULTILINE)
    }
    accounted = ("MemFree", "Buffers", "Cached", "AnonPages", "Slab", "KernelStack", "PageTables")
    files, load, taint = [line for line in text.splitlines() if line and ":" not in line]
    return System(
        slab_kib=sizes["Slab"],
        unaccounted_kib=sizes["MemTotal"] - sum(sizes[name] for name in accounted),
        open_files=int(files.split()[0]),
        tasks=int(load.split()[3].partition("/")[2]),
        taint=int(taint),
        answer_s=answer_s,
    )


def parse_processes(text: str) -> Counter[str]:
    """Count processes by command, from /proc/PID/stat lines, without kernel threads."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        # a command may contain any character, including the parenthesis
        match = re.fullmatch(r"(\d+) \((.*)\) \S (\d+) .*", line)
        if match and 2 not in (int(match[1]), int(match[3])):
            found[match[2]] += 1
    return found


def check_readers(figures: Figures, samples: int, unloadings: int, reloaded: bool) -> Check:
    """Check that the readers have read, and that a planned reload took place."""
    missing = [
        what
        for what, there in (
            ("a whole listing", figures.listings),
            ("a record", figures.records),
            ("a listing for the strict parser", samples),
            ("an unloading", unloadings or not reloaded),
        )
        if not there
    ]
    if missing:
        return Check("readers", Outcome.FAILED, f"there was never {', nor '.join(missing)}")
    return Check(
        "readers", Outcome.PASSED, f"{figures.listings} listings, {figures.records} records"
    )


def check_counts(before: Counts, after: Counts, required: bool) -> Check:
    """Check that no more objects of slab caches and open files exist than before."""
    leaked = counts.leaks(before, after)
    if leaked:
        text = ", ".join(f"{number} of {name}" for name, number in leaked.items())
        return Check("counts", Outcome.LEAKED, f"more than before: {text}")
    found = ", ".join(f"{name} {value}" for name, value in after.values.items())
    if not after.exact:
        missing = "no counts of slab objects in this kernel"
        return Check("counts", Outcome.FAILED if required else None, f"{missing}; {found}")
    return Check("counts", Outcome.PASSED, found)


def check_pages(before: System, after: System) -> Check:
    """Check for leaked page and vmalloc allocations: pages in use without an account."""
    grown = after.unaccounted_kib - before.unaccounted_kib
    bad = grown > _PAGES_KIB
    return Check(
        "pages",
        Outcome.LEAKED if bad else Outcome.PASSED,
        f"{grown:+d} KiB unaccounted for, {_PAGES_KIB} allowed;"
        f" slab {after.slab_kib - before.slab_kib:+d} KiB",
    )


def check_processes(before: Counter[str], after: Counter[str]) -> Check:
    """Check that every process that was started is gone, zombies included."""
    left = after - before
    if left:
        text = ", ".join(f"{number} {name}" for name, number in left.items())
        return Check("processes", Outcome.LEAKED, f"left over: {text}")
    return Check("processes", Outcome.PASSED, f"{after.total()} as before")


def check_refcount(text: str) -> Check:
    """Check that the module has no references."""
    references = int(text)
    return Check(
        "module",
        Outcome.PASSED if references == 0 else Outcome.LEAKED,
        f"{references} references",
    )


def check_kmemleak(text: str | None, required: bool) -> Check:
    """Check that kmemleak lists no leak.

    ``text`` is its list without the kernel's own leaks, or None if there is no kmemleak.
    """
    if text is None:
        missing = "this kernel has no kmemleak, or it has turned itself off"
        return Check("kmemleak", Outcome.FAILED if required else None, missing)
    objects = text.count("unreferenced object")
    if text.strip():
        return Check("kmemleak", Outcome.LEAKED, f"{objects} objects:\n{text[:4000].rstrip()}")
    return Check("kmemleak", Outcome.PASSED, "two scans, no object")


def check_alive(name: str, text: str | None, required: bool) -> Check:
    """Check that a detector still works, so that its silence means something.

    ``name`` is one of detectors.SAYS_SO; ``text`` is the content of its file, or None.
    """
    if text is None:
        return Check(name, Outcome.FAILED if required else None, f"this kernel has no {name}")
    if not detectors.alive(name, text):
        path, _ = detectors.SAYS_SO[name]
        return Check(name, Outcome.FAILED, f"it is off: {path}")
    return Check(name, Outcome.PASSED, "alive")


def check_answer(seconds: float, limit_s: float) -> Check:
    """Check that the guest answers a command in time."""
    outcome = Outcome.PASSED if seconds <= limit_s else Outcome.HUNG
    return Check("answer", outcome, f"a command in {seconds:.1f} s, {limit_s:.0f} s allowed")
