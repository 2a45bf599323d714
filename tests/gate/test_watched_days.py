"""The whole story of unattended watching with a signed loopback archive, and a walk of its own."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.unit import simulated, watched_days
from tests.unit.mounts import UNSHARE

# The other parts take minutes.
_QUICK = ("kernels",)


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(one, marks=() if one in _QUICK else pytest.mark.long)
        for one in watched_days.PARTS
    ],
)
def test_days_of_watching(part: str, tmp_path: Path) -> None:
    assert not simulated.lacking()
    no_disk = subprocess.run([*UNSHARE, "true"], capture_output=True).returncode != 0
    if part == "disk" and no_disk:
        pytest.skip("this machine gives no mount namespace")
    chapters = watched_days.names(part)
    assert len(watched_days.run(tmp_path, chapters)) >= len(chapters)


@pytest.mark.long
def test_a_walk(tmp_path: Path) -> None:
    seed = time.time_ns() % 100_000
    print(f"seed {seed}")
    assert len(watched_days.run(tmp_path, ["--walk", "10", "--seed", str(seed)])) == 10
