"""Counts of kernel objects are parsed strictly and compared with earlier ones."""

from __future__ import annotations

import pytest

from kbuild.lab import counts
from kbuild.lab.counts import Counts

BEFORE = Counts({"struct file": 100, "struct pid": 3, "open files": 90})


def test_reads_what_the_program_prints() -> None:
    assert counts.parse("struct file 100\nstruct pid -3\nend 2\n").values == {
        "struct file": 100,
        "struct pid": -3,
    }
    assert counts.parse("open files 7\nend 1\n") == Counts({"open files": 7})


@pytest.mark.parametrize("text", ["", "open files 7\n", "open files 7\nend 2\n", "x y\nend 1\n"])
def test_what_is_cut_off_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        counts.parse(text)


def test_a_command_that_has_just_ended_is_no_leak() -> None:
    assert counts.leaks(BEFORE, BEFORE) == {}
    after = Counts({"struct file": 106, "struct pid": 5, "open files": 90 + 64})
    assert counts.leaks(BEFORE, after) == {}
    assert counts.leaks(BEFORE, Counts({**after.values, "struct file": 107})) == {"struct file": 7}
    assert counts.leaks(BEFORE, Counts({**after.values, "struct pid": 6})) == {"struct pid": 3}
    assert counts.leaks(BEFORE, Counts({**after.values, "open files": 155})) == {"open files": 65}


def test_what_is_not_counted_again_is_no_evidence() -> None:
    with pytest.raises(ValueError, match="struct pid"):
        counts.leaks(BEFORE, Counts({"struct file": 100, "open files": 90}))


def test_only_a_checking_allocator_is_exact() -> None:
    assert BEFORE.exact
    assert not Counts({"open files": 1}).exact
