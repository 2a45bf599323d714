"""Try the module of this checkout: compile it, load it into a restored guest and judge it."""

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
from kbuild.lab import quick, setup
from kbuild.lab.findings import QuickResult
from kbuild.lab.setup import Lab

logger = logging.getLogger(__name__)

# Wide enough to show an existing race within the suite's few seconds.
WINDOW_US = 300

# For the quick suite, in seconds on the host.  It needs a fraction of this on an idle machine.
_DEADLINE_S = 150.0
_WIDTH = 110  # of the table, without a terminal

Say = Callable[[str], None]


class TryFailedError(KbuildError):
    """The module was compiled, and did not pass the quick suite."""

    kind = "module"

    def __init__(self, outcome: Outcome, what: str, console: Path) -> None:
        self.exit_status = outcome.exit_status
        super().__init__(what, log=console)


@dataclass(frozen=True)
class Part:
    """A timed part of an attempt; some parts overlap."""

    name: str
    began_s: float  # since the attempt began
    seconds: float
    seen: str


@dataclass(frozen=True)
class Attempt:
    """One attempt, from the edit to the verdict."""

    parts: tuple[Part, ...]
    result: QuickResult
    reports: tuple[triage.Report, ...]  # of the whole console
    heard: bool  # whether the kernel has printed there
    module: Path
    console: Path
    seconds: float

    @property
    def passed(self) -> bool:
        """Tell whether the suite was complete without a finding, and the console was working."""
        return self.result.passed and self.heard and not self.reports

    @property
    def outcome(self) -> Outcome:
        """The verdict; a kernel report comes before the findings that follow from it."""
        if self.passed:
            return Outcome.PASSED
        if self.reports:
            return self.reports[0].outcome
        return Outcome.FAILED if self.heard else Outcome.NO_OUTPUT


@dataclass
class _Clock:
    """The parts of one attempt, in the order of their ends."""

    began: float = field(default_factory=time.monotonic)
    parts: list[Part] = field(default_factory=list)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    @contextmanager
    def part(self, name: str) -> Iterator[list[str]]:
        """Time a block; the block appends what it saw to the list."""
        began, seen = self.elapsed_s, list[str]()
        yield seen
        self.parts.append(Part(name, began, self.elapsed_s - began, " ".join(seen)))


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
    """Judge the module of this checkout; with ``watch``, again after each edit of kmod/.

    With an empty ``backend`` the module uses its default.  ``window_us`` widens its race windows.
    ``kmemleak`` lets the kernel look for leaks too, in addition to counting objects.  Raises
    BuildError if the module does not compile, and TryFailedError, with the outcome's exit
    status, if it does not pass.  With ``watch`` both are printed instead, until the user
    interrupts.
    """
    clock = _Clock()
    with clock.part("prepare") as seen:
        lab = setup.prepare(settings, target, accel=accel)
        seen.append(lab.release)
    home = settings.build / target.suite / target.name / "try"
    with (
        fs.lock(home.with_name(".try.lock")),
        _Attempts(lab, home, backend, window_us, kmemleak, say) as attempts,
    ):
        if not watch:
            attempts.once(clock)
            return
        attempts.again(clock)
        for changes in watchfiles.watch(settings.project / "kmod", raise_interrupt=True):
            names = sorted({Path(path).name for _, path in changes})
            logger.info("changed: %s", ", ".join(names))
            attempts.again(_Clock())


class _Attempts:
    """The attempts of one run; a guest for the next attempt stands by between two of them."""

    def __init__(
        self, lab: Lab, home: Path, backend: str, window_us: int, kmemleak: bool, say: Say
    ) -> None:
        self._lab = lab
        self._home = home
        self._backend = backend
        self._window_us = window_us
        self._kmemleak = kmemleak
        self._say = say
        self._compiler = ThreadPoolExecutor(max_workers=1)
        self._standby: Guest | None = None

    def __enter__(self) -> _Attempts:
        return self

    def __exit__(self, *_: object) -> None:
        self._compiler.shutdown()
        if self._standby is not None:
            self._standby.abandon()

    def once(self, clock: _Clock) -> None:
        """Make one attempt and print it; raises TryFailedError if the module does not pass."""
        attempt = self._attempt(clock)
        self._say(render(attempt))
        if not attempt.passed:
            raise TryFailedError(
                attempt.outcome,
                f"the module did not pass: {attempt.outcome.label}",
                attempt.console,
            )

    def again(self, clock: _Clock) -> None:
        """Make one attempt, print a failure instead of raising it, and open the next guest."""
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
            # Read the console before QEMU ends.
            reports, heard = guest.reports(), guest.heard
        finally:
            _settle(building)
            guest.abandon()
        return Attempt(
            parts=(*sorted(clock.parts, key=lambda part: part.began_s),),
            result=result,
            reports=reports,
            heard=heard,
            module=built.path,
            console=guest.machine.console.path,
            seconds=clock.elapsed_s,
        )

    def _compile(self, clock: _Clock) -> BuiltModule:
        source = self._lab.settings.project / "kmod"
        with clock.part("compile") as seen:
            built = setup.build_module(self._lab, source, out=self._home)
            seen.append(progress.size(built.path.stat().st_size))
        return built

    def _restored(self, clock: _Clock) -> Guest:
        guest, self._standby = self._standby, None
        if guest is not None:
            if guest.alive:
                return guest
            guest.abandon()  # it died while it stood by; the next guest needs its directory
        with clock.part("restore") as seen:
            guest = self._open()
            seen.append(f"uptime {guest.read('/proc/uptime').split()[0].decode()} s")
        return guest

    def _open(self) -> Guest:
        target = self._lab.target
        logs = self._lab.settings.build / "logs" / "vm" / f"try-{target.suite}-{target.name}"
        return setup.open_guest(self._lab, workdir=logs)

    def _judge(self, clock: _Clock, guest: Guest, building: Future[BuiltModule]) -> QuickResult:
        began = clock.elapsed_s
        result = quick.run(
            guest,
            lambda: building.result().path,
            self._lab.programs,
            backend=self._backend,
            window_us=self._window_us,
            kmemleak=self._kmemleak,
            deadline_s=_DEADLINE_S,
        )
        for step in result.steps:
            clock.parts.append(Part(step.name, began + step.at_s, step.seconds, step.seen))
        return result


def _settle(building: Future[BuiltModule]) -> None:
    # If the guest has failed, the compiler may still run: wait for it.
    building.exception()


def render(attempt: Attempt) -> str:
    """Render an attempt: first the faults, then the times."""
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
        parts.append("the suite was not completed")
    if not attempt.heard:
        parts.append("the kernel printed nothing on the console, so its silence proves nothing")
    parts.append(table(attempt.parts))
    armed = ", ".join(sorted(attempt.result.armed)) or "none"
    parts.append(
        f"{attempt.outcome.label} in {progress.duration(attempt.seconds)}:"
        f" {attempt.result.reads} listings, {attempt.result.records} records;"
        f" detectors asked: {armed}"
    )
    return "\n\n".join(parts)


def table(parts: tuple[Part, ...]) -> str:
    """Render the parts with their times, in the order of their beginnings."""
    rows = [(one.name, f"{one.began_s:.1f} s", f"{one.seconds:.1f} s", one.seen) for one in parts]
    heads = ("part", "from", "took", "seen")
    return tables.text(heads, rows, right=("from", "took"), width=_WIDTH).rstrip("\n")
