"""Make rare failures happen: of allocations, of copies to user space, and ends of readers.

Failures are injected by count (fail-nth), so each has a number and the last one is known.  The
kernel counts its injections and prints their places.  A run fails if nothing was injected, or
nothing on the module's path.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest

from kbuild.core.model import BACKENDS, MODULE, PROCFILE
from kbuild.guest.guest import Guest
from kbuild.guest.programs import PLACE
from kbuild.lab.setup import Lab
from tests.lab import leaks
from tests.lab.conftest import MODULE_FILE

PROGRAMS = ("faults", "topology", "counts")

_DEBUGFS = "/sys/kernel/debug"
ENOMEM, EFAULT, EBUSY = 12, 14, 16
# The load path of a debug kernel has some 300 allocations and copies.
_LEAST_LOAD_FAILURES = 100
_SAMPLE_STEP = 7
_KINDS = ("failslab", "fail_page_alloc", "fail_usercopy")
# A limit that is never reached; the kernel subtracts each injection from it.
_TIMES = 1_000_000


@pytest.fixture
def injecting(guest: Guest) -> Guest:
    """The guest with failures of every kind of allocation enabled and printed on the console."""
    for name, value in (
        ("failslab/ignore-gfp-wait", "N"),
        ("fail_page_alloc/ignore-gfp-wait", "N"),
        ("fail_page_alloc/ignore-gfp-highmem", "N"),
        ("fail_page_alloc/min-order", "0"),
        *((f"{kind}/verbose", "2") for kind in _KINDS),
        *((f"{kind}/times", str(_TIMES)) for kind in _KINDS),
    ):
        script = 'echo "$1" >"$2"'
        guest.run(["sh", "-c", script, "sh", value, f"{_DEBUGFS}/{name}"], timeout_s=5, check=True)
    return guest


def injections(guest: Guest) -> dict[str, int]:
    """Return the numbers of failures of each kind that were injected in this test."""
    return {
        kind: _TIMES - int(guest.read(f"{_DEBUGFS}/{kind}/times").decode(), 0) for kind in _KINDS
    }


@contextlib.contextmanager
def quiet_listing(guest: Guest, backend: str) -> Iterator[None]:
    """Load the module and hold processes still for it to show; undo both at the end."""
    guest.run(["insmod", MODULE_FILE, f"backend={backend}"], timeout_s=20, check=True)
    program = guest.start([f"{PLACE}/topology"], cwd="/tmp")
    try:
        while (line := program.read_line(60)) != b"ready\n":
            assert line.startswith(b"container "), line
        yield
    finally:
        # also after a failure, for the next tests in this guest
        program.close_stdin()
        program.wait(60)
        guest.run(["rmmod", MODULE], timeout_s=20, check=True)


def failures(text: str) -> list[tuple[int, int, str]]:
    """Parse the output of faults.c: each failure's number, errno, and the place that saw it."""
    *lines, end = text.splitlines()
    found = []
    for line in lines:
        number, error, where = line.split()
        found.append((int(number), int(error), where))
    noticed = sum(1 for _, error, _ in found if error)
    assert end == f"end {len(found)} {noticed}"
    return found


def injected(console: str) -> dict[str, list[str]]:
    """Return the stacks of the failures on a console, by the kind of failure.

    An allocation with __GFP_NOWARN fails without a message.
    """
    stacks: dict[str, list[str]] = {}
    for part in console.split("FAULT_INJECTION: forcing a failure.")[1:]:
        name = re.search(r"name (\w+), interval", part)
        assert name, part[:200]
        stacks.setdefault(name[1], []).append(part.partition("</TASK>")[0])
    return stacks


def in_function(stacks: list[str], function: str) -> int:
    return sum(re.search(rf" {function}\+0x[^\n]*\[{MODULE}\]", one) is not None for one in stacks)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_failure_on_the_load_path(
    injecting: Guest, lab: Lab, whole: bool, backend: str
) -> None:
    """The load fails with an errno or succeeds, and the next load is not affected."""
    step = 1 if whole else _SAMPLE_STEP
    argv = [f"{PLACE}/faults", "load", MODULE_FILE, str(step), f"backend={backend}"]
    since = injecting.machine.console.size()
    with leaks.none(injecting, lab):
        done = injecting.run(argv, timeout_s=120, check=True)
    found = failures(done.text)
    print(done.text.splitlines()[-1])
    numbers = [number for number, _, _ in found]
    # Beyond these, loads differ in some calls, so not every number is met.
    steady = [*range(1, _LEAST_LOAD_FAILURES, step)]
    assert numbers[: len(steady)] == steady
    # EBUSY: proc_create() has failed, a call of the module itself.
    assert {error for _, error, _ in found} >= {0, ENOMEM, EBUSY}
    counted = injections(injecting)
    print(counted)
    assert sum(counted.values()) >= len(found)
    assert counted["failslab"] > 0
    stacks = injected(injecting.console(since))
    # the module loader may show another name of the function
    assert in_function(stacks["failslab"], "(?:cpg_init|init_module)") > 0
    if whole:
        assert min(counted.values()) > 0


@pytest.mark.parametrize("way", ["read", "pread"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_failure_on_the_read_path(
    injecting: Guest, lab: Lab, whole: bool, backend: str, way: str
) -> None:
    """Open or one read fails with an errno, and afterwards the listing goes on where it was.

    faults.c compares each byte with the earlier listing.
    """
    passes = 20 if whole else 4
    argv = [f"{PLACE}/faults", way, PROCFILE, "4096", str(passes)]
    since = injecting.machine.console.size()
    with leaks.none(injecting, lab), quiet_listing(injecting, backend):
        done = injecting.run(argv, timeout_s=60 * passes, check=True)
    found = failures(done.text)
    print(done.text.splitlines()[-1])
    assert sum(number == 1 for number, _, _ in found) == passes
    seen = {(where, error) for _, error, where in found if error}
    assert ("open", ENOMEM) in seen
    assert ("read", EFAULT) in seen
    assert {error for _, error in seen} == {ENOMEM, EFAULT}
    counted = injections(injecting)
    print(counted)
    assert sum(counted.values()) >= len(found)
    stacks = injected(injecting.console(since))
    ours = [one for one in stacks["failslab"] if in_function([one], "cpg_open")]
    assert any(" __seq_open_private+" in one and " seq_open+" not in one for one in ours)
    assert any(" seq_open+" in one for one in ours)
    # A listing of more than 64 KiB in steps of 4 KiB.
    assert sum("seq_read_iter" in one for one in stacks["fail_usercopy"]) >= 16 * passes
    # The module allocates nothing between open and close, so no read runs out of memory.
    assert ("read", ENOMEM) not in seen


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_that_is_not_there(guest: Guest, lab: Lab, backend: str) -> None:
    """A read gives EFAULT, or the part that fits; the reader gets every byte exactly once."""
    with leaks.none(guest, lab), quiet_listing(guest, backend):
        done = guest.run([f"{PLACE}/faults", "copy", PROCFILE], timeout_s=60, check=True)
    found = failures(done.text)
    assert {error for _, error, _ in found} == {EFAULT}
    assert {where for _, _, where in found} == {"copy", "nowhere"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_readers_killed_at_every_stage(guest: Guest, lab: Lab, whole: bool, backend: str) -> None:
    times = 200 if whole else 20
    with leaks.none(guest, lab), quiet_listing(guest, backend):
        argv = [f"{PLACE}/faults", "kill", PROCFILE, str(times)]
        done = guest.run(argv, timeout_s=times * 2, check=True)
    _, killed, inside = done.text.split()
    print(done.text)
    # when opened, begun, half-way and at the end, and anywhere
    assert int(killed) == 5 * times
    assert int(inside) > 0
