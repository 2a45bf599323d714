"""Measure what parsing a procfile costs: CPU time and memory, next to our strict parser.

Each parser reads the same text in a process of its own, in turn, round after round.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from kbuild.core import fs
from kbuild.core.model import Settings
from kbuild.core.run import run as run_program
from kbuild.measure import stats
from kbuild.measure.procfile import Load
from kbuild.measure.stats import BenchError, Comparison, Series

# The text is the one that the module prints for this load of bench_load.
LOAD = Load("a million lines", 50_000, 18)
# The most that the tool's library may take for it.
CPU_S = 5.0
MEMORY_MIB = 600
AIM = 300_000  # lines per second

_PARSERS = {"library": "cplayground.parsing", "strict parser": "kbuild.lab.procfile"}
_TIMEOUT_S = 300.0
# VmHWM is of the program itself; the ru_maxrss of a child begins with that of its parent.
_PROGRAM = """
import importlib, re, sys, time
parse = importlib.import_module(sys.argv[1]).parse
text = open(sys.argv[2], "rb").read()
before = time.process_time_ns()
parsed = parse(text)
spent = time.process_time_ns() - before
print(spent, re.search(r"VmHWM:\\s*([0-9]+) kB", open("/proc/self/status").read())[1])
"""


def text_of(load: Load) -> Iterator[bytes]:
    """Yield the records that the module would print for a load of bench_load."""
    number = 0
    for pid in range(1, load.processes + 1):
        yield b"%064x\t%d\t%d\t0\t1\tbench_load\n" % (1, pid + 1000, pid)
        for fd in range(load.files):
            # Every fourth one is a dup(2) of the one before it.
            if fd % 4 != 3:
                number += 1
            id = hashlib.sha256(b"%d" % number).hexdigest()
            path = (b"/tmp/%010d" % number).ljust(load.path, b"x")
            yield b"%d\t0\t%s\t0\t0100000\t%s\n" % (fd * load.stride, id.encode(), path)
        yield b"\n"


def measure(settings: Settings, module: str, text: Path) -> tuple[float, float]:
    """Return the CPU seconds and the MiB that a parser takes for a text."""
    done = run_program(
        [sys.executable, "-c", _PROGRAM, module, text],
        timeout_s=_TIMEOUT_S,
        cwd=settings.project,
        env={"PYTHONPATH": str(settings.project)},
        error=BenchError,
    )
    spent, memory = map(int, done.stdout.split())
    return spent / 1e9, memory / 1024


def judge(ns: float, memory: float) -> str:
    """Say how the library keeps to its budgets, by nanoseconds for each line and MiB.

    Raises BenchError beyond a budget.  The aim is none, because a machine may be slower.
    """
    spent = ns * LOAD.lines / 1e9
    said = (
        f"{LOAD.name}: {stats.number(spent)} s of CPU time of {CPU_S:g},"
        f" {stats.number(memory)} MiB of {MEMORY_MIB};"
        f" {round(1e9 / ns, -3):,.0f} lines per second, the aim is {AIM:,}"
    )
    if spent > CPU_S or memory > MEMORY_MIB:
        raise BenchError("the library exceeds its budget", found=said)
    return said


def run(settings: Settings, *, rounds: int, say: Callable[[str], None] = print) -> Path:
    """Measure, and return the JSON file; raises BenchError beyond a budget."""
    values: dict[str, dict[int, float]] = {name: {} for name in _PARSERS}
    memory = dict.fromkeys(_PARSERS, 0.0)
    with fs.fresh_directory(settings.build / "bench" / "parse") as scratch:
        text = scratch / "text.procfile"
        with text.open("wb") as stream:
            stream.writelines(text_of(LOAD))
        for number in range(rounds):
            for name, module in _PARSERS.items():
                spent, most = measure(settings, module, text)
                values[name][number] = spent * 1e9 / LOAD.lines
                memory[name] = max(memory[name], most)
    comparison = Comparison(
        "parse",
        LOAD.title,
        "ns of CPU time for each line",
        "library",
        tuple(Series(name, values[name]) for name in _PARSERS),
    )
    path = settings.build / "bench" / "parse.json"
    content = {
        "conditions": stats.conditions(rounds),
        "comparisons": [stats.to_json(comparison)],
        "memory_mib": memory,
    }
    fs.write_json(path, content)
    say(stats.render(comparison))
    say(judge(stats.spread(list(values["library"].values())).median, memory["library"]))
    return path
