"""A booted guest: commands in, results out, and a verdict at its end."""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from kbuild.core import fs
from kbuild.core.errors import InfrastructureError, KbuildError
from kbuild.core.model import Kernel
from kbuild.core.progress import size
from kbuild.core.run import describe_status
from kbuild.guest import detectors, qemu, triage
from kbuild.guest.channel import (
    MAX_OUTPUT,
    MAX_PAYLOAD,
    PROTOCOL,
    Channel,
    ChannelClosed,
    ChannelGarbled,
    ChannelRefused,
    ChannelTimeout,
    Job,
    Kind,
    start_payload,
)
from kbuild.guest.console import banner, mark_line, oom_kill
from kbuild.guest.detectors import Checked
from kbuild.guest.outcome import End, Outcome
from kbuild.guest.spec import GuestSpec, MachineSpec, Snapshot
from kbuild.guest.verdict import Evidence, Verdict, judge

logger = logging.getLogger(__name__)

# Deadlines in seconds of a fast machine; each is multiplied by the guest's scale.
_BOOT_S = 30.0
_FIRST_LINE_S = 10.0  # from QEMU's start; a boot loader that stops would wait for ever
_ANSWER_S = 5.0  # for the agent's answer to a request that takes no time itself
_SCAN_S = 60.0
_POWER_OFF_S = 10.0
_SAVE_S = 20.0
_HELLO_LINES = 4
_TAIL_S = 2.0  # for QEMU to end by itself after its sockets are closed

# Random bytes from the host for a restored guest: twice the size of a ChaCha20 key.
_ENTROPY_BYTES = 64

# In "info registers -a": a processor, its address, and whether it waits for an interrupt.
_PROCESSOR = re.compile(r"^(CPU#\d+)$.*?\b[RE]IP=([0-9a-f]+).*?\bHLT=([01])", re.M | re.S)

_ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM": "dumb",
}
_BULK_FINDER = (
    "modprobe -q virtio_console; for p in /sys/class/virtio-ports/*; do"
    ' [ "$(cat "$p/name" 2>/dev/null)" = "$1" ] && echo "/dev/${p##*/}" && exit 0; done; exit 1'
)


class GuestLost(KbuildError):  # noqa: N818 - the name describes the event, as in GuestResult
    """The guest is dead or does not answer.

    ``outcome`` is its outcome, ``console`` the console's tail, and ``words`` the end of the output
    of the commands that ran in it.  ``end`` is how it ended, and ``first_line_s`` the time of the
    kernel's first line.
    """

    kind = "guest"

    def __init__(
        self,
        verdict: Verdict,
        what: str,
        console: str,
        log: Path | None = None,
        words: bytes = b"",
        end: End = End.LOST,
        first_line_s: float | None = None,
    ) -> None:
        self.end = end
        self.first_line_s = first_line_s
        self.verdict = verdict
        self.outcome: Outcome = verdict.outcome
        self.console = console
        self.words = words
        self.exit_status = verdict.outcome.exit_status
        found = console or "nothing on the console"
        if words:
            found += f"\nlast words of the command:\n{words.decode(errors='replace')}"
        super().__init__(f"{what}: {verdict}", found=found, log=log)


class _ConsoleFlooded(Exception):  # noqa: N818 - an event
    """The console is over its limit."""


class _NoFirstLine(Exception):  # noqa: N818
    """The kernel has written nothing in time."""


class _PowerCut(Exception):  # noqa: N818
    """The console has the line at which the caller wants the power to be cut."""


class GuestCommandError(KbuildError):
    """A command in the guest failed or did not end in time.

    ``result`` is None for a command that the agent could not start.
    """

    kind = "guest command"
    exit_status = Outcome.FAILED.exit_status

    def __init__(self, what: str, result: GuestResult | None) -> None:
        self.result = result
        said = b"" if result is None else (result.stderr or result.stdout)[-4096:]
        super().__init__(what, found=said.decode(errors="replace").strip() or None)


@dataclass(frozen=True)
class GuestResult:
    """The result of a command in the guest; ``status`` is negative for a signal."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes
    seconds: float
    oom: str = ""  # the kernel's message if it killed a process for its memory meanwhile

    @property
    def text(self) -> str:
        """The standard output as text."""
        return self.stdout.decode(errors="replace")


class Background:
    """A command that runs in the guest next to others."""

    def __init__(self, guest: Guest, job: Job, argv: Sequence[str]) -> None:
        self._guest = guest
        self._job = job
        self._argv = tuple(argv)
        self._began = time.monotonic()

    def read_line(self, timeout_s: float) -> bytes:
        """Return the next line of standard output with its newline, or b"" at the end.

        Raises GuestCommandError if no line comes in ``timeout_s`` (unscaled) seconds.
        """
        with self._guest.talking("a line of output"):
            try:
                self._guest.channel.wait(self._job, timeout_s * self._guest.spec.scale, line=True)
            except ChannelTimeout:
                self._guest.require_answer()
                raise GuestCommandError(
                    f"{self._argv[0]} wrote no line in {timeout_s:g} s"
                    f" (times {self._guest.spec.scale:g})",
                    self._result(),
                ) from None
            except ChannelRefused as refusal:
                raise GuestCommandError(f"{self._argv[0]}: {refusal}", None) from None
        head, newline, rest = bytes(self._job.stdout).partition(b"\n")
        self._job.stdout[:] = rest
        return head + newline

    def write(self, data: bytes) -> None:
        """Send bytes to the command's standard input."""
        with self._guest.talking("input"):
            self._guest.channel.write(self._job, data, self._guest.answer_s)

    def close_stdin(self) -> None:
        """Close the command's standard input."""
        with self._guest.talking("input"):
            self._guest.channel.close_input(self._job, self._guest.answer_s)

    def kill(self, signum: int = 9) -> None:
        """Send a signal to the command's process group."""
        with self._guest.talking("a signal"):
            self._guest.channel.signal(self._job, signum, self._guest.answer_s)

    def wait(self, timeout_s: float, *, check: bool = False) -> GuestResult:
        """Wait for the end, and return the result with the output that is still untaken.

        A command over ``timeout_s`` (unscaled) is killed, and GuestCommandError is raised.
        """
        with self._guest.talking("a command's end"):
            try:
                self._guest.channel.wait(self._job, timeout_s * self._guest.spec.scale)
            except ChannelTimeout:
                self._guest.require_answer()
                self._guest.channel.signal(self._job, 9, self._guest.answer_s)
                self._job.timed_out = True
                self._guest.channel.wait(self._job, self._guest.answer_s)
            except ChannelRefused as refusal:
                raise GuestCommandError(f"{self._argv[0]}: {refusal}", None) from None
        return self._guest.finish(self._job, self._result(), timeout_s, check=check)

    def follow(self, timeout_s: float, *, until: bytes | None = None) -> bool:
        """Take the output of at most ``timeout_s`` seconds of the host.

        Returns whether the command has ended or has written ``until``, which stays untaken.
        """

        def happened() -> bool:
            return self._job.done or (until is not None and until in self._job.stdout)

        with self._guest.talking("a command's output"):
            if not happened():
                self._guest.channel.pump(timeout_s)
        return happened()

    @property
    def running(self) -> bool:
        """True if the command ran when output was last taken."""
        return not self._job.done

    @property
    def ended(self) -> bool:
        """True if the command has ended and all of its output was taken."""
        return self._job.done and not self._job.stdout and not self._job.stderr

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the terminal of a command that was started with a pty."""
        with self._guest.talking("a new size"):
            self._guest.channel.resize(self._job, rows, columns, self._guest.answer_s)

    @property
    def output(self) -> tuple[bytearray, bytearray]:
        """The untaken standard output and error; a caller deletes what it takes."""
        return self._job.stdout, self._job.stderr

    def converse(self, keyboard: int | None, timeout_s: float) -> bytes | None:
        """Wait for bytes on ``keyboard`` or for output, and return what was typed.

        Returns b"" at the end of the keyboard and None for no input.  No more is read than the
        command takes.  After ``timeout_s`` (unscaled) without a byte the agent must answer a ping.
        """
        channel, began = self._guest.channel, time.monotonic()
        with self._guest.talking("a command's output"):
            if not self._job.done and not any(self.output):
                watched = keyboard if channel.hungry(self._job) else None
                if channel.pump(timeout_s, watched) and watched is not None:
                    return _read(watched)
                if time.monotonic() - began >= timeout_s and not self._job.done:
                    self._guest.require_answer()
        return None

    def take_rest(self) -> None:
        """Take the output that is left when the command or this program ends."""
        with suppress(GuestLost), self._guest.talking("a command's last output"):
            self._guest.channel.pump(0)

    def _result(self) -> GuestResult:
        job = self._job
        return GuestResult(
            argv=self._argv,
            status=job.status if job.status is not None else -9,
            stdout=bytes(job.stdout),
            stderr=bytes(job.stderr),
            seconds=time.monotonic() - self._began,
        )


def _read(keyboard: int) -> bytes | None:
    try:
        return os.read(keyboard, MAX_PAYLOAD)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""  # EIO: the terminal is gone


class Guest:
    """A running guest, for one thread; made by :meth:`boot` or :meth:`restore`.

    As a context manager it powers the guest off at the end.
    """

    def __init__(
        self,
        spec: MachineSpec,
        machine: qemu.Machine,
        allowed_taint: int,
        cut_at: re.Pattern[str] | None = None,
    ) -> None:
        self.spec = spec
        self._cut_at = cut_at
        self._began = time.monotonic()
        self.first_line_s: float | None = None  # from the start to the kernel's first line
        self.machine = machine
        self.channel = Channel(machine.control, machine.bulk, watch=self._watch_console)
        self.release = ""  # the guest's uname -r
        self.boot_id = ""
        self.boot_seconds = 0.0
        self.answer_s = _ANSWER_S * spec.scale
        self._allowed_taint = allowed_taint
        self._taint: int | None = None
        self._checked = Checked()
        self._unchecked = ""
        self._farewell: int | None = None
        self._hello = False
        self._answered = True
        self._garbled = ""
        self._verdict: Verdict | None = None
        self.port: str | None = None  # the guest's name for its second control port
        # The size of a restored guest's console at the restore, and its first mark after that.
        self._restored_at: int | None = None
        self._restored_mark: str | None = None

    @classmethod
    def boot(
        cls,
        spec: MachineSpec,
        *,
        workdir: Path,
        expected_taint: int = 0,
        cut_at: re.Pattern[str] | None = None,
    ) -> Guest:
        """Start QEMU and wait for the agent.

        ``workdir`` receives console.log and qemu.log.  ``expected_taint`` is the mask of taint
        bits that may be set when the guest is judged.  The power is cut during any wait for the
        guest after its console has a match of ``cut_at``.  Raises GuestLost when the guest does
        not come up, InfrastructureError when its agent has another protocol.
        """
        return cls._booted(spec, qemu.start(spec, workdir), expected_taint, cut_at)

    @classmethod
    def boot_to_save(cls, snapshot: Snapshot, *, workdir: Path) -> Guest:
        """Boot a guest whose memory and disk are files of ``snapshot``, for :meth:`save`."""
        machine = qemu.start(snapshot.spec, workdir, snapshot, restored=False)
        return cls._booted(snapshot.spec, machine, 0)

    @classmethod
    def _booted(
        cls,
        spec: MachineSpec,
        machine: qemu.Machine,
        expected_taint: int,
        cut_at: re.Pattern[str] | None = None,
    ) -> Guest:
        began = time.monotonic()
        guest = cls(spec, machine, expected_taint, cut_at)
        try:
            guest._greet("the agent's hello", _BOOT_S * spec.scale)
            guest.boot_seconds = time.monotonic() - began
            guest._open_bulk()
        except BaseException:
            guest.machine.close()
            raise
        logger.info("guest %s answered after %.1f s", guest.release, guest.boot_seconds)
        return guest

    @classmethod
    def restore(cls, snapshot: Snapshot, *, workdir: Path, expected_taint: int = 0) -> Guest:
        """Start QEMU with the booted guest of a snapshot; raises the errors of :meth:`boot`.

        The guest gets the host's time and random numbers of its own.  Its console begins with
        that of the snapshot's boot, and is judged as a whole.
        """
        began = time.monotonic()
        spec = snapshot.spec
        guest = cls(spec, qemu.start(spec, workdir, snapshot), expected_taint)
        try:
            guest._wake(snapshot)
            guest.boot_seconds = time.monotonic() - began
        except BaseException:
            guest.machine.close()
            raise
        logger.info("guest %s restored after %.1f s", guest.release, guest.boot_seconds)
        return guest

    def _greet(self, what: str, timeout_s: float) -> None:
        with self.talking(what):
            greeting = self.channel.ping(timeout_s).splitlines()
            if len(greeting) != _HELLO_LINES:
                raise ChannelGarbled(f"a hello of {len(greeting)} lines")
        self._hello = True
        spoken, self.boot_id, self.release, processors = greeting
        if spoken != str(PROTOCOL):
            raise InfrastructureError(
                "the guest's agent does not match this checkout",
                expected=f"protocol {PROTOCOL}",
                found=f"protocol {spoken}",
                hint="run './inv test', which makes a new image",
            )
        if processors != str(self.spec.cpus):
            raise InfrastructureError(
                "the guest does not run on all of its processors, so it would miss races",
                expected=f"{self.spec.cpus} processors",
                found=f"{processors} online",
                log=self.machine.console.path,
                hint="the console has the agent's reason for not starting one",
            )

    def _wake(self, snapshot: Snapshot) -> None:
        self._restored_at = self.machine.console.size()
        self.machine.restore(snapshot.state, _ANSWER_S * self.spec.scale)
        self._greet("an answer after the restore", self.answer_s)
        if snapshot.port is not None:
            with self.talking("the second port"):
                opened = self.channel.use_bulk(snapshot.port, self.answer_s)
            self.port = snapshot.port if opened else None
        entropy = os.urandom(_ENTROPY_BYTES)
        self.run(["@wake", str(time.time_ns())], timeout_s=_ANSWER_S, stdin=entropy, check=True)
        self._restored_mark = mark_line("restored", os.urandom(8).hex())
        self.mark(self._restored_mark)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()

    @property
    def kernel(self) -> Kernel:
        """The kernel that QEMU loaded; a server's own GRUB loads one."""
        assert isinstance(self.spec, GuestSpec)
        return self.spec.kernel

    # --- commands ---------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        check: bool = False,
    ) -> GuestResult:
        """Run a command as root to its end.

        ``timeout_s`` is for a fast machine, and is multiplied by ``spec.scale``.  A command that
        takes longer is killed, and GuestCommandError is raised.  With ``check``, it is also raised
        for a status other than 0.  Raises GuestLost when the guest itself is gone.
        """
        limit_s = timeout_s * self.spec.scale
        job = self._start(argv, limit_s=limit_s, env=env, cwd=cwd)
        began = time.monotonic()
        with self.talking(f"the result of {argv[0]}"):
            try:
                if stdin:
                    self.channel.write(job, stdin, limit_s)
                self.channel.close_input(job, self.answer_s)
                # The agent enforces the limit.  This one is for an agent that does not.
                self.channel.wait(job, limit_s + self.answer_s)
            except ChannelRefused as refusal:
                self.channel.forget(job)
                raise GuestCommandError(f"{argv[0]}: {refusal}", None) from None
        result = GuestResult(
            argv=tuple(argv),
            status=job.status if job.status is not None else -9,
            stdout=bytes(job.stdout),
            stderr=bytes(job.stderr),
            seconds=time.monotonic() - began,
        )
        return self.finish(job, result, timeout_s, check=check)

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        pty: bool = False,
        timeout_s: float = 0,
    ) -> Background:
        """Start a command in the background; its standard input stays open.

        The command is killed after ``timeout_s`` times ``spec.scale``; 0 means no limit.
        """
        limit_s = timeout_s * self.spec.scale
        return Background(self, self._start(argv, limit_s=limit_s, env=env, cwd=cwd, pty=pty), argv)

    def put(self, content: Path | bytes, remote: str, *, mode: int = 0o755) -> None:
        """Write a file in the guest, by rename, from a local file or from bytes."""
        data = content if isinstance(content, bytes) else content.read_bytes()
        # Enough for a serial port.
        timeout_s = 10.0 + len(data) / 100_000
        self.run(["@write", remote, f"{mode:o}"], stdin=data, timeout_s=timeout_s, check=True)

    def read(self, remote: str, *, timeout_s: float = 10.0) -> bytes:
        """Return the content of a file in the guest; works for procfiles too."""
        return self.run(["@read", remote], timeout_s=timeout_s, check=True).stdout

    def mark(self, text: str) -> None:
        """Write a line to the guest's kernel log, for example where a test begins."""
        with self.talking("the mark's echo"):
            self.channel.request(Kind.MARK, text.encode(), self.answer_s)

    def taint(self) -> int:
        """Return /proc/sys/kernel/tainted."""
        said = self.read("/proc/sys/kernel/tainted")
        if not said.strip().isdigit():
            raise GuestCommandError(f"the kernel's taint is not a number: {said[:80]!r}", None)
        return int(said)

    # --- console ----------------------------------------------------------------------

    def console(self, since: int = 0) -> str:
        """Return the console's text from byte offset ``since`` on."""
        return self.machine.console.text(since)

    def reports(self, since: int = 0) -> tuple[triage.Report, ...]:
        """Return the kernel's reports on the console from byte offset ``since`` on."""
        return triage.scan(self.console(since))

    @property
    def heard(self) -> bool:
        """True if the kernel has written to the console, since the restore if there was one."""
        console = self.console()
        if self._restored_at is None:
            return banner(console) is not None
        # The boot's messages prove nothing about a guest that was restored afterwards.
        mark, since = self._restored_mark, self.console(self._restored_at)
        return banner(console) is not None and mark is not None and mark in since

    # --- end --------------------------------------------------------------------------

    def save(self, state: Path) -> None:
        """Complete the snapshot that the guest was booted in, and end QEMU.

        Raises GuestLost, with the verdict, when the kernel has a report or a taint, because every
        restored guest would have it, too.  Raises InfrastructureError when QEMU fails.
        """
        self.run(["sync"], timeout_s=_POWER_OFF_S, check=True)
        fit = self.taint() & ~self._allowed_taint == 0 and not self.reports()
        if not fit or not self.heard:
            self.shutdown()
            raise self._lost("the guest is not fit to be saved")
        try:
            self.machine.save(state, _SAVE_S * self.spec.scale)
        finally:
            self.abandon()

    @property
    def alive(self) -> bool:
        """True if the guest can still be used."""
        return self._verdict is None and self.machine.status is None

    def shutdown(self, *, status: int | None = 0, faults: Sequence[str] = ()) -> Verdict:
        """Power the guest off in order and judge it; a second call returns the same verdict.

        ``status`` is that of the command for which the guest was started, if there was one.
        ``faults`` are what else was wrong in it, each in a sentence.
        """
        if self._verdict is not None:
            return self._verdict
        with suppress(GuestLost):
            try:
                self._checked = check_detectors(self)
                # The last result frame: it shows that the guest works to the end.
                self._taint = self.taint()
            except GuestCommandError as error:
                self._unchecked = ": ".join(filter(None, (error.what, error.found)))
            with self.talking("the farewell"):
                answer = self.channel.request(Kind.POWER_OFF, b"", _POWER_OFF_S * self.spec.scale)
                self._farewell = int.from_bytes(answer.payload, "little")
                self.machine.wait(_POWER_OFF_S * self.spec.scale)
        return self._conclude(status, faults)

    def wait_end(self, timeout_s: float) -> bool:
        """Wait until the guest ends without our doing, and return whether it did.

        ``timeout_s`` is for a fast machine.  The power is cut at the line that :meth:`boot` was
        told, which also is an end.
        """
        deadline = time.monotonic() + timeout_s * self.spec.scale
        with suppress(GuestLost), self.talking("the guest's end"):
            while (left := deadline - time.monotonic()) > 0:
                self.channel.pump(min(left, 1.0))
        return self._verdict is not None

    @property
    def end(self) -> End | None:
        """How the guest ended; None while it runs."""
        machine = self.machine
        if machine.status is None:
            return None
        if machine.stopped:
            return End.CUT
        if machine.watchdog_fired():
            return End.WATCHDOG
        if machine.was_reset():
            return End.RESET
        return End.OFF if machine.powered_off() else End.LOST

    def abandon(self) -> Verdict:
        """Stop QEMU at once, and judge by the evidence so far; for a guest of no further use."""
        return self._conclude(None)

    def _conclude(self, status: int | None = 0, faults: Sequence[str] = ()) -> Verdict:
        if self._verdict is None:
            self.machine.stop()
            text = self.machine.console.text()
            self._verdict = judge(
                Evidence(
                    hello=self._hello,
                    banner=self.heard,
                    answered=self._answered,
                    garbled=self._garbled,
                    flooded=self.machine.console.over_limit,
                    unchecked=self._unchecked,
                    reports=triage.scan(text),
                    checkers=self.spec.checkers,
                    alive=self._checked.alive,
                    leaks=self._checked.leaks,
                    farewell=self._farewell,
                    power_off_event=self.machine.powered_off(),
                    qemu_status=self.machine.status,
                    ended_by_us=self.machine.stopped,
                    taint=self._taint,
                    allowed_taint=self._allowed_taint,
                    status=status,
                    faults=tuple(faults),
                )
            )
            self.machine.close()
            self.channel.close()
        return self._verdict

    # --- for Background ---------------------------------------------------------------

    @contextmanager
    def talking(self, what: str) -> Iterator[None]:
        """Turn the end or the silence of the channel in the block into GuestLost."""
        if self._verdict is not None:
            raise self._lost("the guest is gone already")
        try:
            yield
        except ChannelGarbled as garbled:
            self._garbled = str(garbled)
            self._conclude(None)
            raise self._lost(f"the agent sent an invalid frame instead of {what}") from None
        except _ConsoleFlooded:
            self._conclude(None)
            raise self._lost(f"the console is over its limit while we wait for {what}") from None
        except _PowerCut:
            self._answered = False
            self.machine.cut_power()
            self._conclude(None)
            raise self._lost(f"the power was cut during the wait for {what}") from None
        except _NoFirstLine:
            self._answered = False
            self._conclude(None)
            raise self._lost("no kernel has written its first line in time") from None
        except ChannelClosed:
            self._answered = False
            # QEMU closed its sockets, so it is about to end.
            self.machine.wait(_TAIL_S * self.spec.scale)
            self._conclude(None)
            raise self._lost(f"the guest ended during the wait for {what}") from None
        except ChannelTimeout:
            self._answered = False
            still = self._still_there() + self._where()
            self._conclude(None)
            raise self._lost(f"{what} did not come in time; {still}") from None

    def _still_there(self) -> str:
        """Describe whether the agent answers a ping, which goes over the serial port."""
        if not self._hello:
            return "the agent never said hello"
        try:
            self.channel.ping(self.answer_s)
        except (ChannelTimeout, ChannelClosed, ChannelGarbled, _ConsoleFlooded):
            return "the agent does not answer a ping, either"
        return "the agent still answers a ping"

    def _where(self) -> str:
        """Write the processors' registers next to the console, and return their addresses."""
        registers = self.machine.registers()
        if not registers:
            return ""
        kept = self.machine.console.path.with_name("registers.log")
        fs.write_atomic(kept, registers)
        places = (
            f"{name} at {address}{' (halted)' if halted == '1' else ''}"
            for name, address, halted in _PROCESSOR.findall(registers.replace("\r", ""))
        )
        return f"; {', '.join(places)}: {kept}"

    def require_answer(self) -> None:
        """Ping the agent; raises ChannelTimeout if the agent is silent, and not only a command."""
        self.channel.ping(self.answer_s)

    def finish(
        self, job: Job, result: GuestResult, timeout_s: float, *, check: bool
    ) -> GuestResult:
        """Drop a job that has ended, and raise GuestCommandError if its result is not as asked."""
        self.channel.forget(job)
        name = " ".join(result.argv)
        if result.status != 0:
            result = replace(result, oom=oom_kill(self.console(job.console_at)))
        why = f" ({result.oom})" if result.oom else ""
        if job.flooded:
            raise GuestCommandError(
                f"in the guest, {name} printed more than {size(MAX_OUTPUT)}, and was killed", result
            )
        if job.timed_out:
            stuck = ", and it cannot be killed" if job.unkillable else ""
            raise GuestCommandError(
                f"in the guest, {name} did not end in {timeout_s:g} s"
                f" (times {self.spec.scale:g}){stuck}{why}",
                result,
            )
        if check and result.status != 0:
            raise GuestCommandError(
                f"in the guest, {name} failed: {describe_status(result.status)}{why}", result
            )
        return result

    def _start(
        self,
        argv: Sequence[str],
        *,
        limit_s: float,
        env: Mapping[str, str] | None,
        cwd: str,
        pty: bool = False,
    ) -> Job:
        console_at = self.machine.console.size()
        with self.talking("room on the control channel"):
            job = self.channel.start(
                argv,
                limit_s=limit_s,
                env=_ENVIRONMENT | dict(env or {}),
                cwd=cwd,
                pty=pty,
                timeout_s=self.answer_s,
            )
        job.console_at = console_at
        return job

    def _watch_console(self) -> None:
        if self.first_line_s is None:
            past = time.monotonic() - self._began
            if banner(self.console()):
                self.first_line_s = past
            elif not self._hello and past > _FIRST_LINE_S * self.spec.scale:
                raise _NoFirstLine
        if self.machine.console.over_limit:
            raise _ConsoleFlooded
        if self._cut_at is not None and self._cut_at.search(self.console()):
            raise _PowerCut

    def _open_bulk(self) -> None:
        # Without the driver everything goes over the serial port, which is only slower.
        found = self.run(["sh", "-c", _BULK_FINDER, "sh", qemu.BULK_PORT], timeout_s=10)
        with self.talking("the second port"):
            port = found.text.strip()
            if found.status == 0 and self.channel.use_bulk(port, self.answer_s):
                self.port = port
            else:
                logger.info("the guest has no virtio port, so all data goes over its serial port")

    def _lost(self, what: str) -> GuestLost:
        assert self._verdict is not None
        console = self.machine.console
        words = self.channel.last_words
        return GuestLost(
            self._verdict,
            what,
            console.tail(),
            console.path,
            words,
            end=self.end or End.LOST,
            first_line_s=self.first_line_s,
        )


def check_command(argv: Sequence[str]) -> None:
    """Raise UserError for a command that does not fit into a request to a guest."""
    start_payload(argv, env=_ENVIRONMENT, cwd="/")


def check_detectors(guest: Guest) -> Checked:
    """Ask the detectors whether they are alive, and let kmemleak scan once more.

    Raises GuestLost when the guest does not answer.
    """
    states = {}
    for name, (path, _) in detectors.SAYS_SO.items():
        said = guest.run(["cat", path], timeout_s=20)
        if said.status == 0:
            states[name] = detectors.alive(name, said.text)
    if guest.run(["test", "-e", detectors.KMEMLEAK], timeout_s=5).status != 0:
        return Checked(states)
    scans = guest.run(["sh", "-c", detectors.two_scans(detectors.MIN_AGE_S)], timeout_s=_SCAN_S)
    states["kmemleak"] = scans.status == 0
    return Checked(states, detectors.leaks(guest.read(detectors.KMEMLEAK).decode(errors="replace")))
