"""The benchmark of the parsers: its text, its runs, and its budgets."""

from __future__ import annotations

from pathlib import Path

import pytest

import cplayground
from kbuild.core.model import Settings
from kbuild.lab import procfile
from kbuild.measure import parsing
from kbuild.measure.procfile import Load
from kbuild.measure.stats import BenchError

PROJECT = Path(__file__).resolve().parents[2]
SMALL = Load("small", 3, 9)


def test_the_text_is_one_of_the_module() -> None:
    text = b"".join(parsing.text_of(SMALL))
    assert text.count(b"\n") == SMALL.lines
    assert [len(process.files) for process in procfile.parse(text)] == [SMALL.files] * 3
    snapshot = cplayground.parse(text)
    # Two of nine are a dup(2).
    assert len(snapshot.files) == 3 * 7
    assert {len(file.path) for file in snapshot.files} == {SMALL.path}
    assert parsing.LOAD.lines == 1_000_000


@pytest.mark.parametrize("module", ["cplayground.parsing", "kbuild.lab.procfile"])
def test_a_parser_is_measured_in_its_own_process(tmp_path: Path, module: str) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"".join(parsing.text_of(SMALL)))
    seconds, memory = parsing.measure(
        Settings(project=PROJECT, build=tmp_path, cache=tmp_path), module, text
    )
    assert 0 < seconds < 60
    assert 1 < memory < 200
    text.write_bytes(b"no procfile\n")
    with pytest.raises(BenchError):
        parsing.measure(Settings(project=PROJECT, build=tmp_path, cache=tmp_path), module, text)


def test_a_budget_that_is_exceeded_is_an_error() -> None:
    said = parsing.judge(2000, 500)
    assert said == (
        "a million lines: 2.00 s of CPU time of 5, 500 MiB of 600;"
        " 500,000 lines per second, the aim is 300,000"
    )
    for ns, memory in ((5001, 500), (2000, 601)):
        with pytest.raises(BenchError, match="exceeds its budget"):
            parsing.judge(ns, memory)
