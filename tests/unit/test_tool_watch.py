"""The tool's watch: what changed between readings, how fast, and at which cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest

from cplayground import tables, watching
from cplayground.errors import UsageError
from cplayground.selecting import Filter
from cplayground.snapshot import Container, Descriptor, Name, OpenFile, Process, Snapshot

PROJECT = Path(__file__).resolve().parents[2]
EVERYTHING = Filter()
SCHEMA = json.loads((PROJECT / "cplayground/cplayground-1.schema.json").read_text("ascii"))


def snapshot(*processes: tuple[int, dict[int, tuple[str, int, int]]], name: str = "") -> Snapshot:
    """Return processes by pid, with the id, position and flags of each descriptor's file."""
    files: dict[str, OpenFile] = {}
    made = []
    for pid, held in processes:
        descriptors = []
        for fd, (key, position, flags) in sorted(held.items()):
            path = Name(f"/tmp/{key}".encode())
            number = len(files) + 1
            file = files.setdefault(key, OpenFile(number, f"{key:0>64}", position, flags, path))
            descriptors.append(Descriptor(fd, False, file, position, flags, path))
        made.append(Process("a" * 64, 100 + pid, pid, 0, 1, Name(b"p%d" % pid), tuple(descriptors)))
    pids = tuple(process.global_pid for process in made)
    containers = (Container(name, "c" * 64, "docker", "", pids),) if name else ()
    return Snapshot(tuple(made), tuple(files.values()), containers=containers)


class Time:
    """A clock that only sleeping and reading move."""

    def __init__(self, reading_s: float = 0.0) -> None:
        self.at = 1000.0
        self.reading_s = reading_s
        self.slept: list[float] = []

    def clock(self) -> watching.Clock:
        return watching.Clock(lambda: self.at, lambda: 1.7e9 + self.at, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += seconds

    def reader(self, *snapshots: Snapshot) -> Callable[[], Snapshot]:
        todo = iter(snapshots)

        def read() -> Snapshot:
            self.at += self.reading_s
            return next(todo)

        return read


def watched(
    time: Time, seconds: float, *snapshots: Snapshot, chosen: Filter = EVERYTHING
) -> list[watching.Reading]:
    readings = watching.readings(time.reader(*snapshots), chosen, seconds, time.clock())
    return list(islice(readings, len(snapshots)))


BEFORE = snapshot((1, {0: ("a", 0, 0), 1: ("b", 500, 1)}), (2, {3: ("c", 0, 2)}))
AFTER = snapshot((1, {0: ("a", 5_000_000, 0), 1: ("d", 0, 1), 4: ("e", 0, 0)}))


def texts(one: watching.Reading) -> list[str]:
    return [line.split("  ", 1)[1] for line in watching.text(one, tables.PLAIN)]


def test_each_change_has_a_line() -> None:
    first, second, third = watched(Time(), 2, BEFORE, AFTER, AFTER)
    assert texts(first) == []
    assert texts(second) == [
        "moved     p1:1/0  r /tmp/a  +2.5 MB/s, now at 5000000",
        "replaced  p1:1/1  w /tmp/b → w /tmp/d",
        "opened    p1:1/4  r /tmp/e",
        "closed    p2:2/3  the process has ended",
    ]
    assert texts(third) == []


def test_a_process_that_began_or_ended_has_one_line() -> None:
    both = snapshot((1, {0: ("a", 0, 0)}), (2, {0: ("b", 0, 0), 1: ("c", 0, 1)}))
    one = snapshot((1, {0: ("a", 0, 0)}))
    without = snapshot((1, {}))
    _first, began, ended, closed = watched(Time(), 2, one, both, one, without)
    assert texts(began) == ["opened    p2:2/0,1  0 r /tmp/b, 1 w /tmp/c"]
    assert texts(ended) == ["closed    p2:2/0,1  the process has ended"]
    assert texts(closed) == ["closed    p1:1/0  r /tmp/a"]


def test_a_speed_is_of_the_time_between_the_readings() -> None:
    back = snapshot((1, {0: ("a", 100, 0)}))
    _first, second, third = watched(Time(reading_s=0.05), 2, BEFORE, AFTER, back)
    assert second.elapsed == pytest.approx(2.0)
    assert "+2.5 MB/s, now at" in texts(second)[0]
    assert "-2.5 MB/s, now at 100" in texts(third)[0]


@pytest.mark.parametrize(
    ("seconds", "reading_s", "sleeps"), [(2, 0.01, 1.99), (2, 0.2, 3.8), (0.01, 0.001, 0.019)]
)
def test_reading_takes_a_twentieth_of_the_time_at_most(
    seconds: float, reading_s: float, sleeps: float
) -> None:
    time = Time(reading_s)
    watched(time, seconds, BEFORE, AFTER)
    assert time.slept == [pytest.approx(sleeps)]


def test_the_cost_is_said() -> None:
    (one,) = watched(Time(reading_s=0.003), 2, BEFORE)
    said = watching.cost(one, 2, walk=False)
    assert "3 descriptors of 2 processes takes 3.0 ms, every 2 s" in said
    assert "less than 1.5 ms on average" in said
    (slow,) = watched(Time(reading_s=0.5), 2, BEFORE)
    assert "every 10 s" in watching.cost(slow, 2, walk=True)
    (empty,) = watched(Time(), 2, Snapshot((), ()))
    assert "0 descriptors of 0 processes" in watching.cost(empty, 2, walk=False)


def test_a_process_that_ended_keeps_the_name_of_its_container() -> None:
    before = snapshot((1, {0: ("a", 0, 0)}), (2, {0: ("b", 0, 0)}), name="web")
    after = snapshot((1, {0: ("a", 0, 0)}), name="web")
    _first, second = watched(Time(), 1, before, after)
    (change,) = map(json.loads, list(watching.json_lines(second))[1:])
    assert (change["change"], change["container"], change["global_pid"]) == ("closed", "web", 102)


def test_a_filter_chooses_the_changes_and_its_process_may_end() -> None:
    _first, second = watched(Time(), 2, BEFORE, AFTER, chosen=Filter(pids=(102,)))
    assert texts(second) == ["closed    p2:2/3  the process has ended"]
    assert "3 descriptors" in watching.cost(_first, 2, walk=False)
    with pytest.raises(UsageError):
        watched(Time(), 2, AFTER, chosen=Filter(pids=(102,)))


def test_json_fits_the_schema() -> None:
    moved_far = snapshot((1, {0: ("a", 1 << 60, 0)}))
    lines = [watching.head_json(2.0)]
    for one in watched(Time(reading_s=0.001), 2, BEFORE, AFTER, moved_far):
        lines += watching.json_lines(one)
    found = [json.loads(line) for line in lines]
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for one in found:
        validator.validate(one)
    assert all(line.isascii() and line.count("\n") == 1 for line in lines)
    changes = [one["change"] for one in found if one["type"] == "change"]
    assert changes == ["moved", "replaced", "opened", "closed", "moved", "closed", "closed"]
    last_move = [one for one in found if one.get("change") == "moved"][-1]
    assert last_move["after"]["position"] == str(1 << 60)
    assert [one["type"] for one in found].count("reading") == 3


def test_names_are_asked_for_only_if_processes_came_or_went() -> None:
    asked: list[Snapshot] = []

    def named(one: Snapshot) -> Snapshot:
        asked.append(one)
        pids = tuple(process.global_pid for process in one.processes)
        return Snapshot(one.processes, one.files, containers=(Container("web", "1", "", "", pids),))

    same = snapshot((1, {}), (2, {3: ("c", 9, 2)}))
    read = watching.with_names(Time().reader(BEFORE, same, AFTER), named)
    found: Iterator[Snapshot] = (read() for _ in range(3))
    assert [one.containers[0].name for one in found] == ["web"] * 3
    assert asked == [BEFORE, AFTER]
