"""While processes change, each record is one that was true at some moment."""

from __future__ import annotations

import random

import pytest

from kbuild.core.model import PROCFILE
from kbuild.guest.guest import Guest
from kbuild.guest.programs import PLACE
from kbuild.lab import procfile
from tests import flux
from tests.vm.module import backends, loaded_with

PROGRAM = "flux"
READINGS = 250
# So few pids that each is used again within a fraction of a second.
PID_MAX = 700


def test_each_record_is_of_some_moment(guest: Guest, request: pytest.FixtureRequest) -> None:
    """The invariants of the reference hold on each backend, under fork, exec, exit and dup."""
    number: int = request.config.getoption("topology_seed") or random.randrange(1 << 32)
    before = guest.read("/proc/sys/kernel/pid_max").decode().strip()
    guest.run(["sysctl", "-qw", f"kernel.pid_max={PID_MAX}"], timeout_s=5, check=True)
    try:
        for backend in backends(guest):
            with loaded_with(guest, f"backend={backend}", "fields=extended"):
                check_readings(guest, backend, number)
            number += 1
    finally:
        if guest.alive:
            guest.run(["sysctl", "-qw", f"kernel.pid_max={before}"], timeout_s=5, check=True)


def check_readings(guest: Guest, backend: str, number: int) -> None:
    """Read while processes change, and check each reading against the invariants."""
    place = f"/tmp/flux.{backend}"
    command = [f"{PLACE}/{PROGRAM}", place, PROCFILE, str(READINGS), str(number)]
    result = guest.run(command, timeout_s=60, check=True)
    read = flux.parse(result.stdout)
    listings = [procfile.parse(text, extended=True) for text in read.readings]
    count = flux.summary(listings)
    print(f"backend {backend}, --topology-seed {number}: {dict(count)}, in {result.seconds:.1f} s")
    found = [
        f"reading {n}: {line}"
        for n, listing in enumerate(listings)
        for line in flux.violations(listing, read.firsts, place.encode())
    ]
    assert not found, f"{len(found)} (seed {number}):\n" + "\n".join(found[:40])
    # The check would prove nothing if little changed or if no mistake was possible.
    assert count["readings"] == READINGS
    assert count["records"] >= 5 * READINGS
    assert count["descriptors"] >= 50 * READINGS
    assert count["changes"] >= READINGS // 10
    assert count["processes"] >= 50
    assert count["reused pids"] >= 10
    assert count["zombies"] >= 10
    assert read.workers > flux.CONTAINERS
    assert read.hosted >= 100
