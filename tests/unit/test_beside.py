"""A head start in another process: its result, its errors, and its end with the caller's."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from kbuild.core import beside
from kbuild.core.errors import BuildError
from kbuild.core.run import Interrupted, interruptible, run


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_work_is_done_at_the_same_time_and_awaited(tmp_path: Path) -> None:
    def work() -> None:
        wait_for(tmp_path / "begun")
        time.sleep(0.2)
        (tmp_path / "made").touch()

    with beside.started(work):
        (tmp_path / "begun").touch()
    assert (tmp_path / "made").exists()


def test_an_error_of_the_work_is_left_to_the_caller() -> None:
    def work() -> None:
        raise BuildError("as the caller will see")

    with beside.started(work):
        pass


@pytest.mark.parametrize("signum", [None, signal.SIGTERM, signal.SIGHUP])
def test_the_work_and_its_programs_end_with_the_block(tmp_path: Path, signum: int | None) -> None:
    def work() -> None:
        try:
            run(
                ["sh", "-c", f"echo $$ >{tmp_path}/n; mv {tmp_path}/n {tmp_path}/pid; sleep 600"],
                timeout_s=600,
            )
        finally:
            (tmp_path / "tidied").touch()

    expected = BuildError if signum is None else Interrupted
    with interruptible(), pytest.raises(expected), beside.started(work):
        wait_for(tmp_path / "pid")
        if signum is None:
            raise BuildError("in the block")
        os.kill(os.getpid(), signum)
        time.sleep(30)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()
    assert (tmp_path / "tidied").exists()
