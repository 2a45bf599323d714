"""Judge a release: run the gate's cases, two at a time, and write gate.json."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from kbuild.archive.release import Release, View
from kbuild.archive.required import NEED_KEY, NEED_OLDER, NO_KEY, NOTHING_OLDER, REQUIRED
from kbuild.core import fs, progress
from kbuild.core.errors import BuildError, DefectError, KbuildError, UserError
from kbuild.core.model import Kernel, Settings
from kbuild.fetch import roots, source
from kbuild.gate import secure_boot, server, wire
from kbuild.gate.cases import CASES, Case
from kbuild.gate.report import FAILED, NOT_RUN, PASSED, CaseResult, Report
from kbuild.gate.round import Round, Trial
from kbuild.guest import programs, qemu
from kbuild.guest.guest import GuestCommandError, GuestLost
from kbuild.lab import readying
from kbuild.ship import manifest

logger = logging.getLogger(__name__)

# A guest under TCG keeps about one processor busy.
_AT_ONCE = 2
_PROGRAMS = ("observe", "topology")
# Errors of the packages' own steps, in a tree and in a booted server.
_VERDICTS = (BuildError, GuestLost, GuestCommandError)
_NO_OLDER = "the archive has no promoted release of this target"
_UNSIGNED = "mok_certificate was not set, so the release is not signed for Secure Boot"


def run(
    settings: Settings,
    view: View,
    *,
    k: str | None = None,
    accel: str | None = None,
    part: str = "",
) -> Report:
    """Run the cases on a release, and return the report.

    ``k`` selects cases by words of their names.  The others are "not run" in the report, which then
    never passes.  ``part`` is as in :func:`opened`.  Raises UserError if ``k`` selects nothing, and
    what making a server raises.
    """
    wanted = choose(k)
    began = time.monotonic()
    with opened(settings, view, accel=accel, part=part) as made, started(made, wanted) as futures:
        results = [future.result() for future in futures.values()]
        return finish(made, results, seconds=time.monotonic() - began)


def finish(made: Round, results: Iterable[CaseResult], *, seconds: float) -> Report:
    """Return the report of a round with these results."""
    release = made.candidate
    known = {one.name: one for one in results}
    return Report(
        id=release.id,
        packages={one.path.name: one.sha256 for one in release.packages},
        cases=tuple(known.get(name) or CaseResult(name, NOT_RUN) for name in REQUIRED),
        older=tuple(one.id for one in made.view.promoted),
        commit=manifest.project_commit(made.settings.project) or "",
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        accelerator=made.accelerator.name,
        seconds=round(seconds, 1),
    )


def choose(k: str | None) -> tuple[Case, ...]:
    """Return the cases that the words of ``k`` name, in whole or in part; all without it.

    A word that is the whole name of a case selects no other.
    """
    words = (k or "").split()
    found = tuple(
        one
        for one in CASES
        if not words
        or any(
            word in one.names if word in REQUIRED else word in name
            for word in words
            for name in one.names
        )
    )
    if not found:
        raise UserError(
            f"no case matches {k!r}", expected="a part of one of: " + ", ".join(REQUIRED)
        )
    return found


def home(settings: Settings, release: Release) -> Path:
    """Return the directory of a release's gate.json."""
    return settings.build / "gate" / release.id


@contextlib.contextmanager
def opened(
    settings: Settings, view: View, *, accel: str | None = None, part: str = ""
) -> Iterator[Round]:
    """Yield a round: the view is served, and the programs and the server are made.

    It removes the logs of the release's last round; ``part`` names a directory of its own for them.
    A second round of the release waits for the end of the first.
    """
    target = view.candidate.target
    place = home(settings, view.candidate)
    place.mkdir(parents=True, exist_ok=True)
    logs = settings.build / "logs" / "gate" / view.candidate.id / part
    with fs.lock(place.with_name(f".{place.name}.lock")):
        work = place / "work"
        fs.remove_tree(work)
        fs.remove_tree(logs)
        logs.mkdir(parents=True)
        base = source.fetch(settings, dataclasses.replace(target, version=_base_version(view)))
        trees = {dkms: server.stock(settings, base, dkms=dkms) for dkms in (False, True)}
        kernel = Kernel(base.release, base.flavour, trees[False].path)
        accelerator = qemu.choose_accelerator(settings.cache, kernel, accel).accelerator
        compiled = programs.compile_programs(
            settings,
            roots.compile_root(settings, target.suite),
            readying.sources(_PROGRAMS),
        )
        try:
            with wire.serve(view.root, logs / "requests.log") as connected:
                yield Round(
                    settings=settings,
                    view=view,
                    base=base,
                    accelerator=accelerator,
                    network=connected.namespace,
                    trees=trees,
                    programs=compiled,
                    home=work,
                    logs=logs,
                )
        finally:
            fs.remove_tree(work)


def _base_version(view: View) -> str:
    """Return the Debian version that the candidate is a rebuild of."""
    return view.candidate.version.partition("+cplayground")[0]


@contextlib.contextmanager
def started(made: Round, wanted: Sequence[Case]) -> Iterator[dict[str, Future[CaseResult]]]:
    """Judge cases, two at a time and in their order, and yield the future result of each name.

    Those that have not begun at the end of the block are not run.
    """
    with ThreadPoolExecutor(_AT_ONCE, "gate") as pool:
        try:
            futures: dict[str, Future[CaseResult]] = {}
            for case in wanted:
                whole = pool.submit(judge, made, case)
                futures |= {name: _part(whole, name) for name in case.names}
            yield futures
        except BaseException:
            made.end()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _part(whole: Future[tuple[CaseResult, ...]], name: str) -> Future[CaseResult]:
    part: Future[CaseResult] = Future()

    def pass_on(done: Future[tuple[CaseResult, ...]]) -> None:
        if done.cancelled():
            part.cancel()
        elif (error := done.exception()) is not None:
            part.set_exception(error)
        else:
            part.set_result(next(one for one in done.result() if one.name == name))

    whole.add_done_callback(pass_on)
    return part


def judge(made: Round, case: Case) -> tuple[CaseResult, ...]:
    """Judge the cases of one function; the error of a step is a reason of each.

    Raises any other error: a full disk or a lost key is no verdict on a release.
    """
    began = time.monotonic()
    lacking = {name: _lacking(made, name) for name in case.names}
    ready = [name for name, one in lacking.items() if one is None]
    trials = {name: Trial(name) for name in case.names}
    error: KbuildError | None = None
    if ready:
        logger.info("gate: %s", ", ".join(ready))
        try:
            case.run(made, trials)
        except _VERDICTS as caught:
            error = caught
        except KbuildError:
            raise
        except Exception as caught:
            error = DefectError.of(caught)
            if not isinstance(error, DefectError):
                raise error from caught
            logger.exception("unexpected exception in the case %s", case.names[0])
    seconds = round(time.monotonic() - began, 1)
    return tuple(_results(trials.values(), lacking, error, seconds))


def _lacking(made: Round, name: str) -> CaseResult | None:
    """Return the result of a case that lacks what it starts from; None for all others."""
    if name in NEED_OLDER and not made.view.promoted:
        return CaseResult(name, NOTHING_OLDER, 0.0, (_NO_OLDER,))
    if name in NEED_KEY and secure_boot.certificate(made.settings, made.candidate) is None:
        return CaseResult(name, NO_KEY, 0.0, (_UNSIGNED,))
    return None


def _results(
    trials: Iterable[Trial],
    lacking: Mapping[str, CaseResult | None],
    error: KbuildError | None,
    seconds: float,
) -> Iterator[CaseResult]:
    for trial in trials:
        excused = lacking[trial.name]
        if excused is not None:
            logger.info("gate: %s: %s", excused.name, excused.outcome)
            yield excused
            continue
        reasons = [*trial.reasons, *([] if error is None else [str(error)])]
        made = CaseResult(
            trial.name,
            FAILED if reasons else PASSED,
            seconds,
            tuple(reasons),
            tuple(trial.boots),
            tuple(trial.notes),
        )
        logger.info("gate: %s: %s (%s)", made.name, made.outcome, progress.duration(seconds))
        yield made
