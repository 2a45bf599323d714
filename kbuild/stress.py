"""Stress: loads, readers and reloads at once, and what must be true when they have ended.

The loads and the readers are programs of tests/guest; this module chooses which of them run
together, shows live how they get on, and checks afterwards that everything was given back.
What a kernel cannot be asked is named as not checked, and is a failure where its variant is
there to be asked.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kbuild import lab, programs, progress, quick, variants
from kbuild.errors import KbuildError, UserError
from kbuild.model import Settings, Target
from kbuild.programs import PLACE
from kbuild.quick import FILE, MODULE
from kbuild.vm import checking, counts, procfile, triage
from kbuild.vm.counts import Counts
from kbuild.vm.guest import Background, Guest, GuestCommandError, GuestLost
from kbuild.vm.outcome import Outcome, Verdict, taint_letters

logger = logging.getLogger(__name__)

PROGRAMS = ("load", "reader", "unload", counts.PROGRAM)
BACKENDS = ("stock", "export")

_ROUND_S = 30  # of one choice of workloads, on a kernel that is as fast as a release's
_SHORTEST_ROUND_S = 5
_TOGETHER = (2, 4)  # workloads at once: by choice, and at most where time is short
_LOOK_EVERY_S = 5.0  # at the system, beside the readers' own line in each second
_SAMPLE_EVERY_S = 15.0  # a listing for the strict parser
_RELOAD_PAUSE_MS = 200  # times the kernel's slowness: readers are to get on in it
_MODULE = "/tmp/cplayground.ko"

# For a fast machine; a guest multiplies them by its scale.
_ANSWER_S = 5.0
_SETTLE_MS = 30_000  # of the guest's time, in which not one object comes back
_COMMAND_S = 30.0
_LINE_S = 10.0  # between two lines of the readers, who have one to say in each second
_END_S = 20.0  # for what was told to end to be gone
_SCAN_S = 60.0
# Twice the age below which kmemleak does not trust what it finds (MSECS_MIN_AGE).
_KMEMLEAK_AGE_S = "10"

# Pages that nothing in /proc/meminfo accounts for may be this many more, for what the kernel
# keeps by the way (per-CPU lists, the stack depot).  A reader's buffers are 68 KiB.
_PAGES_KIB = 24 * 1024


@dataclass(frozen=True)
class Workload:
    """A load, and the bounds of its cgroup."""

    name: str
    pids: int
    memory_mib: int
    stressor: str = ""  # of stress-ng; without, it is one of load.c


def _table() -> Iterator[Workload]:
    yield Workload("fork-pipe-bomb", 200, 96)
    yield Workload("pipe-bomb", 20, 64)
    yield Workload("churn", 100, 64)
    yield Workload("exec", 60, 64)
    yield Workload("threads", 120, 64)
    yield Workload("tables", 30, 128)
    yield Workload("namespaces", 100, 96)
    yield Workload("oom", 20, 12)
    yield Workload("names", 20, 64)
    yield Workload("fuse", 30, 64)
    yield Workload("linger", 40, 64)
    yield Workload("inotify", 20, 64)
    yield Workload("exec-threads", 60, 64)
    for stressor in ("fork", "pipe", "dup", "close", "procfs", "clone", "unshare", "dev"):
        yield Workload(f"stress-ng-{stressor}", 150, 192, stressor)


WORKLOADS: Mapping[str, Workload] = {one.name: one for one in _table()}


@dataclass(frozen=True)
class Round:
    """What runs at the same time, and for how long."""

    workloads: tuple[Workload, ...]
    seconds: int
    reloaded: bool  # the module is unloaded and loaded meanwhile


@dataclass(frozen=True)
class Figures:
    """What the readers have done, added up."""

    listings: int = 0  # read to the end, and right
    records: int = 0
    bytes: int = 0
    cut: int = 0  # reads that an unloading ended
    absent: int = 0  # opens while the module was away
    killed: int = 0  # readers ended by a signal
    worst_ns: int = 0  # of one read(2)
    reads: int = 0  # read(2) and pread(2) that gave data, or the end

    def plus(self, other: Figures) -> Figures:
        """Add another round's."""
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
    """The guest's kernel as a whole."""

    slab_kib: int
    unaccounted_kib: int  # pages in use that /proc/meminfo does not say the use of
    open_files: int
    tasks: int
    taint: int
    answer_s: float  # what it took to be told


@dataclass(frozen=True)
class Check:
    """One thing that had to be true at the end; ``outcome`` None: this kernel cannot say."""

    name: str
    outcome: Outcome | None
    found: str

    @property
    def passed(self) -> bool:
        """Whether it was seen to be true."""
        return self.outcome is Outcome.PASSED


@dataclass(frozen=True)
class Summary:
    """A whole run: what was done, and what was found."""

    release: str
    backend: str
    seed: int
    seconds: float
    figures: Figures
    operations: Mapping[str, int]  # by workload; 0 for one that had no turn
    oom_kills: int
    unloadings: int
    samples: int  # listings that were parsed on the host
    worst_answer_s: float
    checks: tuple[Check, ...]
    verdict: Verdict
    console: Path

    @property
    def outcome(self) -> Outcome:
        """Passed, or what went wrong first: in the kernel's own words, if it has any."""
        if not self.verdict.passed:
            return self.verdict.outcome
        bad = (check.outcome for check in self.checks if check.outcome and not check.passed)
        return next(bad, Outcome.PASSED)


class StressFailedError(KbuildError):
    """The run came to its end, or nearly so, and something was wrong."""

    kind = "stress"

    def __init__(self, outcome: Outcome, what: str, summary: Summary, reports: str = "") -> None:
        self.summary = summary
        self.exit_status = outcome.exit_status
        found = "\n\n".join(part for part in (reports, render(summary)) if part)
        super().__init__(what, found=found, log=summary.console)


def choose(names: Sequence[str]) -> tuple[Workload, ...]:
    """Return workloads by name, all of them for no name; raises UserError."""
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown:
        raise UserError(f"no such workload: {', '.join(unknown)}", expected=", ".join(WORKLOADS))
    return tuple(WORKLOADS[name] for name in dict.fromkeys(names or WORKLOADS))


def plan(
    workloads: Sequence[Workload], seconds: int, seed: int, slowness: float = 1.0
) -> tuple[Round, ...]:
    """Share the time out, so that each workload has its turn as early as possible.

    Every second round reloads the module.  A kernel of some ``slowness`` has fewer rounds,
    since it needs a minute to begin and end one.  Raises UserError where there is no time for
    both kinds of rounds.
    """
    if seconds < 2 * _SHORTEST_ROUND_S:
        raise UserError(f"{seconds} s are too short", expected=f"{2 * _SHORTEST_ROUND_S} s or more")
    count = max(2, int(seconds / (_ROUND_S * slowness)))
    by_choice, at_most = _TOGETHER
    together = min(max(by_choice, -(-len(workloads) // count)), at_most, len(workloads))
    dice = random.Random(seed)
    queue: list[Workload] = []
    rounds = []
    for number in range(count):
        chosen: list[Workload] = []
        while len(chosen) < together:
            queue = queue or dice.sample(workloads, len(workloads))
            chosen.append(next(one for one in queue if one not in chosen))
            queue.remove(chosen[-1])
        share = seconds // count + (number < seconds % count)
        rounds.append(Round(tuple(chosen), share, reloaded=number % 2 == 1))
    return tuple(rounds)


# What the guest says.


def parse_figures(line: bytes) -> Figures:
    """Read a line of reader.c; raises ValueError for another one."""
    return Figures(*(int(word) for word in line.split()))


def parse_system(text: str, answer_s: float) -> System:
    """Read what :data:`_LOOK` printed; raises ValueError or KeyError when something is missing."""
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


_LOOK = (
    "cat",
    "/proc/meminfo",
    "/proc/sys/fs/file-nr",
    "/proc/loadavg",
    "/proc/sys/kernel/tainted",
)


def look(guest: Guest) -> System:
    """Ask the guest how its kernel is."""
    result = guest.run(_LOOK, timeout_s=_COMMAND_S, check=True)
    return parse_system(result.text, result.seconds)


def parse_processes(text: str) -> Counter[str]:
    """Count processes by their command, from /proc/PID/stat lines; kernel threads left out."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        # a command may contain anything, the parenthesis included
        match = re.fullmatch(r"(\d+) \((.*)\) \S (\d+) .*", line)
        if match and 2 not in (int(match[1]), int(match[3])):
            found[match[2]] += 1
    return found


def processes(guest: Guest) -> Counter[str]:
    """Count the processes of a guest by their command."""
    # read by programs that are there each time, whose own lines therefore cancel out
    result = guest.run(
        ["sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null; true"], timeout_s=_COMMAND_S, check=True
    )
    return parse_processes(result.text)


# What must be true at the end.


def check_readers(figures: Figures, samples: int, unloadings: int, reloaded: bool) -> Check:
    """Silence proves nothing: something must have been read, and what was planned be done."""
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
    """Objects of the named slab caches and open files are as many as before."""
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
    """No memory is gone that nothing accounts for: page and vmalloc allocations."""
    grown = after.unaccounted_kib - before.unaccounted_kib
    bad = grown > _PAGES_KIB
    return Check(
        "pages",
        Outcome.LEAKED if bad else Outcome.PASSED,
        f"{grown:+d} KiB unaccounted for, {_PAGES_KIB} allowed;"
        f" slab {after.slab_kib - before.slab_kib:+d} KiB",
    )


def check_processes(before: Counter[str], after: Counter[str]) -> Check:
    """Every process that was started is gone, zombies included."""
    left = after - before
    if left:
        text = ", ".join(f"{number} {name}" for name, number in left.items())
        return Check("processes", Outcome.LEAKED, f"left over: {text}")
    return Check("processes", Outcome.PASSED, f"{after.total()} as before")


def check_refcount(text: str) -> Check:
    """Nobody holds the module."""
    references = int(text)
    return Check(
        "module",
        Outcome.PASSED if references == 0 else Outcome.LEAKED,
        f"{references} references",
    )


def check_kmemleak(text: str | None, required: bool) -> Check:
    """The kernel's leak detector has nothing.

    ``text`` is what it lists, without the kernel's own, or None where there is no detector.
    """
    if text is None:
        missing = "no kmemleak in this kernel, or it has turned itself off"
        return Check("kmemleak", Outcome.FAILED if required else None, missing)
    objects = text.count("unreferenced object")
    if text.strip():
        return Check("kmemleak", Outcome.LEAKED, f"{objects} objects:\n{text[:4000].rstrip()}")
    return Check("kmemleak", Outcome.PASSED, "two scans, no object")


def check_alive(name: str, text: str | None, required: bool) -> Check:
    """A detector still works, so its silence means something.

    ``name`` is one of checking.SAYS_SO, ``text`` its file, None where there is none.
    """
    if text is None:
        return Check(name, Outcome.FAILED if required else None, f"no {name} in this kernel")
    if not checking.alive(name, text):
        path, _ = checking.SAYS_SO[name]
        return Check(name, Outcome.FAILED, f"it is off: {path}")
    return Check(name, Outcome.PASSED, "alive")


def check_answer(seconds: float, limit_s: float) -> Check:
    """The system answers a command in its time."""
    outcome = Outcome.PASSED if seconds <= limit_s else Outcome.HUNG
    return Check("answer", outcome, f"a command in {seconds:.1f} s, {limit_s:.0f} s allowed")


# The run.


@dataclass
class _Tally:
    """What a run has come to so far."""

    figures: Figures = field(default_factory=Figures)
    operations: Counter[str] = field(default_factory=Counter)
    oom_kills: int = 0
    unloadings: int = 0
    samples: int = 0
    worst_answer_s: float = 0.0
    checks: list[Check] = field(default_factory=list)


def run(
    settings: Settings,
    target: Target,
    *,
    seconds: int,
    seed: int,
    workloads: Sequence[str] = (),
    backend: str = "",
    accel: str | None = None,
) -> Summary:
    """Stress the module of this checkout in a guest of the lab.

    ``seconds`` are those of the loads; boot and checks come on top.  Without ``backend`` the
    module's own default is used.  It ends with the first report of the kernel.  Raises
    StressFailedError, whose summary says what was done until then, with the exit status of
    what went wrong.
    """
    if backend and backend not in BACKENDS:
        raise UserError(f"no such backend: {backend}", expected=", ".join(BACKENDS))
    slowness = variants.variant(target.variant).slowness
    rounds = plan(choose(workloads), seconds, seed, slowness)
    place = lab.prepare(settings, target, accel=accel)
    built = lab.build_module(
        place,
        settings.project / "kmod",
        out=settings.build / target.suite / target.name / "stress",
        race_windows=False,
    )
    compiled = programs.compile_programs(settings, target.suite, PROGRAMS)
    logs = settings.build / "logs" / "vm" / f"stress-{target.suite}-{target.name}"
    guest = lab.open_guest(place, workdir=logs)
    fragments = variants.variant(target.variant).fragments
    logger.info(
        "%d rounds with seed %d, at least %s", len(rounds), seed, progress.duration(seconds)
    )
    parameters = [f"backend={backend}"] if backend else []
    again = f"./inv stress {target.options('suite', 'variant', 'version')}"
    again += f" --seconds {seconds} --seed {seed}"
    again += "".join(f" --workload {name}" for name in workloads)
    again += f" --backend {backend}" * bool(backend)
    with guest:
        return stress_guest(
            guest,
            built.path,
            compiled,
            rounds=rounds,
            parameters=parameters,
            seed=seed,
            fragments=fragments,
            again=again,
        )


def stress_guest(
    guest: Guest,
    module: Path,
    compiled: Mapping[str, Path],
    *,
    rounds: Sequence[Round],
    parameters: Sequence[str],
    seed: int,
    fragments: Sequence[str],
    again: str | None = None,
) -> Summary:
    """Stress a guest without the module, power it off and judge it.

    ``fragments`` are those of its kernel: the detectors that must be there at the end.
    ``again`` is the command that does the same.  Raises StressFailedError.
    """
    began = time.monotonic()
    tally = _Tally()
    wrong, backend = "", "unknown"
    try:
        quick.prepare(guest, compiled)
        guest.put(module, _MODULE)
        running, before = processes(guest), count(guest)
        _do(guest, "insmod", _MODULE, *parameters)
        backend = guest.read(f"/sys/module/{MODULE}/parameters/backend").decode().strip()
        _drop_caches(guest)
        system = look(guest)
        with progress.status() as show:
            for number, one in enumerate(rounds):
                _round(guest, one, number, len(rounds), seed, parameters, tally, show)
        _settle(guest, before)
        reloaded = any(one.reloaded for one in rounds)
        tally.checks.append(check_readers(tally.figures, tally.samples, tally.unloadings, reloaded))
        _check(guest, tally.checks, before, system, running, fragments)
    except (GuestCommandError, GuestLost, procfile.ProcfileError) as error:
        wrong = str(error)
    verdict = guest.shutdown(status=1 if wrong else 0)
    summary = Summary(
        release=guest.release,
        backend=backend,
        seed=seed,
        seconds=time.monotonic() - began,
        figures=tally.figures,
        operations={
            one.name: tally.operations[one.name] for each in rounds for one in each.workloads
        },
        oom_kills=tally.oom_kills,
        unloadings=tally.unloadings,
        samples=tally.samples,
        worst_answer_s=tally.worst_answer_s,
        checks=tuple(tally.checks),
        verdict=verdict,
        console=guest.machine.console.path,
    )
    if summary.outcome is not Outcome.PASSED:
        shown = triage.render(
            guest.reports(), modules={MODULE: module}, again=again, console=summary.console
        )
        what = wrong or "something was wrong at the end"
        raise StressFailedError(summary.outcome, what, summary, shown)
    return summary


def _do(guest: Guest, *argv: str, timeout_s: float = _COMMAND_S) -> str:
    return guest.run(argv, timeout_s=timeout_s, check=True).text


def count(guest: Guest, *arguments: str) -> Counts:
    """Count what the guest's kernel has handed out; counts.c says what arguments do."""
    return counts.parse(_do(guest, f"{PLACE}/{counts.PROGRAM}", *arguments, timeout_s=_COMMAND_S))


def _drop_caches(guest: Guest) -> None:
    _do(guest, "sh", "-c", "sync; echo 3 >/proc/sys/vm/drop_caches", timeout_s=_COMMAND_S)


def _settle(guest: Guest, before: Counts) -> None:
    """Give what ends late (RCU callbacks, dying cgroups) its time; the checks come after."""
    limits = [f"{name}={most}" for name, most in counts.limits(before).items()]
    count(guest, str(_SETTLE_MS), *limits)
    _drop_caches(guest)


def _load_argv(one: Workload, seconds: int, seed: int) -> list[str]:
    bounds = [str(one.pids), str(one.memory_mib)]
    if not one.stressor:
        return [f"{PLACE}/load", one.name, str(seconds), str(seed), *bounds]
    # It ends by itself; its limit is for one that does not.
    limit = str(seconds * 4 + 60)
    stress_ng = ["stress-ng", "--quiet", f"--{one.stressor}", "2", "--timeout", f"{seconds}s"]
    return [f"{PLACE}/load", "run", limit, str(seed), *bounds, *stress_ng, "--seed", str(seed)]


def _round(
    guest: Guest,
    one: Round,
    number: int,
    count: int,
    seed: int,
    parameters: Sequence[str],
    tally: _Tally,
    show: Callable[[str], None],
) -> None:
    """Run one choice of loads under the readers; raises GuestCommandError when one fails."""
    seed += number * 1000
    loads = {
        load.name: guest.start(_load_argv(load, one.seconds, seed), cwd="/tmp")
        for load in one.workloads
    }
    state = "reloaded" if one.reloaded else "still"
    readers = guest.start(
        [f"{PLACE}/reader", "storm", FILE, str(one.seconds), str(seed), state], cwd="/tmp"
    )
    reloads: Background | None = None
    if one.reloaded:
        pause_ms = round(_RELOAD_PAUSE_MS * guest.spec.slowness)
        argv = [f"{PLACE}/unload", "again", FILE, _MODULE, str(one.seconds), str(pause_ms)]
        reloads = guest.start([*argv, *([" ".join(parameters)] if parameters else [])])
    names = f"round {number + 1} of {count}: {' + '.join(loads)}{', reloaded' * one.reloaded}"
    _watch(guest, readers, names, tally, show, reloaded=one.reloaded)
    readers.wait(_END_S, check=True)
    if reloads is not None:
        tally.unloadings += int(reloads.wait(_END_S, check=True).text)
    for name, job in loads.items():
        # a program that is not ours may take its time to end
        done = job.wait(one.seconds * 4 + 60 + _END_S, check=True)
        operations, _, kills = (int(word) for word in done.text.split()[-3:])
        tally.operations[name] += operations
        tally.oom_kills += kills


def _watch(
    guest: Guest,
    readers: Background,
    names: str,
    tally: _Tally,
    show: Callable[[str], None],
    *,
    reloaded: bool,
) -> None:
    """Follow the readers to their end, with an eye on the system and samples for the parser."""
    earlier, began = tally.figures, time.monotonic()
    last: tuple[float, Figures] = (began, Figures())
    looked = sampled = began - _SAMPLE_EVERY_S
    while line := readers.read_line(_LINE_S):
        try:
            now, figures = time.monotonic(), parse_figures(line)
        except (ValueError, TypeError):
            raise GuestCommandError(f"the readers said {line!r}", None) from None
        tally.figures = earlier.plus(figures)
        if now - looked >= _LOOK_EVERY_S:
            system, looked = look(guest), now
            tally.worst_answer_s = max(tally.worst_answer_s, system.answer_s)
            show(f"{names}: {describe(figures, last[1], now - last[0], system)}")
            last = (now, figures)
            if reports := guest.reports():
                # what comes after it may be its consequence, and is not worth the time
                raise GuestCommandError(f"the kernel complained: {reports[0].title}", None)
        if now - sampled >= _SAMPLE_EVERY_S:
            tally.samples += _sample(guest, reloaded=reloaded)
            sampled = now


def _sample(guest: Guest, *, reloaded: bool) -> bool:
    """Parse a listing strictly; False when the module was away, or went away under it."""
    result = guest.run(["@read", FILE], timeout_s=_COMMAND_S)
    if result.status == 0:
        procfile.parse(result.stdout)
        return True
    said = result.stderr
    if reloaded and (b"No such file" in said or b"Input/output error" in said):
        return False
    raise GuestCommandError(f"{FILE} could not be read", result)


def _check(
    guest: Guest,
    checks: list[Check],
    before: Counts,
    system: System,
    running: Counter[str],
    fragments: Sequence[str],
) -> None:
    """Append each check as soon as it is done, so that what ends them does not hide them."""
    answer = guest.run(["true"], timeout_s=_ANSWER_S, check=True)
    checks.append(check_answer(answer.seconds, _ANSWER_S * guest.spec.scale))
    after = look(guest)
    checks.append(check_processes(running, processes(guest)))
    checks.append(check_refcount(guest.read(f"/sys/module/{MODULE}/refcnt").decode()))
    _do(guest, "rmmod", MODULE)
    checks.append(check_pages(system, after))
    checks += leak_checks(guest, before, fragments)


def leak_checks(guest: Guest, before: Counts, fragments: Sequence[str]) -> tuple[Check, ...]:
    """Ask the kernel what was not given back, and whether its detectors live; the module is away.

    A detector that ``fragments`` promise and that is not there is a failure.
    """
    limits = [f"{name}={most}" for name, most in counts.limits(before).items()]
    after = count(guest, str(_SETTLE_MS), *limits)
    required = {variants.CHECKERS.get(name) for name in fragments}
    return (
        check_counts(before, after, "kasan.config" in fragments),
        check_kmemleak(_kmemleak(guest), "kmemleak.config" in fragments),
        *(check_alive(name, _said(guest, name), name in required) for name in checking.SAYS_SO),
    )


def _said(guest: Guest, detector: str) -> str | None:
    path, _ = checking.SAYS_SO[detector]
    said = guest.run(["cat", path], timeout_s=_COMMAND_S)
    return said.text if said.status == 0 else None


def _kmemleak(guest: Guest) -> str | None:
    if guest.run(["test", "-e", checking.KMEMLEAK], timeout_s=_COMMAND_S).status:
        return None
    _do(guest, "sleep", _KMEMLEAK_AGE_S)
    scans = guest.run(["sh", "-c", checking.two_scans()], timeout_s=2 * _SCAN_S)
    if scans.status:  # EPERM: it has run out of memory once and is off since
        return None
    listed = guest.read(checking.KMEMLEAK, timeout_s=_COMMAND_S).decode(errors="replace")
    return "\n".join(report.excerpt for report in checking.leaks(listed))


# What a person sees.


def describe(now: Figures, before: Figures, seconds: float, system: System) -> str:
    """Say in one line how the readers get on and how the system is."""
    rate = 1 / max(seconds, 0.001)
    letters = taint_letters(system.taint) or "none"
    return (
        f"{(now.reads - before.reads) * rate:.0f} reads/s,"
        f" {(now.listings - before.listings) * rate:.1f} listings/s,"
        f" {(now.records - before.records) * rate:.0f} records/s,"
        f" worst read {now.worst_ns / 1e6:.0f} ms,"
        f" slab {system.slab_kib / 1024:.1f} MiB,"
        f" other pages {system.unaccounted_kib // 4},"
        f" {system.open_files} files, {system.tasks} tasks, taint {letters}"
    )


def render(summary: Summary) -> str:
    """Write a summary out."""
    figures = summary.figures
    done = [
        f"{name} {number}" if number else f"{name} not run to its end"
        for name, number in summary.operations.items()
    ]
    never = [name for name in WORKLOADS if name not in summary.operations]
    lines = [
        f"{summary.release}, backend {summary.backend}, seed {summary.seed},"
        f" {progress.duration(summary.seconds)}",
        f"read      {figures.reads} reads, {figures.listings} listings, {figures.records} records,"
        f" {progress.size(figures.bytes)}; worst read {figures.worst_ns / 1e6:.0f} ms",
        f"          {summary.samples} listings through the strict parser,"
        f" {figures.killed} readers killed",
        f"reloads   {summary.unloadings}; {figures.cut} reads cut off,"
        f" {figures.absent} opens while it was away",
        f"loads     {', '.join(done)}; {summary.oom_kills} OOM kills",
        f"no turn   {', '.join(never) or 'none'}",
        f"answers   within {summary.worst_answer_s:.1f} s all the time",
    ]
    for check in summary.checks:
        said = check.outcome.label if check.outcome else "not checked"
        lines.append(f"{check.name:<10}{said}: {check.found}")
    lines.append(f"guest     {summary.verdict}")
    return "\n".join(lines)
