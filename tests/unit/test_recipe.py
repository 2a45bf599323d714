"""A recipe's digest changes with the code that decides, and with nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from kbuild.core import recipe

SOURCE = '''\
"""A module."""

import logging

logger = logging.getLogger(__name__)
LIMIT = 3  # tries


def make(what: str, *, least: int = 0, tries: int) -> list[str]:
    """Make it."""
    logger.info("making %s", what)
    if tries > LIMIT:
        raise ValueError(f"too many tries: {tries}", "at most 3")
    return ["make", what, None]
'''


def digest(path: Path, text: str) -> str:
    path.write_text(text)
    return recipe.digest(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A module."""', '"""A module that makes.\n\nMore of it.\n"""'),
        ('    """Make it."""\n', ""),
        ("  # tries", "  # how often it is tried"),
        ("import logging\n", "# Its log.\nimport logging\n\n"),
        ('["make", what, None]', "[\n        'make',\n        what,\n        None,\n    ]"),
        ('("making %s", what)', '("%s is being made", what)'),
        ('(f"too many tries: {tries}", "at most 3")', '("too many tries", f"{tries} > {LIMIT}")'),
    ],
)
def test_prose_and_layout_decide_nothing(tmp_path: Path, old: str, new: str) -> None:
    assert old in SOURCE
    assert digest(tmp_path / "a.py", SOURCE) == digest(tmp_path / "a.py", SOURCE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ('["make"', '["cmake"'),
        ("None]", "0]"),
        ("None]", "'']"),
        ("None]", "]"),
        ("tries > LIMIT", "tries >= LIMIT"),
        ("raise ValueError", "raise KeyError"),
        ('raise ValueError(f"too many tries: {tries}", "at most 3")', "pass"),
        ("import logging", "import logging.handlers as logging"),
        ("*, least: int = 0, tries: int)", "least: int, *, tries: int)"),
        ("least: int = 0, tries: int)", "least: int, tries: int = 0)"),
    ],
)
def test_code_decides(tmp_path: Path, old: str, new: str) -> None:
    assert old in SOURCE
    assert digest(tmp_path / "a.py", SOURCE) != digest(tmp_path / "a.py", SOURCE.replace(old, new))


def test_every_file_counts_in_its_order_whatever_its_name(tmp_path: Path) -> None:
    one, two, moved = tmp_path / "one.py", tmp_path / "two.py", tmp_path / "other/moved.py"
    moved.parent.mkdir()
    one.write_text("A = 1\n")
    two.write_text("A = 2\n")
    moved.write_text("A = 1\n")
    assert len({recipe.digest(one, two), recipe.digest(two, one), recipe.digest(one)}) == 3
    assert recipe.digest(moved, two) == recipe.digest(one, two)


def test_of_other_files_every_byte_counts(tmp_path: Path) -> None:
    assert digest(tmp_path / "a.c", "int a; /* one */\n") != digest(tmp_path / "a.c", "int a;\n")
