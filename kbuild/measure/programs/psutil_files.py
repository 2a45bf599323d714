#!/usr/bin/python3
"""Find out with psutil what /proc/cplayground shows, and say how long that took.

Run in a guest: psutil_files.py PASSES PID...  Prints "pass <ns> <lines> <bytes>" for each;
the interpreter's start is not counted.  psutil gives regular files only, and neither
close-on-exec nor which descriptors share an open file.
"""

import sys
import time

import psutil  # type: ignore[import-untyped]


def show(pids: list[int]) -> str:
    """Return the lines of those processes."""
    lines = []
    for pid in pids:
        process = psutil.Process(pid)
        with process.oneshot():
            lines.append(f"{pid}\t{process.ppid()}\t{process.name()}")
        for file in process.open_files():
            lines.append(f"{file.fd}\t{file.position}\t{file.flags:#o}\t{file.path}")
        lines.append("")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do as the arguments say."""
    passes, pids = int(sys.argv[1]), [int(pid) for pid in sys.argv[2:]]
    show(pids)
    for _ in range(passes):
        began = time.monotonic_ns()
        text = show(pids)
        print("pass", time.monotonic_ns() - began, text.count("\n"), len(text))


main()
