"""Run commands in a guest while watching its console and the clock, and collect findings."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from kbuild.core.model import PROCFILE
from kbuild.guest import triage
from kbuild.guest.guest import Background, Guest, GuestResult
from kbuild.guest.programs import PLACE
from kbuild.lab import procfile
from kbuild.lab.findings import DETECTORS, Finding, Step
from kbuild.lab.procfile import Process

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.2
# After its title, the rest of a report comes within these times, or not at all.
_SILENCE_S = 1.0
_REPORT_S = 5.0


class EnoughError(Exception):
    """End the suite: a run has all the findings that it waits for, or cannot go on."""


class Watch:
    """A guest under watch: every command notices kernel reports and the deadline.

    ``expect`` has sets of detectors.  When one of each set has reported, the next command
    raises EnoughError.  ``deadline_s`` is in seconds on the host.
    """

    def __init__(
        self, guest: Guest, *, deadline_s: float, expect: Sequence[frozenset[str]]
    ) -> None:
        self.guest = guest
        self._began = time.monotonic()
        self._deadline_s = deadline_s
        self._expect = expect
        self._since = guest.machine.console.size()
        self._reported = 0
        self.findings: list[Finding] = []
        self.steps: list[Step] = []
        self.reads = 0
        self.records = 0

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    # --- findings -----------------------------------------------------------------------

    def note(self, detector: str, message: str) -> None:
        """Add a finding."""
        assert detector in DETECTORS, detector
        self.findings.append(Finding(detector, message, self.elapsed_s))

    def find(self, detector: str, message: str) -> None:
        """Add a finding; raises EnoughError when it was the last one that was expected."""
        self.note(detector, message)
        self._stop_if_satisfied()

    def expected(self, detector: str) -> bool:
        """Tell whether a detector is among those that are expected to report."""
        return any(detector in names for names in self._expect)

    def take_reports(self) -> None:
        """Add the kernel's new reports, as far as their lines are complete."""
        text = self.guest.console(self._since)
        reports = triage.scan(text[: text.rfind("\n") + 1])
        for report in reports[self._reported :]:
            self.note(report.name, report.title)
        self._reported = max(self._reported, len(reports))

    def look(self) -> None:
        """Take the kernel's reports; raises EnoughError when they suffice or time is up."""
        self.take_reports()
        self._stop_if_satisfied()
        if self.elapsed_s > self._deadline_s:
            self.note("hang", f"not finished after {self._deadline_s:g} s")
            raise EnoughError

    def _stop_if_satisfied(self) -> None:
        found = {finding.detector for finding in self.findings}
        if self._expect and all(found & names for names in self._expect):
            raise EnoughError

    def hear_out(self) -> None:
        """Wait for the end of the kernel's last report, because the guest is ended next."""
        began = heard = time.monotonic()
        text = self.guest.console(self._since)
        reports = triage.scan(text)
        while reports and not reports[-1].whole:
            now = time.monotonic()
            if now - heard > _SILENCE_S or now - began > _REPORT_S:
                break
            time.sleep(LOOK_EVERY_S)
            more = self.guest.console(self._since)
            if more != text:
                text, heard = more, time.monotonic()
                reports = triage.scan(text)

    # --- commands -----------------------------------------------------------------------

    def step(self, name: str, body: Callable[[], str]) -> None:
        """Run a step of the suite and record when it ran and what it saw."""
        began = time.monotonic()
        seen = body()
        self.look()
        self.steps.append(Step(name, began - self._began, time.monotonic() - began, seen))
        logger.debug("%s: %s (%.1f s)", name, seen, self.steps[-1].seconds)

    def start(self, argv: Sequence[str]) -> Background:
        """Start a command."""
        return self.guest.start(argv, cwd="/tmp")

    def finish(self, job: Background) -> GuestResult:
        """Wait for a command's end."""
        while not job.follow(LOOK_EVERY_S):
            self.look()
        return job.wait(1)

    def follow(self, job: Background, *, until: bytes) -> None:
        """Wait until a command has printed ``until``, or has ended."""
        while not job.follow(LOOK_EVERY_S, until=until):
            self.look()

    def run(self, argv: Sequence[str], detector: str = "") -> GuestResult:
        """Run a command to its end; with ``detector``, a failure is a finding."""
        job = self.start(argv)
        job.close_stdin()
        result = self.finish(job)
        if detector and result.status != 0:
            self.find(detector, said(result))
        return result

    def read_file(self) -> bytes:
        """Return one reading of the module's file; a failure is a finding."""
        return self.run(["@read", PROCFILE], "reading").stdout

    def listing(self) -> tuple[Process, ...]:
        """Return one reading of the module's file, parsed."""
        return self.parsed(self.read_file())

    def parsed(self, text: bytes) -> tuple[Process, ...]:
        """Parse a reading; a violation of the grammar is a finding and gives no records."""
        try:
            shown = procfile.parse(text)
        except procfile.ProcfileError as error:
            line = text.split(b"\n")[error.line - 1][:120]
            self.find("grammar", f"{error}: {line!r}")
            return ()
        self.reads += 1
        self.records += len(shown)
        return shown

    def hold(self, *scenarios: str) -> Background:
        """Start processes that hold still until :meth:`end`."""
        return self.start([f"{PLACE}/topology", *scenarios])

    def held(self, job: Background) -> None:
        """Wait until the processes hold still."""
        self.follow(job, until=b"ready\n")
        if not job.running:
            self.find("workload", said(job.wait(1)))

    def end(self, job: Background) -> None:
        """End the processes that hold still."""
        job.close_stdin()
        result = self.finish(job)
        if result.status != 0:
            self.find("workload", said(result))

    @contextmanager
    def topology(self, *scenarios: str) -> Iterator[None]:
        """Hold processes still in a block."""
        job = self.hold(*scenarios)
        self.held(job)
        yield
        self.end(job)


def said(result: GuestResult) -> str:
    """Return the end of what a command printed, or its status if it printed nothing."""
    text = (result.stderr or result.stdout)[-1000:].decode(errors="replace").strip()
    return f"{result.argv[0]}: {text or f'status {result.status}'}"
