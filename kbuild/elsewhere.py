"""Run a program as on another machine: ``elsewhere.py HOSTNAME UMASK PROGRAM [ARGUMENT…]``.

:mod:`kbuild.reproducing` starts it by unshare(1) in a UTS namespace of its own, so the host keeps
its name.
"""

from __future__ import annotations

import os
import socket
import sys


def main(hostname: str, umask: str, *command: str) -> None:
    """Replace this process with the program."""
    socket.sethostname(hostname)
    os.umask(int(umask, 8))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
