"""The module is unloaded while its file is in use, in all orders and concurrently."""

from __future__ import annotations

import random

import pytest

from kbuild.core.model import PROCFILE
from kbuild.guest.guest import Guest
from kbuild.guest.programs import PLACE
from kbuild.lab.setup import Lab
from tests.lab import leaks
from tests.lab.conftest import MODULE_FILE

PROGRAMS = ("unload", "counts")

# Two readers open, read and close; an unloading, and later a loading, come anywhere between.
# There are 8! / (3! 3! 2!) orders, of which half remain because the readers are alike.
ORDERS = 280
CYCLES = 500
SAMPLE = 25

# For a fast machine: more than an unloading takes with all checks of a debug kernel.
_CYCLE_S = 2.0


def seconds(cycles: int) -> float:
    return 10 + cycles * _CYCLE_S


@pytest.mark.parametrize("backend", ["export", "stock"])
def test_in_all_orders(guest: Guest, lab: Lab, whole: bool, backend: str) -> None:
    count = ORDERS if whole else SAMPLE
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    argv = [f"{PLACE}/unload", "orders", PROCFILE, MODULE_FILE, str(count), str(seed)]
    with leaks.none(guest, lab):
        done = guest.run([*argv, f"backend={backend}"], timeout_s=seconds(2 * count), check=True)
    unloadings, reads, gone, absent = (int(word) for word in done.text.split())
    print(done.text)
    # each order unloads once in its course, and once at its end
    assert unloadings == 2 * count
    assert reads > 0
    assert gone > 0
    assert absent > 0


@pytest.mark.parametrize("backend", ["export", "stock"])
def test_at_once(guest: Guest, lab: Lab, whole: bool, backend: str) -> None:
    cycles = CYCLES if whole else SAMPLE
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    argv = [f"{PLACE}/unload", "race", PROCFILE, MODULE_FILE, str(cycles), str(seed)]
    with leaks.none(guest, lab):
        done = guest.run([*argv, f"backend={backend}"], timeout_s=seconds(cycles), check=True)
    unloadings, reads, gone, absent = (int(word) for word in done.text.split())
    print(done.text)
    assert unloadings == cycles
    assert reads > cycles
    # some readers had the file open at the unloading, others were about to open it
    assert gone > 0
    assert absent >= cycles
