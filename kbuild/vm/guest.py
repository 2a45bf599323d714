"""A booted guest: commands in, results out, and a verdict at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from kbuild.errors import KbuildError
from kbuild.vm.outcome import Outcome, Verdict
from kbuild.vm.spec import GuestSpec


class GuestLost(KbuildError):  # noqa: N818 - the name says what happened, as in GuestResult
    """The guest is dead or does not answer; ``outcome`` says how, ``console`` holds the tail."""

    kind = "guest"

    def __init__(self, outcome: Outcome, what: str, console: str) -> None:
        self.outcome = outcome
        self.console = console
        self.exit_status = outcome.exit_status
        super().__init__(what, found=console or "nothing on the console")


class GuestCommandError(KbuildError):
    """A command in the guest failed, or did not end in its time."""

    kind = "guest command"


@dataclass(frozen=True)
class GuestResult:
    """What a command in the guest left behind; ``status`` is negative for a signal."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes
    seconds: float

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode(errors="replace")


class Background:
    """A command that runs in the guest while others do."""

    def read_line(self, timeout_s: float) -> bytes:
        """Return the next line of its standard output with its newline, b"" at the end.

        Raises GuestCommandError when no line comes in ``timeout_s`` (unscaled) seconds.
        """
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Give it more standard input."""
        raise NotImplementedError

    def close_stdin(self) -> None:
        """End its standard input."""
        raise NotImplementedError

    def kill(self, signum: int = 9) -> None:
        """Send a signal to its process group."""
        raise NotImplementedError

    def wait(self, timeout_s: float, *, check: bool = False) -> GuestResult:
        """Wait for its end; the result holds what :meth:`read_line` has not taken."""
        raise NotImplementedError


class Guest:
    """A running guest; a context manager that powers it off at its end."""

    spec: GuestSpec
    release: str  # uname -r, as the guest said it

    @classmethod
    def boot(cls, spec: GuestSpec, *, workdir: Path, expected_taint: int = 0) -> Guest:
        """Start QEMU and wait for the agent; raises GuestLost when it does not come up.

        ``workdir`` receives console.log and qemu.log; ``expected_taint`` is the mask of
        taint bits that the guest may have gained when it is judged.
        """
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        raise NotImplementedError

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
        raise NotImplementedError

    def start(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str = "/"
    ) -> Background:
        """Start a command in the background; its standard input stays open."""
        raise NotImplementedError

    def put(self, content: Path | bytes, remote: str, *, mode: int = 0o755) -> None:
        """Write a file in the guest (by rename) from a local file or from bytes."""
        raise NotImplementedError

    def read(self, remote: str, *, timeout_s: float = 10.0) -> bytes:
        """Return what a file in the guest holds, to its end; procfiles too."""
        raise NotImplementedError

    def mark(self, text: str) -> None:
        """Write a line to the guest's kernel log, where a test begins or ends."""
        raise NotImplementedError

    def taint(self) -> int:
        """Return /proc/sys/kernel/tainted."""
        raise NotImplementedError

    def expect_taint(self, mask: int) -> None:
        """Allow these taint bits from now on (a test that loads an unsigned module)."""
        raise NotImplementedError

    def console(self, since: int = 0) -> str:
        """Return the console's text from byte offset ``since`` on."""
        raise NotImplementedError

    def console_size(self) -> int:
        """Return how many bytes the console has: an offset for :meth:`console`."""
        raise NotImplementedError

    @property
    def alive(self) -> bool:
        """Whether the guest may still be used."""
        raise NotImplementedError

    def shutdown(self) -> Verdict:
        """Power the guest off in order and judge it; a second call returns the same verdict."""
        raise NotImplementedError
