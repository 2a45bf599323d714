"""A terminal in a guest, for a person."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Sequence

from kbuild.errors import UserError
from kbuild.vm.guest import Guest

_SHELL = ("bash", "-i")
_LOOK_EVERY_S = 3600.0  # pump() returns earlier for every key and every byte of output


def check_terminal() -> None:
    """Raise UserError when standard input is no terminal, before a guest is made for it."""
    if not os.isatty(sys.stdin.fileno()):
        raise UserError(
            "an interactive shell needs a terminal",
            hint="give --command to run one command instead",
        )


def interactive(guest: Guest, argv: Sequence[str] = _SHELL) -> int:
    """Attach this terminal to a command in the guest; return the command's status.

    Works over the control channel, so it needs nothing in the guest but its agent.
    Raises UserError when standard input is no terminal, GuestLost when the guest dies.
    """
    check_terminal()
    keyboard = sys.stdin.fileno()
    environment = {"TERM": os.environ.get("TERM", "dumb"), "HISTFILE": "/dev/null"}
    session = guest.start(argv, env=environment, pty=True)
    with _raw_terminal(keyboard), _size_changes() as changed:
        session.resize(*_size())
        while not session.ended:
            data = session.converse(keyboard, _LOOK_EVERY_S)
            if changed:
                changed.clear()
                session.resize(*_size())
            if data.typed:
                session.write(data.typed)
            if data.shown:
                sys.stdout.buffer.write(data.shown)
                sys.stdout.buffer.flush()
    return session.wait(1).status


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
