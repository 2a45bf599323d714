"""Stamps: a stage runs if an input changed or an output is damaged, only then, and says why."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild.core import contents, fs, stamp
from tests.unit import damage

INPUTS = {"config": "a" * 64, "compiler": "gcc 12"}


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
    assert (list(read.outputs), read.seconds) == (["vmlinuz"], 12.346)


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
    assert stamp.reason(path, {}) == "its stamp is damaged"
    assert stamp.due(path, {}) == "its stamp is damaged"
    assert stamp.damage(path) == stamp.damage(path, thorough=True) != ()


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


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return the stamp of a stage that made a directory and a file too large to read each time."""
    root = tmp_path / "root"
    for name in ("usr/bin/gcc", "usr/bin/make", "etc/hosts"):
        fs.write_atomic(root / name, f"{name} " * 100)
    (root / "bin").symlink_to("usr/bin")
    (root / "empty").touch()
    (root / "a b\nc").touch()
    (tmp_path / "disk").write_bytes(b"0123456789abcdef" * (1 << 17))
    path = tmp_path / "stamp.json"
    stamp.write(path, INPUTS, [root, tmp_path / "disk"], 1)
    assert stamp.reason(path, INPUTS) is None
    return path


@pytest.mark.parametrize("name", ["disk", "root/usr/bin/gcc"])
@pytest.mark.parametrize("harm", damage.VISIBLE.values(), ids=damage.VISIBLE)
def test_damage_to_an_output_is_a_reason_that_names_it(
    tree: Path, name: str, harm: Callable[[Path], None]
) -> None:
    harm(tree.parent / name)
    for why in (stamp.reason(tree, INPUTS), stamp.due(tree, INPUTS)):
        assert why is not None
        assert why.startswith(f"its output {name.partition('/')[0]} is ")
        assert name.rpartition("/")[2] in why
    assert [one.output for one in stamp.damage(tree)] == [name.partition("/")[0]]


def test_the_reason_says_what_was_expected_and_found(tree: Path) -> None:
    damage.emptied(tree.parent / "root/usr/bin/gcc")
    damage.lost(tree.parent / "root/etc/hosts")
    (tree.parent / "root/new").touch()
    (tree.parent / "root/usr/bin/make").chmod(0o755)
    assert stamp.reason(tree, INPUTS) == (
        "its output root is damaged: 4 of 9 files: etc/hosts (gone), new (not there before), "
        "usr/bin/gcc (0 bytes instead of 1,200) and 1 more"
    )
    damage.cut(tree.parent / "disk")
    (said,) = (str(one) for one in stamp.damage(tree) if one.output == "disk")
    assert said == "disk is damaged: 1,048,576 bytes instead of 2,097,152"


def test_a_link_that_leads_elsewhere_and_a_file_that_became_one_are_damage(tree: Path) -> None:
    root = tree.parent / "root"
    (root / "bin").unlink()
    (root / "bin").symlink_to("usr/bad")
    (root / "etc/hosts").unlink()
    (root / "etc/hosts").symlink_to("/etc/hosts")
    assert "2 of 9 files: bin (other content), etc/hosts (another kind of file)" in (
        stamp.reason(tree, INPUTS) or ""
    )


def test_a_small_file_is_read_each_time(done: Path) -> None:
    damage.rotten(done.parent / "vmlinuz")
    assert stamp.reason(done, INPUTS) == "its output vmlinuz is damaged: other content"


@pytest.mark.parametrize("name", ["disk", "root/usr/bin/gcc"])
def test_what_only_reading_finds_is_made_again_once_it_was_found(tree: Path, name: str) -> None:
    damage.rotten(tree.parent / name)
    assert stamp.reason(tree, INPUTS) is None
    (found,) = stamp.damage(tree, thorough=True)
    assert found.output == name.partition("/")[0]
    stamp.distrust(tree, [found])
    assert "other content" in (stamp.reason(tree, INPUTS) or "")
    # Put right by hand, it is taken again, and trusted.
    damage.rotten(tree.parent / name)
    assert stamp.due(tree, INPUTS) is None
    assert stamp.damage(tree, thorough=True) == ()
    assert "other content" not in tree.read_text()


def test_without_the_record_of_its_files_a_directory_is_damaged_where_it_counts(
    tree: Path,
) -> None:
    (record,) = tree.parent.glob("*.files")
    damage.edited(record)
    assert stamp.reason(tree, INPUTS) is None
    assert [one.output for one in stamp.damage(tree, thorough=True)] == ["root"]
    damage.emptied(tree.parent / "root/usr/bin/gcc")
    assert stamp.reason(tree, INPUTS) == (
        "its output root is damaged: the record of its files is gone"
    )


def test_a_copy_without_times_is_read_once_and_then_trusted(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tree.parent, copy, symlinks=True, copy_function=shutil.copyfile)
    moved = copy / tree.name
    for path in copy.rglob("*"):
        os.utime(path, (0, 0), follow_symlinks=False)
    assert stamp.reason(moved, INPUTS) is None
    assert stamp.due(moved, INPUTS) is None

    def read(*_: object, **__: object) -> str:
        pytest.fail("it is read again")

    monkeypatch.setattr(contents, "differences", lambda *_, **__: ())
    monkeypatch.setattr(contents, "read", read)
    assert stamp.due(moved, INPUTS) is None


def test_an_earlier_stamp_holds_and_is_written_anew(tree: Path) -> None:
    inputs, outputs = INPUTS, ["disk", "root"]
    fs.write_json(tree, {"format": 1, "inputs": inputs, "outputs": outputs, "seconds": 60.0})
    assert stamp.reason(tree, inputs) is None
    assert json.loads(tree.read_text())["outputs"] == outputs
    assert stamp.due(tree, inputs) is None
    made = stamp.read(tree)
    assert made is not None
    assert made.seconds == 60.0
    damage.emptied(tree.parent / "root/usr/bin/gcc")
    assert "usr/bin/gcc (0 bytes instead of 1,200)" in (stamp.reason(tree, inputs) or "")


def test_an_earlier_stamp_of_an_empty_file_does_not_hold(tree: Path) -> None:
    fs.write_json(
        tree, {"format": 1, "inputs": INPUTS, "outputs": ["disk", "root"], "seconds": 60.0}
    )
    damage.emptied(tree.parent / "disk")
    assert stamp.due(tree, INPUTS) == "its output disk is damaged: 0 bytes"


def test_a_stamp_is_read_by_the_versions_before_it(tree: Path) -> None:
    """As they did it: two checkouts share a cache, and neither makes the other's roots again."""
    raw = json.loads(tree.read_text())
    assert raw["format"] == 1
    assert (dict(raw["inputs"]), tuple(raw["outputs"]), float(raw["seconds"])) == (
        INPUTS,
        ("disk", "root"),
        1.0,
    )


def test_a_directory_that_is_about_to_be_replaced_is_no_traceback(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(top: Path) -> str:
        raise FileNotFoundError(2, "No such file or directory", str(top / "usr"))

    monkeypatch.setattr(contents, "look", vanish)
    assert stamp.reason(tree, INPUTS) == "its output root is gone"
