"""One guest for a person: a shell in it, or one command with this process's own streams."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kbuild.core import errors
from kbuild.core.errors import KbuildError, UserError
from kbuild.core.model import Settings
from kbuild.core.run import describe_status
from kbuild.guest import image, qemu
from kbuild.guest.guest import Background, Guest, GuestLost, GuestResult, check_command
from kbuild.guest.image import GuestImage
from kbuild.guest.outcome import MODULE_TAINT, Outcome
from kbuild.guest.spec import GuestSpec, suited
from kbuild.guest.verdict import Verdict

logger = logging.getLogger(__name__)

_SHELL = ("bash", "-i")
_COMMAND_TIMEOUT_S = 3600.0
# The agent is pinged after this long without a byte.
_SILENCE_S = 60.0
_STDOUT, _STDERR = 1, 2
_BY_SIGNAL = 128
# Statuses that ./inv itself ends with: docs/reference/exit-status.md.
_TAKEN = frozenset(
    {
        errors.UPDATE_STATUS,
        *(outcome.exit_status for outcome in Outcome if outcome is not Outcome.PASSED),
        *(
            kind.exit_status
            for kind in vars(errors).values()
            if isinstance(kind, type) and issubclass(kind, KbuildError)
        ),
        # SIGPIPE is left out: 141 means the same for a command as for ./inv.
        *(_BY_SIGNAL + one for one in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)),
    }
)


class GuestJudgedError(KbuildError):
    """The command ran, but its guest did not pass."""

    kind = "guest"

    def __init__(self, verdict: Verdict, console: str) -> None:
        self.exit_status = verdict.outcome.exit_status
        super().__init__(f"the guest: {verdict}", hint=f"read its console: {console}")


class CommandFailedError(KbuildError):
    """The command failed with a status that ./inv uses for something else."""

    kind = "guest command"
    exit_status = Outcome.FAILED.exit_status


def run(
    settings: Settings,
    made: GuestImage,
    *,
    variant: str,
    command: str | None,
    stock: bool,
    accel: str | None,
) -> int:
    """Boot a guest, open a shell in it or run ``command`` there, and judge the guest.

    ``variant`` is that of our kernel in the image.  Returns :func:`own_status` of the command, or
    0 after a shell.  Raises GuestJudgedError, with the outcome's own status, when the guest did
    not pass.
    """
    with judged(settings, made, variant=variant, stock=stock, accel=accel) as guest:
        if command is None:
            logger.info("a shell in %s; leave it with 'exit'", guest.release)
            interactive(guest)
            return 0
        done = stream(guest, _argv(command), timeout_s=_COMMAND_TIMEOUT_S)
        if done.oom:
            logger.warning("the guest ran out of memory: %s", done.oom)
    return own_status(done)


@contextlib.contextmanager
def judged(
    settings: Settings, made: GuestImage, *, variant: str, stock: bool, accel: str | None
) -> Iterator[Guest]:
    """Boot a guest with Debian's kernel (``stock``) or ours, and judge it after the block.

    Raises GuestJudgedError, with the outcome's own status, when the guest did not pass.
    """
    kernel = next(one for one in made.kernels if image.is_ours(one) is not stock)
    choice = qemu.choose_accelerator(settings.cache, kernel, accel)
    spec = GuestSpec(kernel=kernel, disk=made.disk, accelerator=choice.accelerator)
    if not stock:
        spec = suited(spec, variant)
    guest = boot(spec, settings.build / "logs" / "vm")
    try:
        yield guest
    finally:
        verdict = guest.shutdown(status=0)
    if not verdict.passed:
        raise GuestJudgedError(verdict, str(guest.machine.console.path))


def check(command: str) -> None:
    """Raise UserError for a command that is too long for a guest; needs no guest."""
    check_command(_argv(command))


def _argv(command: str) -> list[str]:
    return ["sh", "-c", command]


def own_status(done: GuestResult) -> int:
    """Return the status of a command that has ended, 128 plus the number for a signal.

    Raises CommandFailedError for a status that ``./inv`` itself may end with, because it would
    have two meanings.
    """
    status = done.status if done.status >= 0 else _BY_SIGNAL - done.status
    if status in _TAKEN:
        raise CommandFailedError(
            f"the command in the guest failed: {describe_status(done.status)}",
            hint=f"let the command print its result: an exit status of {status} from ./inv has"
            " another meaning",
        )
    return status


def boot(spec: GuestSpec, logs: Path) -> Guest:
    """Boot a guest with a directory of its own below ``logs``, next to those of other shells."""
    name, number = "session", 1
    while True:
        try:
            return Guest.boot(spec, workdir=logs / name, expected_taint=MODULE_TAINT)
        except qemu.WorkdirInUseError:
            number += 1
            name = f"session-{number}"


def check_terminal() -> None:
    """Raise UserError when standard input is no terminal; needs no guest."""
    if not os.isatty(sys.stdin.fileno()):
        raise UserError(
            "an interactive shell needs a terminal",
            hint="use --command to run one command instead",
        )


def interactive(guest: Guest, argv: Sequence[str] = _SHELL) -> None:
    """Attach this terminal to a command in the guest until the command ends.

    Works over the control channel, so the guest needs only its agent.
    Raises UserError when standard input is no terminal, GuestLost when the guest dies.
    """
    check_terminal()
    keyboard = sys.stdin.fileno()
    environment = {"TERM": os.environ.get("TERM", "dumb"), "HISTFILE": "/dev/null"}
    session = guest.start(argv, env=environment, pty=True)
    with _raw_terminal(keyboard), _size_changes() as changed:

        def follow_size() -> None:
            if changed:
                changed.clear()
                session.resize(*_size())

        session.resize(*_size())
        _attach(session, keyboard, follow_size, lambda: session.kill(signal.SIGHUP))


def stream(guest: Guest, argv: Sequence[str], *, timeout_s: float) -> GuestResult:
    """Run a command in the guest with our standard input, output and error, and keep no output.

    When the reader of our output goes away, the command gets SIGPIPE, as it would on this host.
    Raises GuestCommandError for a command that is over ``timeout_s``, GuestLost when the guest
    dies.
    """
    command = guest.start(argv, timeout_s=timeout_s)
    keyboard = None if sys.stdin is None else sys.stdin.fileno()
    if keyboard is None:
        command.close_stdin()
    _attach(command, keyboard, lambda: None, command.close_stdin)
    return command.wait(1)


def _attach(
    command: Background,
    keyboard: int | None,
    each_time: Callable[[], None],
    at_the_end: Callable[[], None],
) -> None:
    """Pass bytes both ways until the command ends; ``at_the_end`` is called when our input ends."""
    sys.stdout.flush()
    try:
        while not command.ended:
            typed = command.converse(keyboard, _SILENCE_S)
            each_time()
            if typed:
                command.write(typed)
            elif typed is not None:
                keyboard = None
                at_the_end()
            _show(command)
    except (GuestLost, KeyboardInterrupt):
        command.take_rest()
        _show(command)
        raise


def _show(command: Background) -> None:
    for descriptor, waiting in zip((_STDOUT, _STDERR), command.output, strict=True):
        while waiting:
            try:
                written = os.write(descriptor, waiting)
            except BrokenPipeError:
                waiting.clear()
                if command.running:
                    with contextlib.suppress(GuestLost):
                        command.kill(signal.SIGPIPE)
            else:
                del waiting[:written]


def _size() -> tuple[int, int]:
    columns, rows = shutil.get_terminal_size()
    return rows, columns


@contextlib.contextmanager
def _raw_terminal(descriptor: int) -> Iterator[None]:
    before = termios.tcgetattr(descriptor)
    try:
        # TCSADRAIN keeps what was typed ahead.
        tty.setraw(descriptor, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _size_changes() -> Iterator[list[int]]:
    changed: list[int] = []
    before = signal.signal(signal.SIGWINCH, lambda signum, _: changed.append(signum))
    try:
        yield changed
    finally:
        signal.signal(signal.SIGWINCH, before)
