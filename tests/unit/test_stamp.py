"""Stamps: a stage runs exactly when an input changed or an output is gone, and says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kbuild import stamp


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """Return the stamp of a stage that ran with two inputs and made one file."""
    (tmp_path / "vmlinuz").write_text("kernel")
    path = tmp_path / "stamp.json"
    stamp.write(path, {"config": "a" * 64, "compiler": "gcc 12"}, [tmp_path / "vmlinuz"], 12.3456)
    return path


def test_unchanged_is_skipped(done: Path) -> None:
    assert stamp.reason(done, {"compiler": "gcc 12", "config": "a" * 64}) is None


def test_never_done(tmp_path: Path) -> None:
    assert stamp.reason(tmp_path / "stamp.json", {}) == "it has not been done yet"


def test_a_changed_input_is_named_with_both_values(done: Path) -> None:
    why = stamp.reason(done, {"config": "b" * 64, "compiler": "gcc 12"})
    assert why == f"config changed from {'a' * 12}… to {'b' * 12}…"


def test_further_changes_are_counted(done: Path) -> None:
    why = stamp.reason(done, {"config": "a" * 64, "jobs": "2"})
    assert why == "compiler changed from gcc 12 to nothing (and 1 more)"


def test_an_output_that_is_gone(done: Path) -> None:
    (done.parent / "vmlinuz").unlink()
    why = stamp.reason(done, {"config": "a" * 64, "compiler": "gcc 12"})
    assert why == "its output vmlinuz is gone"


def test_what_was_written_is_read(done: Path) -> None:
    read = stamp.read(done)
    assert read is not None
    assert (read.outputs, read.seconds) == (("vmlinuz",), 12.346)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        json.dumps({"format": 0, "inputs": {}, "outputs": [], "seconds": 1}),
        json.dumps({"format": 1, "inputs": 3, "outputs": [], "seconds": 1}),
        json.dumps({"format": 1, "inputs": {}, "outputs": [], "seconds": "x"}),
    ],
)
def test_a_damaged_or_foreign_stamp_counts_as_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "stamp.json"
    path.write_text(content)
    assert stamp.read(path) is None
    assert stamp.reason(path, {}) == "it has not been done yet"


def test_a_stamp_of_undecodable_bytes_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "stamp.json"
    path.write_bytes(b"\xff\xfe\x00")
    assert stamp.read(path) is None


def test_outputs_lie_below_the_stamp(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not in the subpath"):
        stamp.write(tmp_path / "a" / "stamp.json", {}, [tmp_path / "elsewhere"], 1)
    assert not (tmp_path / "a" / "stamp.json").exists()


def test_digest_ignores_order_and_sees_every_value() -> None:
    assert stamp.digest({"a": "1", "b": "2"}) == stamp.digest({"b": "2", "a": "1"})
    different = [{"a": "1"}, {"a": "2"}, {"b": "1"}, {"a": "1", "b": ""}, {}]
    assert len({stamp.digest(each) for each in different}) == len(different)
