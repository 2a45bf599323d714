"""One boot of a server: from its disk through GRUB, the commands of an administrator, and off.

Each boot is a QEMU of its own, because a reset inside QEMU takes minutes under TCG
(docs/results/gate.md); a reboot in the server ends QEMU.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kbuild.core.run import describe_status
from kbuild.guest import qemu
from kbuild.guest.guest import Guest, GuestCommandError, GuestLost, GuestResult
from kbuild.guest.outcome import MODULE_TAINT
from kbuild.guest.spec import ServerSpec
from kbuild.guest.verdict import Verdict

logger = logging.getLogger(__name__)

# Seconds of a fast machine, as in kbuild/guest/guest.py.
_SETTLED_S = 30.0
_ASKED_S = 5.0
# The end of a failed command's output that its fault repeats.
_SAID_BYTES = 2048


@dataclass(frozen=True)
class Command:
    """One command of a job, as root; a server's job goes on after one that failed."""

    argv: tuple[str, ...]
    timeout_s: float = 30.0  # of a fast machine
    # What its status must be; None if any will do.
    status: int | None = 0


@dataclass(frozen=True)
class Boot:
    """What was seen of one boot."""

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

    @property
    def passed(self) -> bool:
        """True if no evidence is missing."""
        return self.verdict.passed


def keep_changes(disk: Path, changes: Path) -> Path:
    """Make a file that keeps what the boots of a disk write, from one boot to the next."""
    changes.unlink(missing_ok=True)
    qemu.overlay(disk, changes)
    return changes


class Running:
    """A server that has been started; :func:`running` makes one, and ends it."""

    def __init__(self, spec: ServerSpec, workdir: Path, expected_taint: int) -> None:
        self._began = time.monotonic()
        self._workdir = workdir
        self._seen: dict[str, Any] = {}
        self._results: list[GuestResult] = []
        self._faults: list[str] = []
        self._guest: Guest | None = None
        self._lost: Verdict | None = None
        try:
            self._guest = Guest.boot(spec, workdir=workdir, expected_taint=expected_taint)
            self._look(self._guest)
        except GuestLost as lost:
            self._lost = lost.verdict

    def run(self, command: Command) -> GuestResult | None:
        """Run a command; None if the server is lost, which its boot then says."""
        if self._guest is None or self._lost is not None:
            return None
        try:
            done = self._ask(self._guest, command)
        except GuestLost as lost:
            self._lost = lost.verdict
            return None
        self._seen["done_s"] = self._now()
        return done

    def finish(self) -> Boot:
        """Power the server off, and return what was seen of it."""
        guest, verdict = self._guest, self._lost
        if guest is not None:
            with contextlib.suppress(GuestLost, GuestCommandError):
                if verdict is None:
                    self._seen["taint"] = guest.taint()
            verdict = guest.shutdown(faults=self._faults)
            self._seen |= {"off_s": self._now(), "first_line_s": guest.first_line_s}
        assert verdict is not None
        console = self._workdir / "console.log"
        made = Boot(verdict, console, results=tuple(self._results), **self._seen)
        logger.info("server %s: %s", made.release or "without an answer", verdict.outcome.label)
        return made

    def abandon(self) -> None:
        """End QEMU, if it still runs."""
        if self._guest is not None:
            self._guest.abandon()

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _look(self, guest: Guest) -> None:
        """Wait until systemd has done all that it has to, and note what came of it."""
        self._seen["release"] = guest.release
        self._seen["cmdline"] = guest.read("/proc/cmdline").decode(errors="replace").strip()
        state = guest.run(["systemctl", "is-system-running", "--wait"], timeout_s=_SETTLED_S)
        self._seen |= {"state": state.text.strip(), "report_s": self._now()}
        listed = guest.run(
            ["systemctl", "list-units", "--failed", "--plain", "--no-legend"], timeout_s=_ASKED_S
        )
        failed = tuple(line.split()[0] for line in listed.text.splitlines() if line.strip())
        self._seen["failed"] = failed
        if self._seen["state"] != "running" or listed.status != 0 or failed:
            self._faults.append(
                f"systemd is {self._seen['state'] or 'silent'}, not running;"
                f" failed units: {', '.join(failed) or 'none'}"
            )

    def _ask(self, guest: Guest, command: Command) -> GuestResult | None:
        try:
            done = guest.run(command.argv, timeout_s=command.timeout_s)
        except GuestCommandError as error:
            self._faults.append(error.what)
            if error.result is not None:
                self._results.append(error.result)
            return error.result
        self._results.append(done)
        if command.status is not None and done.status != command.status:
            said = (done.stderr or done.stdout)[-_SAID_BYTES:].decode(errors="replace").strip()
            self._faults.append(
                f"{shlex.join(command.argv)}: {describe_status(done.status)}: {said}"
            )
        return done


@contextlib.contextmanager
def running(
    spec: ServerSpec, workdir: Path, *, expected_taint: int = MODULE_TAINT
) -> Iterator[Running]:
    """Boot a server, and yield it when systemd has come up, or when it is lost.

    ``workdir`` receives console.log and qemu.log.  Raises InfrastructureError if QEMU does not
    start.
    """
    server = Running(spec, workdir, expected_taint)
    try:
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

    It passes if the kernel wrote its first line and no report, systemd came up without a failed
    unit, each command ended in time with its status, the taint is within ``expected_taint``, and
    the server powered itself off.  Raises what :func:`running` raises.
    """
    with running(spec, workdir, expected_taint=expected_taint) as server:
        for command in commands:
            server.run(command)
        return server.finish()
