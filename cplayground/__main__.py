"""Run cplayground as a program: python3 -m cplayground, and /usr/bin/cplayground."""

from __future__ import annotations

import os
import signal
import sys


def run() -> None:
    """Run the command line of this process, and end it."""
    # A closed pipe and Ctrl-C end it without a word.  An ignored signal stays ignored.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    if (
        sys.stdout is None or sys.stderr is None
    ):  # closed: a file that is opened would take its place
        sys.exit(74)

    from cplayground.cli import main

    status = main(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:  # told already; the interpreter's own flush would fail once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


if __name__ == "__main__":
    run()
