"""Each way to reach file tables: which one is used, and what it does to those observed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from kbuild.programs import PLACE
from kbuild.vm import image
from kbuild.vm.guest import Guest
from tests.vm.module import (
    FILE,
    MODULE,
    backends,
    compare,
    kernel_log,
    load,
    loaded_with,
    topology,
    unload,
    without_ids,
)


def test_says_what_it_is(loaded: Guest, request: pytest.FixtureRequest) -> None:
    expected = ["export", "stock"] if image.is_ours(loaded.spec.kernel) else ["stock"]
    assert backends(loaded) == expected
    parameter = loaded.read(f"/sys/module/{MODULE}/parameters/backend")
    assert parameter.decode().strip() == expected[0]
    version = (request.config.rootpath / "kmod" / "VERSION").read_text().strip()
    assert f"{MODULE}: version {version}, {FILE}, backend {expected[0]}" in kernel_log(loaded)


def test_each_backend_or_a_clear_refusal(armed: Guest) -> None:
    """All that are built in give the same bytes; one that is not says so."""
    texts = {}
    with topology(armed):
        for backend in backends(armed):
            load(armed, f"backend={backend}")
            texts[backend] = without_ids(armed.read(FILE))
            compare(armed)
            unload(armed)
        if "export" not in texts:
            before = len(kernel_log(armed))
            refused = armed.run(["modprobe", MODULE, "backend=export"], timeout_s=20)
            assert refused.status != 0
            assert "backend=export is not built in" in kernel_log(armed)[before:]
    assert len(set(texts.values())) == 1
    assert len(texts) == (2 if image.is_ours(armed.spec.kernel) else 1)


# What it does to those observed.

TIMES = 100
READERS = 1
DESCRIPTORS = 200  # of the program, beside a few


@dataclass(frozen=True)
class Exposure:
    """What TIMES execs and TIMES ends of a process that is read all the time came to."""

    readers: str  # a backend, or what else they read; "" for none
    locks_lost: int
    ends_late: int  # the process was waited for, and its pipe had no end of file yet
    ends_median_us: int  # how much later that came
    ends_worst_us: int
    listings: int  # that the readers have taken meanwhile


def expose(guest: Guest, readers: str, file: str) -> Exposure:
    """Run exposure.c; see there what it does and prints."""

    def run(what: str) -> list[int]:
        numbers = (str(number) for number in (TIMES, DESCRIPTORS, READERS))
        argv = [f"{PLACE}/exposure", file or "-", what, *numbers]
        result = guest.run(argv, timeout_s=120, cwd="/tmp", check=True)
        done, *figures = (int(word) for word in result.text.split())
        assert done == TIMES
        return figures

    lost, listings = run("locks")
    late, more, median, worst = run("ends")
    return Exposure(readers, lost, late, median, worst, listings + more)


def test_what_being_read_does_to_a_program(armed: Guest) -> None:
    """The original held a table while it formatted it: a program that called execve(2) then
    lost its POSIX locks, and ends of file came late (5).  The stock backend takes no lock
    away; what is left of it with the other one is told in docs/backends.md."""
    found = [expose(armed, "", ""), expose(armed, "a walk of fdinfo", "/proc")]
    for backend in backends(armed):
        with loaded_with(armed, f"backend={backend}"):
            found.append(expose(armed, backend, FILE))
    print(*found, sep="\n")
    for one in found:
        assert one.listings > TIMES * READERS or not one.readers, one
        assert one.locks_lost == 0 or one.readers == "export", one
    assert found[0].ends_late == 0
