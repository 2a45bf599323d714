"""Measure what drawing a snapshot costs, next to parsing its text: CPU time of the same process.

A picture is judged by how many times as long as the parsing it takes.  So the budget holds on a
slow machine too, and on a busy one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import fs
from kbuild.core.model import Settings
from kbuild.core.run import run as run_program
from kbuild.measure import stats
from kbuild.measure.stats import BenchError, Comparison, Series

_TIMEOUT_S = 300.0
# The best of several passes has the least of the machine's other work in it.
_PASSES = 5
_PROGRAM = f"""
import sys, time
import cplayground
from cplayground import drawing
text = open(sys.argv[1], "rb").read()
parsed, drawn = [], []
for _ in range({_PASSES}):
    before = time.process_time_ns()
    snapshot = cplayground.parse(text)
    between = time.process_time_ns()
    picture = drawing.svg(snapshot, snapshot.check())
    parsed.append(between - before)
    drawn.append(time.process_time_ns() - between)
print(min(parsed), min(drawn), len(picture.encode()))
"""


@dataclass(frozen=True)
class Scene:
    """Containers of alike processes: each process writes to a pipe that the next one reads."""

    name: str
    containers: int
    processes: int  # in each container
    budget: float  # the most that the picture may take, in times of the parsing
    size: int  # KiB that the picture may have

    @property
    def title(self) -> str:
        """The scene in words."""
        return f"{self.name}: {self.containers} containers × {self.processes} processes"


# The largest picture with tables, and one with cards.
SCENES = (Scene("tables", 2, 12, 150, 200), Scene("cards", 20, 50, 8, 40))
_SOCKETS = 8  # that each process has for itself


def text_of(scene: Scene) -> Iterator[bytes]:
    """Yield the records that the module would print for a scene."""
    opened = 0

    def new() -> bytes:
        nonlocal opened
        opened += 1
        return b"%064x" % opened

    for container in range(1, scene.containers + 1):
        terminal, log, read = new(), new(), b""
        for pid in range(1, scene.processes + 1):
            number = container * scene.processes + pid
            yield b"%064x\t%d\t%d\t0\t1\tworker\n" % (container, number, pid)
            stdin = read or terminal
            yield b"0\t0\t%s\t0\t0%d\t%s\n" % (
                stdin,
                0 if read else 2,
                b"pipe:[%d]" % (number - 1) if read else b"/dev/pts/0",
            )
            write, read = new(), new()
            yield b"1\t0\t%s\t0\t01\tpipe:[%d]\n" % (write, number)
            yield b"2\t0\t%s\t0\t02\t/dev/pts/0\n" % terminal
            yield b"3\t0\t%s\t4096\t02001\t/var/log/all.log\n" % log
            for fd in range(4, 4 + _SOCKETS):
                yield b"%d\t1\t%s\t0\t04002\tsocket:[%d]\n" % (fd, new(), 1000 * number + fd)
            yield b"\n"


def measure(settings: Settings, text: Path) -> tuple[int, int, int]:
    """Return nanoseconds of CPU time for parsing and drawing a text, and the picture's bytes."""
    done = run_program(
        [sys.executable, "-c", _PROGRAM, text],
        timeout_s=_TIMEOUT_S,
        cwd=settings.project,
        env={"PYTHONPATH": str(settings.project)},
        error=BenchError,
    )
    parsed, drawn, size = map(int, done.stdout.split())
    return parsed, drawn, size


def judge(scene: Scene, times: float, size: int) -> str:
    """Say how a picture keeps to its budgets.

    Raises BenchError beyond one.
    """
    said = (
        f"{scene.name}: {stats.number(times)} times the parsing of at most {scene.budget:g},"
        f" {stats.number(size / 1024)} KiB of {scene.size}"
    )
    if times > scene.budget or size > scene.size << 10:
        raise BenchError("the picture exceeds its budget", found=said)
    return said


def run(settings: Settings, *, rounds: int, say: Callable[[str], None] = print) -> Path:
    """Measure, and return the JSON file; raises BenchError beyond a budget."""
    values: dict[str, list[tuple[int, int, int]]] = {scene.name: [] for scene in SCENES}
    with fs.fresh_directory(settings.build / "bench" / "draw") as scratch:
        for scene in SCENES:
            with (scratch / scene.name).open("wb") as stream:
                stream.writelines(text_of(scene))
        for _ in range(rounds):
            for scene in SCENES:
                values[scene.name].append(measure(settings, scratch / scene.name))
    comparisons = [
        Comparison(
            scene.name,
            scene.title,
            "ms of CPU time",
            "parsing",
            tuple(
                Series(name, {n: one[at] / 1e6 for n, one in enumerate(values[scene.name])})
                for at, name in enumerate(("parsing", "drawing"))
            ),
        )
        for scene in SCENES
    ]
    path = settings.build / "bench" / "draw.json"
    content = {
        "conditions": stats.conditions(rounds),
        "comparisons": [stats.to_json(one) for one in comparisons],
        "bytes": {name: found[0][2] for name, found in values.items()},
    }
    fs.write_json(path, content)
    for one in comparisons:
        say(stats.render(one))
    for scene in SCENES:
        found = values[scene.name]
        times = stats.spread([drawn / parsed for parsed, drawn, _size in found]).median
        say(judge(scene, times, found[0][2]))
    return path
