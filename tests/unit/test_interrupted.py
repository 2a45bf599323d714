"""A real make, killed in the middle of an object: the next one must not take it for whole."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from kbuild.core import interrupted
from kbuild.core.errors import BuildError
from kbuild.core.run import run, start

# Each object is its source twice.  "slow" stops b.o between the halves; c.o has an old time, as
# "cp -p" and "objcopy -p" leave.
MAKEFILE = """
VPATH = ../source
all: lib.a
%.o: %.c
\tcat $< > $@
\ttest $@ != b.o || while test -e ../source/slow; do sleep 0.05; done
\tcat $< >> $@
c.o: c.c
\tcat $< $< > $@
\ttouch -d 2001-01-01 $@
lib.a: a.o b.o c.o
\tcat $^ > $@
"""
MAKE = ("make", "-f", "../source/Makefile")
WHOLE = "a\na\nb\nb\nc\nc\n"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return a directory with the small project, in which make works."""
    (tmp_path / "out").mkdir()
    (tmp_path / "source").mkdir()
    for name in "abc":
        (tmp_path / f"source/{name}.c").write_text(f"{name}\n")
        os.utime(tmp_path / f"source/{name}.c", (1, 1))
    (tmp_path / "source/Makefile").write_text(MAKEFILE)
    return tmp_path / "out"


def make(out: Path, *goals: str) -> str:
    with interrupted.noted(out):
        return run([*MAKE, *goals], cwd=out, timeout_s=60).stdout


def kill_in_the_middle(out: Path) -> None:
    """End make and its children as a power cut does, when b.o is half there."""
    (out.parent / "source/slow").touch()
    with pytest.raises(KeyboardInterrupt), interrupted.noted(out):
        process = start([*MAKE, "-j3"], cwd=out)
        deadline = time.monotonic() + 30
        while not ((out / "b.o").exists() and (out / "b.o").read_text() and (out / "c.o").exists()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=20)
        raise KeyboardInterrupt
    (out.parent / "source/slow").unlink()


def test_half_an_object_does_not_stay(out: Path) -> None:
    make(out, "a.o")
    before = (out / "a.o").stat()
    time.sleep(0.02)
    kill_in_the_middle(out)
    assert (out / "b.o").read_text() == "b\n"
    assert interrupted.recover(out) >= 2
    # An old time does not keep an object, and one from before the start is not touched.
    assert not (out / "b.o").exists()
    assert not (out / "c.o").exists()
    assert (out / "a.o").stat() == before
    make(out)
    assert (out / "lib.a").read_text() == WHOLE


def test_without_recovery_the_half_would_stay(out: Path) -> None:
    """The fault that the test above is about: make by itself takes the object for whole."""
    kill_in_the_middle(out)
    make(out)
    assert (out / "lib.a").read_text() != WHOLE


def test_a_make_that_ended_by_itself_is_not_undone(out: Path) -> None:
    make(out)
    assert interrupted.recover(out) == 0
    assert "up to date" in make(out, "lib.a")
    assert {path.name for path in out.parent.iterdir()} == {"out", "source"}


def test_a_second_interruption_drops_objects_since_the_first(out: Path) -> None:
    kill_in_the_middle(out)
    # The second run dies before it does anything: its note must not hide the first one's.
    with pytest.raises(KeyboardInterrupt), interrupted.noted(out):
        raise KeyboardInterrupt
    assert interrupted.recover(out) >= 2
    make(out)
    assert (out / "lib.a").read_text() == WHOLE


def test_a_run_that_is_over_its_time_is_cut_short(out: Path) -> None:
    (out.parent / "source/slow").touch()
    with pytest.raises(BuildError, match="did not finish"), interrupted.noted(out):
        run([*MAKE, "b.o"], cwd=out, timeout_s=1)
    (out.parent / "source/slow").unlink()
    interrupted.recover(out)
    make(out)
    assert (out / "lib.a").read_text() == WHOLE


def test_the_target_of_a_link_stays(out: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with pytest.raises(KeyboardInterrupt), interrupted.noted(out):
        (outside / "file").write_text("not ours")
        (out / "deep").mkdir()
        (out / "deep/link").symlink_to(outside)
        (out / "deep/new").write_text("")
        raise KeyboardInterrupt
    assert interrupted.recover(out) == 2
    assert (outside / "file").read_text() == "not ours"
    assert (out / "deep").is_dir()
    assert not any((out / "deep").iterdir())
