"""A kept result is made for a reason only, under its lock, and whole or not at all."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild.core import fs, results
from kbuild.core.results import Result
from tests.unit import damage


class Bakery:
    """Makes a result of two files, one of which tells what it holds, and notes what it does."""

    def __init__(self, where: Path, *, fresh: bool) -> None:
        self.home = where / "home"
        self.fresh = fresh
        self.done: list[str] = []
        self.fails = False
        self.why: str | None = None

    def result(self, **inputs: str) -> Result[str]:
        return results.kept(
            self.home / "stamp.json",
            inputs,
            self.make,
            self.read,
            lock=self.home.with_name("lock"),
            doing="baking",
            fresh=self.fresh,
            check=lambda: self.why,
            before=lambda why: self.done.append(f"before: {why}"),
        )

    def make(self, out: Path) -> list[Path]:
        with self.home.with_name("lock").open() as stream, pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fs.write_atomic(out / "bread", "bread")
        if self.fails:
            raise KeyboardInterrupt
        fs.write_json(out / "list", {"holds": "bread"})
        self.done.append("made")
        self.why = None
        return [out / "bread", out / "list"]

    def read(self) -> str | None:
        return fs.read_json(self.home / "list", lambda raw: str(raw["holds"]))


@pytest.fixture(params=[True, False], ids=["fresh", "in place"])
def bakery(tmp_path: Path, request: pytest.FixtureRequest) -> Bakery:
    return Bakery(tmp_path, fresh=request.param)


def test_it_is_made_once_and_again_when_an_input_changed(bakery: Bakery) -> None:
    assert bakery.result(flour="1").reason() == "it has not been done yet"
    assert not bakery.home.exists()
    for flour in ("1", "1", "2", "2"):
        assert bakery.result(flour=flour).ensure() == "bread"
        assert bakery.result(flour=flour).reason() is None
        assert bakery.result(flour=flour).read() == "bread"
    assert bakery.done == [
        "before: it has not been done yet",
        "made",
        "before: flour changed from 1 to 2",
        "made",
    ]


def test_a_reason_of_its_own_comes_before_the_stamps(bakery: Bakery) -> None:
    bakery.result().ensure()
    bakery.why = "it is stale"
    assert bakery.result().reason() == "it is stale"
    bakery.result().ensure()
    assert bakery.done[2:] == ["before: it is stale", "made"]


@pytest.mark.parametrize("victim", ["bread", "list", "stamp.json"])
@pytest.mark.parametrize("harm", damage.EVERY.values(), ids=damage.EVERY)
def test_a_damaged_result_is_made_again(
    bakery: Bakery, victim: str, harm: Callable[[Path], None]
) -> None:
    bakery.result(flour="1").ensure()
    harm(bakery.home / victim)
    for _ in range(2):
        assert bakery.result(flour="1").ensure() == "bread"
        assert bakery.result(flour="1").reason() is None
    assert (bakery.home / "bread").read_text() == "bread"
    # One changed bit of a stamp may leave it right.
    assert bakery.done.count("made") == 2 or victim == "stamp.json"


def test_a_record_that_cannot_be_read_is_a_reason(bakery: Bakery) -> None:
    bakery.result().ensure()
    earlier = {"format": 1, "inputs": {}, "outputs": ["bread", "list"], "seconds": 1.0}
    fs.write_json(bakery.home / "stamp.json", earlier)
    (bakery.home / "list").write_text("[]")
    assert bakery.result().reason() == "the record of what it holds is damaged"
    assert bakery.result().ensure() == "bread"
    assert bakery.done.count("made") == 2


def test_a_result_of_a_run_that_was_killed_is_made_again(bakery: Bakery) -> None:
    bakery.result(flour="1").ensure()
    bakery.fails = True
    with pytest.raises(KeyboardInterrupt):
        bakery.result(flour="2").ensure()
    bakery.fails = False
    # In place the old result is gone with its stamp; a new directory leaves it alone.
    assert (bakery.result(flour="1").reason() is None) is bakery.fresh
    fs.write_atomic(bakery.home.with_name(".home.killed") / "bread", "half")
    assert bakery.result(flour="2").ensure() == "bread"
    left = {path.name for path in bakery.home.parent.iterdir()} - {".home.killed"}
    assert left == {"home", "lock"}
    assert bakery.home.with_name(".home.killed").exists() is not bakery.fresh
