"""Common functions of the module's tests: load it, hold a topology, read and compare the file."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest

from kbuild.core.model import MODULE, PROCFILE
from kbuild.guest.console import mark_line
from kbuild.guest.guest import Guest
from kbuild.guest.programs import PLACE
from kbuild.lab import oracle, procfile
from kbuild.lab.procfile import Process

# A module that prints facts from inside the kernel: kbuild/guest/modules/peek.
PEEK = "/usr/lib/cplayground/{release}/peek.ko"
# KUnit's tests of kmod/format.h: kbuild/guest/modules/format_test.
KUNIT = "/usr/lib/cplayground/{release}/format_test.ko"
# Programs that each guest has below PLACE; see tests/programs.py for their sources.
PROGRAMS = (
    "build_topology",
    "cut_short",
    "flux",
    "lives",
    "moment",
    "mounted",
    "observe",
    "observe_reads",
    "recycle",
    "reloads",
    "topology",
    "traces",
)


@contextlib.contextmanager
def topology(guest: Guest, *scenarios: str) -> Iterator[dict[str, int]]:
    """Hold a topology of processes, and yield the pid of each scenario's first process."""
    program = guest.start([f"{PLACE}/topology", *scenarios], cwd="/tmp")
    inits: dict[str, int] = {}
    try:
        while (line := program.read_line(60)) != b"ready\n":
            words = line.decode().split()
            if words[:1] != ["container"]:
                result = program.wait(10)
                pytest.fail(f"topology: {line!r} {result.stdout!r} {result.stderr!r}")
            inits[words[1]] = int(words[2])
        yield inits
    finally:
        program.close_stdin()
        program.wait(60)


def listing(guest: Guest) -> tuple[Process, ...]:
    return procfile.parse(guest.read(PROCFILE))


def compare(guest: Guest) -> tuple[Process, ...]:
    """Check the file against /proc and kcmp(2), and return its content."""
    shown = listing(guest)
    seen = guest.run([f"{PLACE}/observe"], timeout_s=60, check=True).stdout
    found = oracle.differences(shown, oracle.parse(seen))
    assert not found, "\n".join(found[:40])
    return shown


def of_container(shown: tuple[Process, ...], init: int) -> list[Process]:
    """Return the processes of the namespace whose first process is ``init``."""
    (namespace,) = {process.namespace for process in shown if process.pid == init}
    return [process for process in shown if process.namespace == namespace]


def load(guest: Guest, *parameters: str) -> None:
    guest.run(["modprobe", MODULE, *parameters], timeout_s=20, check=True)


def unload(guest: Guest) -> None:
    guest.run(["rmmod", MODULE], timeout_s=20, check=True)


def kernel_log(guest: Guest) -> str:
    """Return the kernel's log since the running test began."""
    text = guest.run(["dmesg"], timeout_s=10, check=True).text
    return text.rpartition(mark_line("begin", ""))[2]


def without_ids(text: bytes) -> bytes:
    """Replace the ids, which differ from load to load, by numbers in order of appearance."""
    known: dict[bytes, bytes] = {}
    return re.sub(
        rb"(?<![^\t\n])[0-9a-f]{64}(?![^\t\n])",
        lambda match: known.setdefault(match[0], b"id%d" % len(known)),
        text,
    )


@contextlib.contextmanager
def loaded_with(guest: Guest, *parameters: str) -> Iterator[None]:
    """Load the module with parameters for the block."""
    load(guest, *parameters)
    try:
        yield
    finally:
        if guest.alive:
            unload(guest)


def backends(guest: Guest) -> list[str]:
    """Return the built-in backends, the default first."""
    return guest.run(["modinfo", "-F", "backends", MODULE], timeout_s=10, check=True).text.split()


def module_file(guest: Guest) -> str:
    """Return the path of the installed module, for insmod(8)."""
    return guest.run(["modinfo", "-n", MODULE], timeout_s=10, check=True).text.strip()
