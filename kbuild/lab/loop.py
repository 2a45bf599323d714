"""The loop: an edit of kmod/ compiled, loaded into a restored guest and judged, in seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import watchfiles

from kbuild.core import fs, progress
from kbuild.core import table as tables
from kbuild.core.errors import BuildError, KbuildError
from kbuild.core.model import Settings, Target
from kbuild.guest import triage
from kbuild.guest.guest import Guest, GuestLost
from kbuild.guest.outcome import Outcome
from kbuild.kernel import module
from kbuild.kernel.module import BuiltModule
from kbuild.lab import lab, quick
from kbuild.lab.lab import Lab
from kbuild.lab.quick import QuickResult

logger = logging.getLogger(__name__)

# Wide enough that a race which is there is met within the suite's seconds.
WINDOW_US = 300

_DEADLINE_S = 150.0  # of the host, for the quick suite: on a loaded machine, many times its need
_WIDTH = 110  # of the table where there is no terminal

Say = Callable[[str], None]


class TryFailedError(KbuildError):
    """The module was compiled and loaded, and it did not pass."""

    kind = "module"

    def __init__(self, outcome: Outcome, what: str, console: Path) -> None:
        self.exit_status = outcome.exit_status
        super().__init__(what, log=console)


@dataclass(frozen=True)
class Stage:
    """A part of an attempt; some go on at the same time."""

    name: str
    began_s: float  # since the attempt began
    seconds: float
    seen: str


@dataclass(frozen=True)
class Attempt:
    """One way through the loop, from the edit to the verdict."""

    stages: tuple[Stage, ...]
    result: QuickResult
    reports: tuple[triage.Report, ...]  # of the whole console
    heard: bool  # whether the kernel was heard there
    module: Path
    console: Path
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the suite was done, nothing was found, and there was somebody to complain."""
        return self.result.passed and self.heard and not self.reports

    @property
    def outcome(self) -> Outcome:
        """What it came to; a report of the kernel's comes before what followed from it."""
        if self.passed:
            return Outcome.PASSED
        if self.reports:
            return self.reports[0].outcome
        return Outcome.FAILED if self.heard else Outcome.NO_OUTPUT


@dataclass
class _Clock:
    """The stages of one attempt, as they come to their ends."""

    began: float = field(default_factory=time.monotonic)
    stages: list[Stage] = field(default_factory=list)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Time a block; what it appends to the list is what was seen."""
        began, seen = self.elapsed_s, list[str]()
        yield seen
        self.stages.append(Stage(name, began, self.elapsed_s - began, " ".join(seen)))


def run(
    settings: Settings,
    target: Target,
    *,
    backend: str = "",
    window_us: int = WINDOW_US,
    kmemleak: bool = False,
    watch: bool = False,
    accel: str | None = None,
    say: Say,
) -> None:
    """Judge the module of this checkout, with ``watch`` again after each edit of it.

    Without ``backend`` the module's own default is taken; ``window_us`` widens its race
    windows; ``kmemleak`` has the kernel look for leaks too, beside counting.  Raises
    BuildError when it does not compile and TryFailedError, with the outcome's exit status,
    when it does not pass; with ``watch`` both are said instead, and only the user ends it.
    """
    clock = _Clock()
    with clock.stage("prepare") as seen:
        place = lab.prepare(settings, target, accel=accel)
        seen.append(place.release)
    home = settings.build / target.suite / target.name / "try"
    with (
        fs.lock(home.with_name(".try.lock")),
        _Loop(place, home, backend, window_us, kmemleak, say) as loop,
    ):
        if not watch:
            loop.once(clock)
            return
        loop.again(clock)
        for changes in watchfiles.watch(settings.project / "kmod", raise_interrupt=True):
            names = sorted({Path(path).name for _, path in changes})
            logger.info("changed: %s", ", ".join(names))
            loop.again(_Clock())


class _Loop:
    """The attempts of one run; between two of them the next one's guest stands by."""

    def __init__(
        self, place: Lab, home: Path, backend: str, window_us: int, kmemleak: bool, say: Say
    ) -> None:
        self._place = place
        self._home = home
        self._backend = backend
        self._window_us = window_us
        self._kmemleak = kmemleak
        self._say = say
        self._compiler = ThreadPoolExecutor(max_workers=1)
        self._standby: Guest | None = None

    def __enter__(self) -> _Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self._compiler.shutdown()
        if self._standby is not None:
            self._standby.abandon()

    def once(self, clock: _Clock) -> None:
        """Make one attempt and say what came of it; raises when that is bad."""
        attempt = self._attempt(clock)
        self._say(render(attempt))
        if not attempt.passed:
            raise TryFailedError(
                attempt.outcome,
                f"the module did not pass: {attempt.outcome.label}",
                attempt.console,
            )

    def again(self, clock: _Clock) -> None:
        """Make an attempt whose failure is no reason to end, and prepare the next."""
        try:
            self.once(clock)
        except (BuildError, TryFailedError, GuestLost) as error:
            self._say(f"{error.kind} error: {error}")
        self._standby = self._open()
        self._say("waiting for an edit of kmod/")

    def _attempt(self, clock: _Clock) -> Attempt:
        building = self._compiler.submit(self._compile, clock)
        guest = self._restored(clock)
        try:
            result = self._judge(clock, guest, building)
            built = building.result()
            # Before QEMU is ended: what it has written is all there is.
            reports, heard = guest.reports(), guest.heard
        finally:
            _settle(building)
            guest.abandon()
        return Attempt(
            stages=(*sorted(clock.stages, key=lambda stage: stage.began_s),),
            result=result,
            reports=reports,
            heard=heard,
            module=built.path,
            console=guest.machine.console.path,
            seconds=clock.elapsed_s,
        )

    def _compile(self, clock: _Clock) -> BuiltModule:
        source = self._place.settings.project / "kmod"
        with clock.stage("compile") as seen:
            built = lab.build_module(self._place, source, out=self._home)
            seen.append(progress.size(built.path.stat().st_size))
        return built

    def _restored(self, clock: _Clock) -> Guest:
        guest, self._standby = self._standby, None
        if guest is not None:
            if guest.alive:
                return guest
            guest.abandon()  # it died while it stood by, and its directory is for the next
        with clock.stage("restore") as seen:
            guest = self._open()
            seen.append(f"uptime {guest.read('/proc/uptime').split()[0].decode()} s")
        return guest

    def _open(self) -> Guest:
        target = self._place.target
        logs = self._place.settings.build / "logs" / "vm" / f"try-{target.suite}-{target.name}"
        return lab.open_guest(self._place, workdir=logs)

    def _judge(self, clock: _Clock, guest: Guest, building: Future[BuiltModule]) -> QuickResult:
        began = clock.elapsed_s
        result = quick.run(
            guest,
            lambda: building.result().path,
            self._place.programs,
            backend=self._backend,
            window_us=self._window_us,
            kmemleak=self._kmemleak,
            deadline_s=_DEADLINE_S,
        )
        for step in result.steps:
            clock.stages.append(Stage(step.name, began + step.at_s, step.seconds, step.seen))
        return result


def _settle(building: Future[BuiltModule]) -> None:
    # A compiler that still works when the guest has failed is not left behind.
    building.exception()


def render(attempt: Attempt) -> str:
    """Return what a reader needs: what went wrong first, then where the time went."""
    parts = []
    if attempt.reports:
        parts.append(
            triage.render(
                attempt.reports,
                modules={module.NAME: attempt.module},
                console=attempt.console,
            )
        )
    if attempt.result.findings:
        findings = (f"  {one.detector}: {one.message}" for one in attempt.result.findings)
        parts.append("\n".join(["found:", *findings]))
    if not attempt.result.complete:
        parts.append("the suite did not come to its end")
    if not attempt.heard:
        parts.append("the kernel was not heard on the console, so its silence proves nothing")
    parts.append(table(attempt.stages))
    armed = ", ".join(sorted(attempt.result.armed)) or "none"
    parts.append(
        f"{attempt.outcome.label} in {progress.duration(attempt.seconds)}:"
        f" {attempt.result.reads} listings, {attempt.result.records} records;"
        f" asked at the end: {armed}"
    )
    return "\n\n".join(parts)


def table(stages: tuple[Stage, ...]) -> str:
    """Return the stages with their times, in the order in which they began."""
    rows = [(one.name, f"{one.began_s:.1f} s", f"{one.seconds:.1f} s", one.seen) for one in stages]
    heads = ("stage", "from", "took", "seen")
    return tables.text(heads, rows, right=("from", "took"), width=_WIDTH).rstrip("\n")
