"""One boot of a server: from its disk through GRUB, the commands of an administrator, and off.

Each boot is a QEMU of its own, because a reset inside QEMU takes minutes under TCG
(docs/results/gate.md); a reboot in the server ends QEMU.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kbuild.core.run import describe_status
from kbuild.guest import qemu
from kbuild.guest.console import Console, banners
from kbuild.guest.guest import Guest, GuestCommandError, GuestLost, GuestResult
from kbuild.guest.outcome import MODULE_TAINT, End, Outcome
from kbuild.guest.spec import ServerSpec
from kbuild.guest.verdict import Verdict

logger = logging.getLogger(__name__)

# The end of a failed command's output that its fault repeats.
_SAID_BYTES = 2048


@dataclass(frozen=True)
class Command:
    """One command of a job, as root; a server's job goes on after one that failed."""

    argv: tuple[str, ...]
    timeout_s: float = 30.0  # of a fast machine
    # Its status must be this one; None if any will do.
    status: int | None = 0


# Its status is not 0 for a degraded system.
_STATE = Command(("systemctl", "is-system-running", "--wait"), status=None)
_FAILED = Command(("systemctl", "list-units", "--failed", "--plain", "--no-legend"))


@dataclass(frozen=True)
class Boot:
    """The observations of one boot."""

    verdict: Verdict
    console: Path
    release: str = ""  # what uname -r printed; "" if the server never answered
    cmdline: str = ""  # /proc/cmdline
    state: str = ""  # of systemd: running, degraded
    failed: tuple[str, ...] = ()  # units
    taint: int | None = None  # before the power-off
    results: tuple[GuestResult, ...] = ()  # one for each command that ran
    first_line_s: float | None = None  # from QEMU's start to the kernel's first line
    report_s: float | None = None  # ... to systemd's state
    done_s: float | None = None  # ... to the last command's end
    off_s: float | None = None  # ... to QEMU's end
    end: End | None = None  # None while QEMU runs

    @property
    def started(self) -> tuple[str, ...]:
        """The releases whose first line is on the console, in their order.

        GRUB may have tried one before them that it could not start.
        """
        return banners(Console(self.console).text())

    @property
    def passed(self) -> bool:
        """True if no evidence is missing."""
        return self.verdict.passed


@contextlib.contextmanager
def keeping(disk: Path) -> Iterator[Path]:
    """Yield a file for the changes that boots make to a disk, for the time of the block."""
    changes = keep_changes(disk, disk.with_suffix(".qcow2"))
    try:
        yield changes
    finally:
        changes.unlink(missing_ok=True)


def keep_changes(disk: Path, changes: Path) -> Path:
    """Make a file that keeps what the boots of a disk write, from one boot to the next."""
    changes.unlink(missing_ok=True)
    qemu.overlay(disk, changes)
    return changes


class Running:
    """A server that has been started; :func:`running` makes one, and ends it."""

    def __init__(
        self,
        spec: ServerSpec,
        workdir: Path,
        expected_taint: int,
        cut_at: re.Pattern[str] | None,
    ) -> None:
        self._began = time.monotonic()
        # Until the end nothing is known that would make it pass.
        self._seen = Boot(Verdict(Outcome.NO_OUTPUT), workdir / "console.log")
        self._faults: list[str] = []
        self._guest: Guest | None = None
        try:
            self._guest = guest = Guest.boot(
                spec, workdir=workdir, expected_taint=expected_taint, cut_at=cut_at
            )
            self._note(release=guest.release)
            cmdline = guest.read("/proc/cmdline").decode(errors="replace").strip()
            self._note(cmdline=cmdline)
        except GuestLost as lost:
            logger.info("server without an answer: %s, %s", lost.outcome.label, lost.end.value)
            self._note(
                verdict=lost.verdict,
                end=lost.end,
                first_line_s=lost.first_line_s,
                off_s=self._now(),
            )

    def settle(self) -> None:
        """Wait until systemd has done all that it has to, and note what came of it."""
        guest = self._guest
        if guest is None:
            return
        with contextlib.suppress(GuestLost):
            state = self._ask(guest, _STATE)
            self._note(state=state.text.strip() if state else "", report_s=self._now())
            listed = self._ask(guest, _FAILED)
            lines = listed.text.splitlines() if listed else []
            failed = tuple(line.split()[0] for line in lines if line.strip())
            self._note(failed=failed)
            if self._seen.state != "running" or failed:
                self._faults.append(
                    f"systemd is {self._seen.state or 'silent'}, not running;"
                    f" failed units: {', '.join(failed) or 'none'}"
                )

    def run(self, command: Command) -> GuestResult | None:
        """Run a command; None if it was not started or the server is lost, as its boot says."""
        guest = self._guest
        if guest is None or not guest.alive:
            return None
        try:
            done = self._ask(guest, command)
        except GuestLost:
            return None
        if done is not None:
            self._note(results=(*self._seen.results, done), done_s=self._now())
        return done

    def wait_end(self, timeout_s: float) -> bool:
        """Wait until the server ends without our doing, and return whether it did.

        It may have ended before.  ``timeout_s`` is for a fast machine.
        """
        guest = self._guest
        return guest is None or not guest.alive or guest.wait_end(timeout_s)

    def finish(self) -> Boot:
        """Power the server off if it still runs, and return what was seen of it."""
        guest = self._guest
        if guest is not None and self._seen.end is None:
            if guest.alive:
                with contextlib.suppress(GuestLost, GuestCommandError):
                    self._note(taint=guest.taint())
            verdict = guest.shutdown(faults=self._faults)
            self._note(
                verdict=verdict,
                off_s=self._now(),
                first_line_s=guest.first_line_s,
                end=guest.end,
            )
            logger.info("server %s: %s", self._seen.release, verdict.outcome.label)
        return self._seen

    @property
    def seen(self) -> Boot:
        """The observations so far."""
        return self._seen

    def abandon(self) -> None:
        """End QEMU, if it still runs."""
        if self._guest is not None:
            self._guest.abandon()

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _note(self, **found: object) -> None:
        self._seen = replace(self._seen, **found)  # type: ignore[arg-type]

    def _ask(self, guest: Guest, command: Command) -> GuestResult | None:
        """Run a command, and note what is wrong with its end; None if it was not started."""
        try:
            done = guest.run(command.argv, timeout_s=command.timeout_s)
        except GuestCommandError as error:
            self._faults.append(error.what)
            return error.result
        if command.status is not None and done.status != command.status:
            said = (done.stderr or done.stdout)[-_SAID_BYTES:].decode(errors="replace").strip()
            self._faults.append(
                f"{shlex.join(command.argv)}: {describe_status(done.status)}: {said}"
            )
        return done


@contextlib.contextmanager
def running(
    spec: ServerSpec,
    workdir: Path,
    *,
    expected_taint: int = MODULE_TAINT,
    cut_at: re.Pattern[str] | None = None,
    settled: bool = True,
) -> Iterator[Running]:
    """Boot a server, and yield it when systemd has come up, or when it is lost.

    ``workdir`` receives console.log and qemu.log.  The power is cut when the console has a match
    of ``cut_at``.  Unless it is to be ``settled``, the server is yielded when its agent answers.
    Raises InfrastructureError if QEMU does not start.
    """
    server = Running(spec, workdir, expected_taint, cut_at)
    try:
        if settled:
            server.settle()
        yield server
    finally:
        server.abandon()


def boot(
    spec: ServerSpec,
    commands: Sequence[Command] = (),
    *,
    workdir: Path,
    expected_taint: int = MODULE_TAINT,
) -> Boot:
    """Boot a server, run commands in it one after the other, power it off, and judge all of it.

    It passes if the kernel wrote its first line and no report, and systemd came up without a
    failed unit.  Each command must end in time with its status.  The taint must be within
    ``expected_taint``, and the server must power itself off.  Raises what :func:`running` raises.
    """
    with running(spec, workdir, expected_taint=expected_taint) as server:
        for command in commands:
            server.run(command)
        return server.finish()
