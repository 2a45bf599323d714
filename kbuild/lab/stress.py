"""Stress the module with loads, readers and reloads at once, and check the system afterwards.

The loads and the readers are guest programs.  This module chooses the loads that run together,
shows their progress, and checks afterwards that everything was given back.  A check that the
kernel cannot answer is shown as not checked; it is a failure if the kernel's variant is meant to
answer it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kbuild.core import progress, variants
from kbuild.core.errors import UserError
from kbuild.core.model import BACKENDS, MODULE, PROCFILE, Settings, Target
from kbuild.guest import programs, triage
from kbuild.guest.guest import Background, Guest, GuestCommandError, GuestLost
from kbuild.guest.outcome import Outcome
from kbuild.guest.programs import PLACE
from kbuild.lab import counts, probing, procfile, readying, setup
from kbuild.lab.checks import (
    Check,
    Figures,
    System,
    check_answer,
    check_pages,
    check_processes,
    check_readers,
    check_refcount,
    parse_figures,
)
from kbuild.lab.counts import Counts
from kbuild.lab.stress_summary import StressFailedError, Summary, describe
from kbuild.lab.workloads import Round, Workload, choose, plan

logger = logging.getLogger(__name__)

PROGRAMS = ("load", "reader", "unload", counts.PROGRAM)

_LOOK_EVERY_S = 5.0  # look at the system; the readers print a line every second
_SAMPLE_EVERY_S = 15.0  # between two listings for the strict parser
_RELOAD_PAUSE_MS = 200  # multiplied by the slowness of the kernel, so that readers make progress
_MODULE = "/tmp/cplayground.ko"

# In seconds of a fast machine; a guest multiplies them by its scale.
_ANSWER_S = 5.0
_LINE_S = 10.0  # at most between two lines of the readers, which print one every second
_END_S = 20.0  # for a program that was told to end


@dataclass
class _Tally:
    """The sums and results of a run so far."""

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

    The loads run for ``seconds``; boot and checks take additional time.  With an empty
    ``backend`` the module uses its default.  The first report of the kernel ends the run.  Raises
    StressFailedError with a summary of the run until then and the exit status of the failure.
    """
    if backend and backend not in BACKENDS:
        raise UserError(f"no such backend: {backend}", expected=", ".join(BACKENDS))
    slowness = variants.variant(target.variant).slowness
    rounds = plan(choose(workloads), seconds, seed, slowness)
    lab = setup.prepare(settings, target, accel=accel)
    built = setup.build_module(
        lab,
        settings.project / "kmod",
        out=settings.build / target.suite / target.name / "stress",
        race_windows=False,
    )
    compiled = programs.compile_programs(settings, lab.root, readying.sources(PROGRAMS))
    logs = settings.build / "logs" / "vm" / f"stress-{target.suite}-{target.name}"
    guest = setup.open_guest(lab, workdir=logs)
    fragments = variants.variant(target.variant).fragments
    logger.info(
        "%d rounds with seed %d, at least %s", len(rounds), seed, progress.duration(seconds)
    )
    parameters = [f"backend={backend}"] if backend else []
    again = f"./inv lab.stress {target.options('suite', 'variant', 'version')}"
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
    """Stress a guest in which the module is not loaded, power the guest off and judge it.

    ``fragments`` are those of its kernel, and tell which detectors must be alive at the end.
    ``again`` is the command that repeats the run.  Raises StressFailedError.
    """
    began = time.monotonic()
    tally = _Tally()
    wrong, backend = "", "unknown"
    try:
        readying.prepare(guest, compiled)
        guest.put(module, _MODULE)
        running, before = probing.processes(guest), probing.count(guest)
        probing.do(guest, "insmod", _MODULE, *parameters)
        backend = guest.read(f"/sys/module/{MODULE}/parameters/backend").decode().strip()
        probing.drop_caches(guest)
        system = probing.look(guest)
        with progress.status() as show:
            for number, one in enumerate(rounds):
                _round(guest, one, number, len(rounds), seed, parameters, tally, show)
        probing.settle(guest, before)
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
        what = wrong or "a check at the end failed"
        raise StressFailedError(summary.outcome, what, summary, shown)
    return summary


def _load_argv(one: Workload, seconds: int, seed: int) -> list[str]:
    bounds = [str(one.pids), str(one.memory_mib)]
    if not one.stressor:
        return [f"{PLACE}/load", one.name, str(seconds), str(seed), *bounds]
    # stress-ng ends by itself; the limit is a safeguard.
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
    """Run one choice of loads together with readers; raises GuestCommandError if one fails."""
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
        # a program that is not ours may end late
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
    """Follow the readers to their end; look at the system and parse samples meanwhile."""
    earlier, began = tally.figures, time.monotonic()
    last: tuple[float, Figures] = (began, Figures())
    looked = sampled = began - _SAMPLE_EVERY_S
    while line := readers.read_line(_LINE_S):
        try:
            now, figures = time.monotonic(), parse_figures(line)
        except (ValueError, TypeError):
            raise GuestCommandError(f"the readers printed {line!r}", None) from None
        tally.figures = earlier.plus(figures)
        if now - looked >= _LOOK_EVERY_S:
            system, looked = probing.look(guest), now
            tally.worst_answer_s = max(tally.worst_answer_s, system.answer_s)
            show(f"{names}: {describe(figures, last[1], now - last[0], system)}")
            last = (now, figures)
            if reports := guest.reports():
                # later findings may be consequences of this one
                raise GuestCommandError(f"the kernel reported: {reports[0].title}", None)
        if now - sampled >= _SAMPLE_EVERY_S:
            tally.samples += _sample(guest, reloaded=reloaded)
            sampled = now


def _sample(guest: Guest, *, reloaded: bool) -> bool:
    """Parse a listing strictly; return False if the module is being reloaded."""
    result = guest.run(["@read", PROCFILE], timeout_s=probing.COMMAND_S)
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
    """Append each check as soon as it is done, so that a later exception does not hide it."""
    answer = guest.run(["true"], timeout_s=_ANSWER_S, check=True)
    checks.append(check_answer(answer.seconds, _ANSWER_S * guest.spec.scale))
    after = probing.look(guest)
    checks.append(check_processes(running, probing.processes(guest)))
    checks.append(check_refcount(guest.read(f"/sys/module/{MODULE}/refcnt").decode()))
    probing.do(guest, "rmmod", MODULE)
    checks.append(check_pages(system, after))
    checks += probing.leak_checks(guest, before, fragments)
