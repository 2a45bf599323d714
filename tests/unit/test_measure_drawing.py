"""The benchmark of the pictures: its texts, its runs, and its budgets."""

from __future__ import annotations

from pathlib import Path

import pytest

import cplayground
from cplayground.drawing import MANY
from kbuild.core.model import Settings
from kbuild.lab import procfile
from kbuild.measure import drawing
from kbuild.measure.stats import BenchError

PROJECT = Path(__file__).resolve().parents[2]
SMALL = drawing.Scene("small", 2, 3, 10, 10)


def test_the_text_is_one_of_the_module() -> None:
    text = b"".join(drawing.text_of(SMALL))
    assert len(procfile.parse(text)) == 6
    snapshot = cplayground.parse(text)
    # Both ends of a pipe, the terminal and the log are shared, and each container has its own.
    assert [len(pipe.readers) for pipe in snapshot.pipes()] == [1, 1, 0] * 2
    assert len(snapshot.shared()) == 4
    assert len({process.namespace for process in snapshot.processes}) == 2


def test_the_scenes_are_one_of_tables_and_one_of_cards() -> None:
    tables, cards = (scene.containers * scene.processes for scene in drawing.SCENES)
    assert tables == MANY
    assert cards == 1000


def test_a_picture_is_measured_in_its_own_process(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"".join(drawing.text_of(SMALL)))
    settings = Settings(project=PROJECT, build=tmp_path, cache=tmp_path)
    parsed, drawn, size = drawing.measure(settings, text)
    assert 0 < parsed < 1e9 and 0 < drawn < 60e9
    assert size == len(cplayground.parse(text.read_bytes()).svg().encode())
    text.write_bytes(b"no procfile\n")
    with pytest.raises(BenchError):
        drawing.measure(settings, text)


def test_a_budget_that_is_exceeded_is_an_error() -> None:
    assert drawing.judge(SMALL, 9, 2048) == (
        "small: 9.00 times the parsing of at most 10, 2.00 KiB of 10"
    )
    for times, size in ((11, 2048), (9, 20480)):
        with pytest.raises(BenchError, match="exceeds its budget"):
            drawing.judge(SMALL, times, size)
