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

_LOOK_EVERY_S = 5.0  # at the system, beside the readers' own line in each second
_SAMPLE_EVERY_S = 15.0  # a listing for the strict parser
_RELOAD_PAUSE_MS = 200  # times the kernel's slowness: readers are to get on in it
_MODULE = "/tmp/cplayground.ko"

# In seconds of a fast machine; a guest multiplies them by its scale.
_ANSWER_S = 5.0
_LINE_S = 10.0  # between two lines of the readers, who have one to say in each second
_END_S = 20.0  # for what was told to end to be gone


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
        what = wrong or "something was wrong at the end"
        raise StressFailedError(summary.outcome, what, summary, shown)
    return summary


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
            system, looked = probing.look(guest), now
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
    """Append each check as soon as it is done, so that what ends them does not hide them."""
    answer = guest.run(["true"], timeout_s=_ANSWER_S, check=True)
    checks.append(check_answer(answer.seconds, _ANSWER_S * guest.spec.scale))
    after = probing.look(guest)
    checks.append(check_processes(running, probing.processes(guest)))
    checks.append(check_refcount(guest.read(f"/sys/module/{MODULE}/refcnt").decode()))
    probing.do(guest, "rmmod", MODULE)
    checks.append(check_pages(system, after))
    checks += probing.leak_checks(guest, before, fragments)
