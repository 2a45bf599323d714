"""Stress: loads, readers and reloads at once, and what must be true when they have ended.

The loads and the readers are programs of tests/guest; this module chooses which of them run
together, shows live how they get on, and checks afterwards that everything was given back.
What a kernel cannot be asked is named as not checked, and is a failure where its variant is
there to be asked.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kbuild.core import progress, variants
from kbuild.core.errors import KbuildError, UserError
from kbuild.core.model import BACKENDS, MODULE, PROCFILE, Settings, Target
from kbuild.guest import detectors, programs, triage
from kbuild.guest.guest import Background, Guest, GuestCommandError, GuestLost
from kbuild.guest.outcome import Outcome, taint_letters
from kbuild.guest.programs import PLACE
from kbuild.guest.verdict import Verdict
from kbuild.lab import counts, lab, procfile, quick
from kbuild.lab.checks import (
    Check,
    Figures,
    System,
    check_alive,
    check_answer,
    check_counts,
    check_kmemleak,
    check_pages,
    check_processes,
    check_readers,
    check_refcount,
    parse_figures,
    parse_processes,
    parse_system,
)
from kbuild.lab.counts import Counts
from kbuild.lab.workloads import WORKLOADS, Round, Workload, choose, plan

logger = logging.getLogger(__name__)

PROGRAMS = ("load", "reader", "unload", counts.PROGRAM)

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


# What the guest says.


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


def processes(guest: Guest) -> Counter[str]:
    """Count the processes of a guest by their command."""
    # read by programs that are there each time, whose own lines therefore cancel out
    result = guest.run(
        ["sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null; true"], timeout_s=_COMMAND_S, check=True
    )
    return parse_processes(result.text)


# What must be true at the end.


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
    compiled = programs.compile_programs(settings, place.root, quick.sources(PROGRAMS))
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
        [f"{PLACE}/reader", "storm", PROCFILE, str(one.seconds), str(seed), state], cwd="/tmp"
    )
    reloads: Background | None = None
    if one.reloaded:
        pause_ms = round(_RELOAD_PAUSE_MS * guest.spec.slowness)
        argv = [f"{PLACE}/unload", "again", PROCFILE, _MODULE, str(one.seconds), str(pause_ms)]
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
    result = guest.run(["@read", PROCFILE], timeout_s=_COMMAND_S)
    if result.status == 0:
        procfile.parse(result.stdout)
        return True
    said = result.stderr
    if reloaded and (b"No such file" in said or b"Input/output error" in said):
        return False
    raise GuestCommandError(f"{PROCFILE} could not be read", result)


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
        *(check_alive(name, _said(guest, name), name in required) for name in detectors.SAYS_SO),
    )


def _said(guest: Guest, detector: str) -> str | None:
    path, _ = detectors.SAYS_SO[detector]
    said = guest.run(["cat", path], timeout_s=_COMMAND_S)
    return said.text if said.status == 0 else None


def _kmemleak(guest: Guest) -> str | None:
    if guest.run(["test", "-e", detectors.KMEMLEAK], timeout_s=_COMMAND_S).status:
        return None
    _do(guest, "sleep", _KMEMLEAK_AGE_S)
    scans = guest.run(["sh", "-c", detectors.two_scans()], timeout_s=2 * _SCAN_S)
    if scans.status:  # EPERM: it has run out of memory once and is off since
        return None
    listed = guest.read(detectors.KMEMLEAK, timeout_s=_COMMAND_S).decode(errors="replace")
    return "\n".join(report.excerpt for report in detectors.leaks(listed))


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
