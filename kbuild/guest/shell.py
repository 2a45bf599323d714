"""A terminal in a guest, for a person, and a command there with this process's own streams."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Sequence

from kbuild.core.errors import UserError
from kbuild.guest.guest import Background, Guest, GuestLost, GuestResult

_SHELL = ("bash", "-i")
_STDOUT, _STDERR = 1, 2
# After so long without a byte, the agent is asked whether it is alive.
_SILENCE_S = 60.0


def check_terminal() -> None:
    """Raise UserError when standard input is no terminal, before a guest is made for it."""
    if not os.isatty(sys.stdin.fileno()):
        raise UserError(
            "an interactive shell needs a terminal",
            hint="give --command to run one command instead",
        )


def interactive(guest: Guest, argv: Sequence[str] = _SHELL) -> None:
    """Attach this terminal to a command in the guest, until it ends.

    Works over the control channel, so it needs nothing in the guest but its agent.
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
    """Run a command in the guest with our standard input, output and error; they are not kept.

    Whoever reads our output may go away: the command then gets SIGPIPE, as it would here.
    Raises GuestCommandError for one that is over ``timeout_s``, GuestLost when the guest dies.
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
    """Pass bytes both ways until the command has ended; ``at_the_end`` is that of our input."""
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
        # what was typed ahead is kept
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
