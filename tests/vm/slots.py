"""Slots for guests that tests use one after another, and what each test must leave unchanged."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kbuild.guest.guest import Guest
from kbuild.guest.outcome import MODULE_TAINT, taint_letters

# KUnit marks a kernel that has run tests (N).
TAINT = MODULE_TAINT | 1 << 18

# Processes that were killed at a test's end need a moment to go.
_SETTLE_S = 3.0
_PAUSE_S = 0.1
# Only builtins of the shell: each program costs as much time as the whole script.  Kernel threads
# have an empty cmdline.
_STATE = """
cd /proc
for file in mounts sys/kernel/pid_max sys/kernel/tainted /sys/devices/system/cpu/online; do
    while read -r line; do echo "$file: $line"; done <$file
done
for name in cplayground peek misbehave format_test; do
    [ ! -e /sys/module/$name ] || echo "module: $name"
done
for group in /sys/fs/cgroup/*/; do echo "cgroup: $group"; done
for pid in [0-9]*; do
    words=
    read -r words <$pid/cmdline
    [ -z "$words" ] || [ $pid = $$ ] || echo "process: $words"
done 2>/dev/null
"""


def state(guest: Guest) -> list[str]:
    """Return what a test may change for a moment only: modules, processes, mounts, cgroups, taint.

    The taint of our modules is not in it: the first test that loads one leaves it.
    """
    lines = guest.run(["sh", "-c", _STATE], timeout_s=20, check=True).text.splitlines()
    name, taint = "sys/kernel/tainted: ", ""
    for line in lines:
        if line.startswith(name):
            taint = taint_letters(int(line.removeprefix(name)) & ~TAINT)
    return [*(line for line in lines if not line.startswith(name)), f"taint: {taint}"]


@dataclass
class Slot:
    """A guest that is started when a test needs one, and replaced after it has died.

    ``start`` gives a new guest whose console lies in the directory that it is passed.
    """

    start: Callable[[Path], Guest]
    workdir: Path
    guest: Guest | None = None
    starts: int = 0
    tests: list[str] = field(default_factory=list)  # those that used the guest
    failures: list[str] = field(default_factory=list)  # verdicts of guests that did not pass
    _before: list[str] = field(default_factory=list)

    def get(self, test: str) -> Guest:
        """Return a living guest for a test."""
        if self.guest is None or not self.guest.alive:
            self.close()
            self.starts += 1
            self.guest = self.start(self.workdir / str(self.starts))
            self._before = state(self.guest)
        self.tests.append(test)
        return self.guest

    def changes(self) -> str:
        """Return how the guest's state differs from that at its start, or ""."""
        assert self.guest is not None
        deadline = time.monotonic() + _SETTLE_S * self.guest.spec.scale
        while (now := state(self.guest)) != self._before and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
        lines = difflib.unified_diff(self._before, now, "before", "after", n=0, lineterm="")
        return "\n".join(lines)

    def close(self) -> None:
        """Power the guest off, and keep its verdict if it did not pass."""
        if self.guest is not None:
            verdict = self.guest.shutdown()
            if not verdict.passed:
                console = self.guest.machine.console.path
                self.failures.append(
                    f"{verdict}\n  console: {console}\n  tests: {' '.join(self.tests)}"
                )
            self.guest = None
            self.tests.clear()
