"""Run Python programs in PID namespaces, for tests of what looks at processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cplayground.snapshot import Snapshot
from cplayground.walking import survey

ROOT = os.geteuid() == 0
OWN = () if ROOT else ("--user", "--map-root-user")
UNSHARE = ("unshare", *OWN, "--fork", "--pid", "--kill-child")

# A program in a namespace: what all of them need, and the way it tells that it rests.
BEGIN = """
import ctypes, fcntl, os, signal, socket, sys, threading
libc = ctypes.CDLL(None)
mark = os.open("mark", os.O_RDWR | os.O_CREAT, 0o600)  # all of these processes have it
CLONE_NEWPID = 0x20000000
def rest():
    print("ready", flush=True)
    while True:
        signal.pause()
def child(run):
    done, doing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(done)
        run(*([doing] if run.__code__.co_argcount else []))
        os.write(doing, b"x"), os.close(doing)
        while True:
            signal.pause()
    os.close(doing), os.read(done, 1), os.close(done)  # until it rests
    return pid
"""


@dataclass
class Inside:
    """Programs that rest in a namespace.  ``process`` is the unshare(1) outside of it."""

    process: subprocess.Popen[bytes]
    mark: bytes

    def walk(self) -> Snapshot:
        """Return what the walk shows of the programs: other tests have namespaces too."""
        snapshot, _ = survey()
        ours = {
            process.namespace
            for process in snapshot.processes
            if any(one.path == self.mark for one in process.descriptors)
        }
        assert ours
        return replace(
            snapshot,
            processes=tuple(p for p in snapshot.processes if p.namespace in ours),
        )

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()

    def wait_for(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{word}\n".encode()


@contextlib.contextmanager
def inside(place: Path, program: str, *before: str) -> Iterator[Inside]:
    """Run a program as the first process of a PID namespace, until it rests."""
    with subprocess.Popen(
        [*UNSHARE, *before, sys.executable, "-c", BEGIN + textwrap.dedent(program)],
        cwd=place,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        programs = Inside(process, bytes(place / "mark"))
        try:
            programs.wait_for("ready")
            yield programs
        finally:
            process.kill()
