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
from kbuild.guest.outcome import Outcome
from kbuild.guest.spec import GuestSpec, Snapshot
from kbuild.guest.verdict import Evidence, Verdict, judge

logger = logging.getLogger(__name__)

# Deadlines in seconds of a fast machine; each is multiplied by the guest's scale.
_BOOT_S = 30.0
_ANSWER_S = 5.0  # for the agent to answer anything that takes no time itself
_SCAN_S = 60.0
_POWER_OFF_S = 10.0
_SAVE_S = 20.0
_HELLO_LINES = 4
_TAIL_S = 2.0  # how long QEMU may take to end by itself once its sockets are closed

# What a restored guest gets of the host's random numbers: a ChaCha20 key's worth, twice.
_ENTROPY_BYTES = 64

# Of "info registers -a": a processor, where it is, and whether it waits for an interrupt.
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


class GuestLost(KbuildError):  # noqa: N818 - the name says what happened, as in GuestResult
    """The guest is dead or does not answer; ``outcome`` says how, ``console`` holds the tail.

    ``words`` is the end of what the commands had printed that ran in it.
    """

    kind = "guest"

    def __init__(
        self,
        verdict: Verdict,
        what: str,
        console: str,
        log: Path | None = None,
        words: bytes = b"",
    ) -> None:
        self.verdict = verdict
        self.outcome: Outcome = verdict.outcome
        self.console = console
        self.words = words
        self.exit_status = verdict.outcome.exit_status
        found = console or "nothing on the console"
        if words:
            found += f"\nlast words of the command:\n{words.decode(errors='replace')}"
        super().__init__(f"{what}: {verdict}", found=found, log=log)


class _ConsoleFlooded(Exception):  # noqa: N818 - what happened
    """The console is over its limit."""


class GuestCommandError(KbuildError):
    """A command in the guest failed, or did not end in its time.

    ``result`` is what it left, None for a command that the agent could not start.
    """

    kind = "guest command"
    exit_status = Outcome.FAILED.exit_status

    def __init__(self, what: str, result: GuestResult | None) -> None:
        self.result = result
        said = b"" if result is None else (result.stderr or result.stdout)[-4096:]
        super().__init__(what, found=said.decode(errors="replace").strip() or None)


@dataclass(frozen=True)
class GuestResult:
    """What a command in the guest left behind; ``status`` is negative for a signal."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes
    seconds: float
    oom: str = ""  # the kernel's word of a process that it killed meanwhile, for its memory

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode(errors="replace")


class Background:
    """A command that runs in the guest while others do."""

    def __init__(self, guest: Guest, job: Job, argv: Sequence[str]) -> None:
        self._guest = guest
        self._job = job
        self._argv = tuple(argv)
        self._began = time.monotonic()

    def read_line(self, timeout_s: float) -> bytes:
        """Return the next line of its standard output with its newline, b"" at the end.

        Raises GuestCommandError when no line comes in ``timeout_s`` (unscaled) seconds.
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
        """Give it more standard input."""
        with self._guest.talking("input"):
            self._guest.channel.write(self._job, data, self._guest.answer_s)

    def close_stdin(self) -> None:
        """End its standard input."""
        with self._guest.talking("input"):
            self._guest.channel.close_input(self._job, self._guest.answer_s)

    def kill(self, signum: int = 9) -> None:
        """Send a signal to its process group."""
        with self._guest.talking("a signal"):
            self._guest.channel.signal(self._job, signum, self._guest.answer_s)

    def wait(self, timeout_s: float, *, check: bool = False) -> GuestResult:
        """Wait for its end; the result holds what :meth:`read_line` has not taken.

        Over ``timeout_s`` (unscaled) it is killed and GuestCommandError raised.
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
        """Take what comes, for at most ``timeout_s`` seconds of the host.

        Says whether it has ended, or has written ``until``, which stays to be read.
        """

        def happened() -> bool:
            return self._job.done or (until is not None and until in self._job.stdout)

        with self._guest.talking("a command's output"):
            if not happened():
                self._guest.channel.pump(timeout_s)
        return happened()

    @property
    def running(self) -> bool:
        """Whether it had not ended when something was last taken from it."""
        return not self._job.done

    @property
    def ended(self) -> bool:
        """Whether it has ended and all of its output was taken."""
        return self._job.done and not self._job.stdout and not self._job.stderr

    def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal how large it is (only for one that was started with a pty)."""
        with self._guest.talking("a new size"):
            self._guest.channel.resize(self._job, rows, columns, self._guest.answer_s)

    @property
    def output(self) -> tuple[bytearray, bytearray]:
        """What has come on standard output and error; what is taken is deleted there."""
        return self._job.stdout, self._job.stderr

    def converse(self, keyboard: int | None, timeout_s: float) -> bytes | None:
        """Wait for bytes on ``keyboard`` or for output, whichever comes first.

        Returns what was typed: b"" at the end, None for nothing.  No more is read there than the
        command takes.  After ``timeout_s`` (unscaled) without a byte the agent has to answer a
        ping.
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
        """Take what else has come, at its end or ours."""
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
        return b""  # the terminal is gone


class Guest:
    """A running guest; a context manager that powers it off at its end.

    Used by one thread.  Made by :meth:`boot` or :meth:`restore`.
    """

    def __init__(self, spec: GuestSpec, machine: qemu.Machine, allowed_taint: int) -> None:
        self.spec = spec
        self.machine = machine
        self.channel = Channel(machine.control, machine.bulk, watch=self._watch_console)
        self.release = ""  # uname -r, as the guest said it
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
        # Where the console of a restored guest begins to be its own, and its first word there.
        self._restored_at: int | None = None
        self._restored_mark: str | None = None

    @classmethod
    def boot(cls, spec: GuestSpec, *, workdir: Path, expected_taint: int = 0) -> Guest:
        """Start QEMU and wait for the agent; raises GuestLost when it does not come up,
        InfrastructureError when it is an agent of another protocol.

        ``workdir`` receives console.log and qemu.log; ``expected_taint`` is the mask of
        taint bits that may be set when the guest is judged.
        """
        return cls._booted(spec, qemu.start(spec, workdir), expected_taint)

    @classmethod
    def boot_to_save(cls, snapshot: Snapshot, *, workdir: Path) -> Guest:
        """Boot a guest whose memory and disk lie in ``snapshot``, for :meth:`save`."""
        machine = qemu.start(snapshot.spec, workdir, snapshot, restored=False)
        return cls._booted(snapshot.spec, machine, 0)

    @classmethod
    def _booted(cls, spec: GuestSpec, machine: qemu.Machine, expected_taint: int) -> Guest:
        began = time.monotonic()
        guest = cls(spec, machine, expected_taint)
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
        """Start QEMU with a booted guest; raises as :meth:`boot` does.

        The guest has the host's time and random numbers of its own.  Its console begins
        with that of the snapshot's boot, and is judged as a whole.
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
                "the guest's agent is not the one that this checkout talks to",
                expected=f"protocol {PROTOCOL}",
                found=f"protocol {spoken}",
                hint="the image is of another time: ./inv test makes it anew",
            )
        if processors != str(self.spec.cpus):
            raise InfrastructureError(
                "the guest does not run on all of its processors, and would lose races",
                expected=f"{self.spec.cpus} processors",
                found=f"{processors} online",
                log=self.machine.console.path,
                hint="the agent says on the console why it could not start one",
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

        ``timeout_s`` is for a fast machine: it is multiplied by ``spec.scale``.  Over it,
        the command is killed and GuestCommandError raised; with ``check`` so does a status
        other than 0.  Raises GuestLost when the guest itself is gone.
        """
        limit_s = timeout_s * self.spec.scale
        job = self._start(argv, limit_s=limit_s, env=env, cwd=cwd)
        began = time.monotonic()
        with self.talking(f"the result of {argv[0]}"):
            try:
                if stdin:
                    self.channel.write(job, stdin, limit_s)
                self.channel.close_input(job, self.answer_s)
                # The agent keeps the limit; we only notice when it does not.
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

        After ``timeout_s``, times ``spec.scale``, it is killed; 0: never.
        """
        limit_s = timeout_s * self.spec.scale
        return Background(self, self._start(argv, limit_s=limit_s, env=env, cwd=cwd, pty=pty), argv)

    def put(self, content: Path | bytes, remote: str, *, mode: int = 0o755) -> None:
        """Write a file in the guest (by rename) from a local file or from bytes."""
        data = content if isinstance(content, bytes) else content.read_bytes()
        # a serial port's worth of time for what a port without flow control may need
        timeout_s = 10.0 + len(data) / 100_000
        self.run(["@write", remote, f"{mode:o}"], stdin=data, timeout_s=timeout_s, check=True)

    def read(self, remote: str, *, timeout_s: float = 10.0) -> bytes:
        """Return what a file in the guest holds, to its end; procfiles too."""
        return self.run(["@read", remote], timeout_s=timeout_s, check=True).stdout

    def mark(self, text: str) -> None:
        """Write a line to the guest's kernel log, where a test begins or ends."""
        with self.talking("the mark's echo"):
            self.channel.request(Kind.MARK, text.encode(), self.answer_s)

    def mark_begin(self, name: str) -> None:
        """Mark where ``name`` begins on the console; see console.between_marks."""
        self.mark(mark_line("begin", name))

    def mark_end(self, name: str) -> None:
        """Mark where ``name`` ends."""
        self.mark(mark_line("end", name))

    def taint(self) -> int:
        """Return /proc/sys/kernel/tainted."""
        said = self.read("/proc/sys/kernel/tainted")
        if not said.strip().isdigit():
            raise GuestCommandError(f"the kernel's taint is no number: {said[:80]!r}", None)
        return int(said)

    def spin_agent(self) -> None:
        """Make the agent loop for ever, so that the harness can be seen to notice."""
        self.channel.post(Kind.LOOP, self.answer_s)

    # --- console ----------------------------------------------------------------------

    def console(self, since: int = 0) -> str:
        """Return the console's text from byte offset ``since`` on."""
        return self.machine.console.text(since)

    def reports(self, since: int = 0) -> tuple[triage.Report, ...]:
        """Return what the kernel complained about on the console from ``since`` on."""
        return triage.scan(self.console(since))

    @property
    def heard(self) -> bool:
        """Whether the kernel has spoken on the console; if restored, since then."""
        console = self.console()
        if self._restored_at is None:
            return banner(console) is not None
        # What the boot said proves nothing of a guest that was restored since.
        mark, since = self._restored_mark, self.console(self._restored_at)
        return banner(console) is not None and mark is not None and mark in since

    # --- end --------------------------------------------------------------------------

    def save(self, state: Path) -> None:
        """Write what is not yet in the snapshot that it was booted in, and end QEMU.

        Raises GuestLost, with the verdict, when the kernel has said a thing or has a taint
        that every guest restored from it would have; InfrastructureError when QEMU fails.
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
        """Whether the guest may still be used."""
        return self._verdict is None and self.machine.status is None

    def shutdown(self, *, status: int | None = 0) -> Verdict:
        """Power the guest off in order and judge it; a second call returns the same verdict.

        ``status`` is that of the command for which the guest was booted, if there was one.
        """
        if self._verdict is not None:
            return self._verdict
        with suppress(GuestLost):
            try:
                self._checked = check_detectors(self)
                # The last result frame: the guest works to the end and says how it is.
                self._taint = self.taint()
            except GuestCommandError as error:
                self._unchecked = ": ".join(filter(None, (error.what, error.found)))
            with self.talking("the farewell"):
                answer = self.channel.request(Kind.POWER_OFF, b"", _POWER_OFF_S * self.spec.scale)
                self._farewell = int.from_bytes(answer.payload, "little")
                self.machine.wait(_POWER_OFF_S * self.spec.scale)
        return self._conclude(status)

    def abandon(self) -> Verdict:
        """End QEMU at once, and judge by what was seen: for a guest that nobody can use."""
        return self._conclude(None)

    def _conclude(self, status: int | None = 0) -> Verdict:
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
                )
            )
            self.machine.close()
            self.channel.close()
        return self._verdict

    # --- for Background ---------------------------------------------------------------

    @contextmanager
    def talking(self, what: str) -> Iterator[None]:
        """Turn the channel's end or silence in the block into GuestLost, with the verdict."""
        if self._verdict is not None:
            raise self._lost("the guest is gone already")
        try:
            yield
        except ChannelGarbled as garbled:
            self._garbled = str(garbled)
            self._conclude(None)
            raise self._lost(f"the agent makes no sense while we waited for {what}") from None
        except _ConsoleFlooded:
            self._conclude(None)
            raise self._lost(f"the console is full while we waited for {what}") from None
        except ChannelClosed:
            self._answered = False
            # QEMU closed its sockets: it is about to end by itself, or its end was caused.
            self.machine.wait(_TAIL_S * self.spec.scale)
            self._conclude(None)
            raise self._lost(f"the guest is gone while we waited for {what}") from None
        except ChannelTimeout:
            self._answered = False
            still = self._still_there() + self._where()
            self._conclude(None)
            raise self._lost(f"no sign of {what} in its time; {still}") from None

    def _still_there(self) -> str:
        """Say whether the agent answers a ping, which goes over the serial port."""
        if not self._hello:
            return "the agent never spoke"
        try:
            self.channel.ping(self.answer_s)
        except (ChannelTimeout, ChannelClosed, ChannelGarbled, _ConsoleFlooded):
            return "the agent does not answer a ping either"
        return "the agent itself still answers"

    def _where(self) -> str:
        """Keep the processors' registers beside the console, and say where each one stands."""
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
        """Ping the agent; ChannelTimeout when it is silent too, and not only a command."""
        self.channel.ping(self.answer_s)

    def finish(
        self, job: Job, result: GuestResult, timeout_s: float, *, check: bool
    ) -> GuestResult:
        """Drop a job that has ended and hold its result against what was asked."""
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
        with self.talking("the line to be free"):
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
        if self.machine.console.over_limit:
            raise _ConsoleFlooded

    def _open_bulk(self) -> None:
        # Without the driver everything goes over the serial port: slower, and as good.
        found = self.run(["sh", "-c", _BULK_FINDER, "sh", qemu.BULK_PORT], timeout_s=10)
        with self.talking("the second port"):
            port = found.text.strip()
            if found.status == 0 and self.channel.use_bulk(port, self.answer_s):
                self.port = port
            else:
                logger.info("the guest has no virtio port: its serial port serves for everything")

    def _lost(self, what: str) -> GuestLost:
        assert self._verdict is not None
        console = self.machine.console
        words = self.channel.last_words
        return GuestLost(self._verdict, what, console.tail(), console.path, words)


def check_command(argv: Sequence[str]) -> None:
    """Raise UserError for a command that could not be sent to a guest."""
    start_payload(argv, env=_ENVIRONMENT, cwd="/")


def judge_command(
    spec: GuestSpec,
    argv: Sequence[str],
    *,
    workdir: Path,
    timeout_s: float,
    expected_taint: int = 0,
) -> tuple[GuestResult | None, Verdict]:
    """Boot a guest for one command and judge both; the result is None if none came.

    Raises InfrastructureError when QEMU itself does not start.
    """
    try:
        guest = Guest.boot(spec, workdir=workdir, expected_taint=expected_taint)
        try:
            result: GuestResult | None = guest.run(argv, timeout_s=timeout_s)
        except GuestCommandError as error:
            result = error.result
        return result, guest.shutdown(status=None if result is None else result.status)
    except GuestLost as lost:
        return None, lost.verdict


def check_detectors(guest: Guest) -> Checked:
    """Ask the detectors whether they are alive, and let kmemleak look once more.

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
