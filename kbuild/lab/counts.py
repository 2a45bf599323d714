"""Compare counts of a guest's kernel objects, to find leaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PROGRAM = "counts"

# Growth that is not a leak of the module.  The agent's pipes to a command that has just ended,
# and its process, may be counted only the second time.  Open files are a sum of per-CPU values
# that may be old, and all of the kernel uses kmalloc().
_TOLERANCE = {"struct file": 6, "open files": 64, "kmalloc": 64}
_TOLERANCE_OF_OTHERS = 2


@dataclass(frozen=True)
class Counts:
    """Numbers of objects by kind: those of slab caches, those of the module, open files."""

    values: Mapping[str, int]

    @property
    def exact(self) -> bool:
        """Tell whether the kernel counts the objects of its slab caches."""
        return "struct file" in self.values


def parse(text: str) -> Counts:
    """Parse the output of counts.c; raises ValueError if it is cut off or malformed."""
    *lines, last = text.removesuffix("\n").split("\n")
    if last != f"end {len(lines)}":
        raise ValueError(f"the output of counts is cut off: {last!r} after {len(lines)} lines")
    values = {}
    for line in lines:
        name, _, value = line.rpartition(" ")
        values[name] = int(value)
    return Counts(values)


def limits(before: Counts) -> dict[str, int]:
    """Return the highest value of each count that is not a leak."""
    return {
        name: value + _TOLERANCE.get(name, _TOLERANCE_OF_OTHERS)
        for name, value in before.values.items()
    }


def leaks(before: Counts, after: Counts) -> dict[str, int]:
    """Return the growth of those counts that exceed their limits.

    Raises ValueError if a count is missing the second time.
    """
    most = limits(before)
    missing = sorted(before.values.keys() - after.values.keys())
    if missing:
        raise ValueError(f"not counted the second time: {', '.join(missing)}")
    return {
        name: value - before.values.get(name, 0)
        for name, value in after.values.items()
        if value > most.get(name, 0)
    }
