"""Define the workloads of stress runs, and plan their rounds."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kbuild.core.errors import UserError

_ROUND_S = 30  # of one choice of workloads, on a kernel as fast as the release variant
_SHORTEST_ROUND_S = 5
_TOGETHER = (2, 4)  # workloads at once: usually, and at most if time is short


@dataclass(frozen=True)
class Workload:
    """A load, and the bounds of its cgroup."""

    name: str
    pids: int
    memory_mib: int
    stressor: str = ""  # of stress-ng; empty for a workload of load.c


def _table() -> Iterator[Workload]:
    yield Workload("fork-pipe-bomb", 200, 96)
    yield Workload("pipe-bomb", 20, 64)
    yield Workload("churn", 100, 64)
    yield Workload("exec", 60, 64)
    yield Workload("threads", 120, 64)
    yield Workload("tables", 30, 128)
    yield Workload("namespaces", 100, 96)
    yield Workload("oom", 20, 12)
    yield Workload("names", 20, 64)
    yield Workload("fuse", 30, 64)
    yield Workload("linger", 40, 64)
    yield Workload("inotify", 20, 64)
    yield Workload("exec-threads", 60, 64)
    for stressor in ("fork", "pipe", "dup", "close", "procfs", "clone", "unshare", "dev"):
        yield Workload(f"stress-ng-{stressor}", 150, 192, stressor)


WORKLOADS: Mapping[str, Workload] = {one.name: one for one in _table()}


@dataclass(frozen=True)
class Round:
    """Workloads that run at the same time, and their duration."""

    workloads: tuple[Workload, ...]
    seconds: int
    reloaded: bool  # the module is reloaded meanwhile


def choose(names: Sequence[str]) -> tuple[Workload, ...]:
    """Return workloads by name, or all of them without a name; raises UserError."""
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown:
        raise UserError(f"no such workload: {', '.join(unknown)}", expected=", ".join(WORKLOADS))
    return tuple(WORKLOADS[name] for name in dict.fromkeys(names or WORKLOADS))


def plan(
    workloads: Sequence[Workload], seconds: int, seed: int, slowness: float = 1.0
) -> tuple[Round, ...]:
    """Divide the time into rounds, so that each workload runs as early as possible.

    Every second round reloads the module.  A kernel with a higher ``slowness`` has fewer rounds,
    because it needs a minute to begin and end one.  Raises UserError if the time is too short for
    both kinds of rounds.
    """
    if seconds < 2 * _SHORTEST_ROUND_S:
        raise UserError(f"{seconds} s are too short", expected=f"{2 * _SHORTEST_ROUND_S} s or more")
    count = max(2, int(seconds / (_ROUND_S * slowness)))
    by_choice, at_most = _TOGETHER
    together = min(max(by_choice, -(-len(workloads) // count)), at_most, len(workloads))
    dice = random.Random(seed)
    queue: list[Workload] = []
    rounds = []
    for number in range(count):
        chosen: list[Workload] = []
        while len(chosen) < together:
            queue = queue or dice.sample(workloads, len(workloads))
            chosen.append(next(one for one in queue if one not in chosen))
            queue.remove(chosen[-1])
        share = seconds // count + (number < seconds % count)
        rounds.append(Round(tuple(chosen), share, reloaded=number % 2 == 1))
    return tuple(rounds)
