#!/usr/bin/python3
"""Measure how long psutil takes to find what /proc/cplayground shows.

Run in a guest: psutil_files.py PASSES PID...  Prints "pass <ns> <lines> <bytes>" for each pass;
the start of the interpreter is not counted.  psutil lists regular files only.  It shows neither
close-on-exec nor shared open files.
"""

import sys
import time

import psutil  # type: ignore[import-untyped]


def show(pids: list[int]) -> str:
    """Return the lines of some processes."""
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
    """Time the passes and print each."""
    passes, pids = int(sys.argv[1]), [int(pid) for pid in sys.argv[2:]]
    show(pids)
    for _ in range(passes):
        began = time.monotonic_ns()
        text = show(pids)
        print("pass", time.monotonic_ns() - began, text.count("\n"), len(text))


main()
