"""What a guest's kernel has handed out, counted, and whether it came back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PROGRAM = "counts"

# How much more than before is none of ours.  The agent's pipes to a command that has just
# ended, and the process itself, may be counted once and not the other time; open files are
# summed up from what each CPU last said; and kmalloc() serves all of the kernel.
_TOLERANCE = {"struct file": 6, "open files": 64, "kmalloc": 64}
_TOLERANCE_OF_OTHERS = 2


@dataclass(frozen=True)
class Counts:
    """Objects by kind: those of slab caches, those of the module, open files."""

    values: Mapping[str, int]

    @property
    def exact(self) -> bool:
        """Whether the kernel counts the objects of its slab caches."""
        return "struct file" in self.values


def parse(text: str) -> Counts:
    """Read what counts.c printed; raises ValueError when it is cut off or has another shape."""
    *lines, last = text.removesuffix("\n").split("\n")
    if last != f"end {len(lines)}":
        raise ValueError(f"counts did not come to its end: {last!r} after {len(lines)} lines")
    values = {}
    for line in lines:
        name, _, value = line.rpartition(" ")
        values[name] = int(value)
    return Counts(values)


def limits(before: Counts) -> dict[str, int]:
    """Return the most that each count may be when everything has come back."""
    return {
        name: value + _TOLERANCE.get(name, _TOLERANCE_OF_OTHERS)
        for name, value in before.values.items()
    }


def leaks(before: Counts, after: Counts) -> dict[str, int]:
    """Return by how much the counts are over their limits, those alone that are."""
    most = limits(before)
    missing = sorted(before.values.keys() - after.values.keys())
    if missing:
        raise ValueError(f"not counted the second time: {', '.join(missing)}")
    return {
        name: value - before.values.get(name, 0)
        for name, value in after.values.items()
        if value > most.get(name, 0)
    }
